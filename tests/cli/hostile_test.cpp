// Damaged and hostile inputs, given to the real binary: what holds of each, and run folders that
// are damaged.

#include <sstream>

#include "tests/cli/damaged_input.h"

namespace convpass::hostile {
namespace {

TEST_P(HostileInput, EndsInOneClearLine) {
  const Case& c = GetParam();
  c.make(*this);
  const auto before = files();
  const Result result = run(c.words);
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_EQ(result.out, "");
  expect_no_noise(result.err);

  std::vector<std::string> lines;
  std::istringstream text(result.err);
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  ASSERT_FALSE(lines.empty());
  EXPECT_EQ(result.err.back(), '\n');
  const std::string& last = lines.back();
  EXPECT_TRUE(last.starts_with("convpass: ")) << result.err;
  EXPECT_NE(last.find(c.culprit), std::string::npos) << last << "\nwanted: " << c.culprit;
  EXPECT_NE(last.find(c.says), std::string::npos) << last << "\nwanted: " << c.says;
  for (const std::string& line : lines) expect_readable(line);
  // Before it only the progress of what had gone well, and the names of broken images.
  lines.pop_back();
  const bool long_command = c.words.starts_with("train ") || c.words.starts_with("check ") ||
                            c.words.starts_with("eval ");
  EXPECT_TRUE(long_command || lines.empty()) << result.err;
  for (const std::string& line : lines) EXPECT_FALSE(line.starts_with("convpass: ")) << result.err;

  expect_files(before);
}

const std::vector<Case>& folders() {
  static const std::vector<Case> cases{
      {"OutIsAFile", nothing, "train recipe.json --out recipe.json", "recipe.json",
       "cannot be made a run folder"},
      {"OutBelowAFile", nothing, "train recipe.json --out recipe.json/run", "recipe.json/run",
       "cannot be made a run folder"},
      {"OutNotWritable", nothing, "train recipe.json --out /proc/convpass", "/proc/convpass",
       "cannot be made a run folder"},
      {"OutNotWritableInside", nothing, "train recipe.json --out /proc/self", "/proc/self",
       "cannot be written"},
      {"OutHoldsARun", good_run, "train recipe.json --out run", "run", "holds a run already"},
      {"OutHoldsAnotherRun", good_run, "train recipe.json --out run --resume", "run/recipe.json",
       "of another recipe"},
      {"RunRecipeDamaged",
       [](const DamagedInput& t) {
         t.train_run();
         t.cut("run/recipe.json", "run/recipe.json");
       },
       kResume, "run/recipe.json", "not JSON"},
      {"RunRecipeDamagedForPredict",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("run/recipe.json", "{\"train\": 1}");
       },
       "predict run images/test/a/0.bmp", "run/recipe.json", "/train"},
      {"ResultDamaged",
       [](const DamagedInput& t) {
         t.train_run();
         t.cut("run/result.json", "run/result.json");
       },
       kResume, "run/result.json", "damaged"},
      {"ResultEmpty",
       [](const DamagedInput& t) {
         t.train_run();
         t.write("run/result.json", "");
       },
       kResume, "run/result.json", "damaged"},
      {"CheckpointCut",
       [](const DamagedInput& t) {
         t.edit_checkpoint([](TensorMap&) {});
         t.cut("run/checkpoint.pt", "run/checkpoint.pt");
       },
       kResume, "run/checkpoint.pt", ""},
      {"CheckpointWithoutProgress",
       checkpoint_with([](TensorMap& map) { map.tensors.erase("progress"); }), kResume,
       "run/checkpoint.pt", "progress"},
      {"CheckpointOfWordsForProgress", checkpoint_with([](TensorMap& map) {
         auto& progress = map.tensors.at("progress");
         progress = at::full_like(progress, NAN);
       }),
       kResume, "run/checkpoint.pt", "progress"},
      {"CheckpointBeyondTheRun",
       checkpoint_with([](TensorMap& map) { map.tensors.at("progress")[0] = 1e15; }), kResume,
       "run/checkpoint.pt", "step"},
      {"CheckpointWithoutWeights",
       checkpoint_with([](TensorMap& map) { map.tensors.erase("model/head.weight"); }), kResume,
       "run/checkpoint.pt", "head.weight"},
      {"CheckpointWithoutMoments",
       checkpoint_with([](TensorMap& map) { map.tensors.erase("optimizer/first.head.weight"); }),
       kResume, "run/checkpoint.pt", "first.head.weight"},
      {"CheckpointOfAnotherShape",
       checkpoint_with([](TensorMap& map) { map.tensors["model/head.bias"] = at::zeros({9}); }),
       kResume, "run/checkpoint.pt", "head.bias"},
  };
  return cases;
}

INSTANTIATE_TEST_SUITE_P(RunFolder, HostileInput, testing::ValuesIn(folders()), name_of);

TEST_F(DamagedInput, PredictTellsEachBadImageAndTheGoodOnesStillCome) {
  train_run();
  copy("images/jpeg_444.jpg", "cut.jpg");
  copy("images/png_rgb.png", "cut.png");
  copy("images/tiff_rgb_lzw.tif", "cut.tif");
  copy("images/webp_lossy.webp", "cut.webp");
  for (const char* name : {"cut.jpg", "cut.png", "cut.tif", "cut.webp"}) {
    const std::string whole = read(name);
    write(name, whole.substr(0, whole.size() / 3));
  }
  copy("images/tiff_rgb_deflate.tif", "last.tif");  // OpenCV would print a line of its own
  write("last.tif", read("last.tif").substr(0, read("last.tif").size() - 1));
  write("bomb.png", png_bomb());
  write("text.jpg", "not an image");
  write("empty.png", "");
  fs::create_directories(folder() / "folder.jpg");
  const std::vector<std::string> bad{"cut.jpg",    "cut.png",   "cut.tif",  "cut.webp",
                                     "last.tif",   "bomb.png",  "text.jpg", "empty.png",
                                     "folder.jpg", "absent.jpg"};
  std::string words = "predict run";
  for (const std::string& name : bad) words += " images/test/a/0.bmp " + name;
  const auto before = files();
  const Result result = run(words);
  EXPECT_EQ(result.status, 2) << result.err;
  EXPECT_EQ(result.err, "");
  expect_no_noise(result.out);
  std::istringstream lines(result.out);
  for (const std::string& name : bad) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line)) << name;
    EXPECT_EQ(Json::parse(line)["classes"].size(), 3U) << line;
    ASSERT_TRUE(std::getline(lines, line)) << name;
    const Json object = Json::parse(line);
    EXPECT_EQ(object["image"], name);
    ASSERT_TRUE(object.contains("error")) << line;
    const auto error = object["error"].get<std::string>();
    EXPECT_NE(error.find(name), std::string::npos) << error;
    expect_readable(error);
  }
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(lines), {}), "");
  expect_files(before);
}

TEST_F(DamagedInput, ResumeMendsALogThatIsDamaged) {
  train_run();
  fs::remove(folder() / "run/result.json");
  const std::string good = read("run/log.jsonl");
  write("run/log.jsonl", "{\"step\": \"two\"}\n[]\n\xff\xfe\n" + std::string(100000, '[') + "\n" +
                             good + "{\"step\": 1, \"ep");
  const Result result = run(kResume);
  EXPECT_EQ(result.status, 0) << result.err;
  expect_no_noise(result.err);
  EXPECT_EQ(read("run/log.jsonl"), good);
}

TEST_F(DamagedInput, ARunThatCouldNotStartStartsOnceTheInputIsMended) {
  const std::string good = read("recipe.json");
  write("images/train/a/x.jpg", "not an image");
  EXPECT_EQ(run(kTrain + " --set train.epochs=1").status, 2);
  fs::remove(folder() / "images/train/a/x.jpg");
  const Result result = run(kTrain + " --set train.epochs=1");
  EXPECT_EQ(result.status, 0) << result.err;
}

}  // namespace
}  // namespace convpass::hostile
