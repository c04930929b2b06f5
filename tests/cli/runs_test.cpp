#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "convpass/core/file.h"
#include "convpass/models/bit_checkpoint.h"
#include "convpass/models/bit_resnet.h"
#include "tests/cli/processes.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class CommandLineRuns : public Processes {
 protected:
  std::vector<std::string> training(const fs::path& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> words{"train", (folder() / "recipe.json").string(), "--out",
                                   out.string()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  fs::path recipe_without_test() const {
    Json json = Json::parse(std::ifstream(folder() / "recipe.json"));
    json["data"].erase("test");
    const fs::path file = folder() / "untested.json";
    std::ofstream(file) << json;
    return file;
  }

  /// A run of `killed` settings that is killed ten times at random moments ends in the bytes of an
  /// undisturbed one of `whole`.
  void outlives_ten_kills(const std::vector<std::string>& whole,
                          const std::vector<std::string>& killed) const {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begun = Clock::now();
    ASSERT_EQ(run(training(folder() / "whole", whole)).status, 0);
    const auto length = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begun);
    const auto wanted = read_file(folder() / "whole/adapter.safetensors");

    const fs::path out = folder() / "killed";
    std::vector<std::string> resuming = killed;
    resuming.push_back("--resume");
    Rng rng(static_cast<uint64_t>(Clock::now().time_since_epoch().count()));
    int kills = 0;
    for (int attempt = 0; attempt < 200 && kills < 10; ++attempt) {
      const pid_t child = start(training(out, resuming));
      // From before the run folder exists to the writing of the result, on any machine: a moment
      // within the time that the undisturbed run took.
      std::this_thread::sleep_for(
          std::chrono::microseconds(rng.below(static_cast<uint64_t>(length.count()))));
      ::kill(child, SIGKILL);
      kills += wait_for(child).status == 128 + SIGKILL;
      if (fs::exists(out / "result.json")) {  // it was faster: begin again
        EXPECT_EQ(read_file(out / "adapter.safetensors"), wanted);
        fs::remove_all(out);
      }
    }
    EXPECT_EQ(kills, 10);
    Result last = run(training(out, resuming));
    ASSERT_EQ(last.status, 0) << last.err;
    EXPECT_EQ(read_file(out / "adapter.safetensors"), wanted);
    for (const auto& entry : fs::directory_iterator(out))
      EXPECT_TRUE(fs::exists(folder() / "whole" / entry.path().filename())) << entry.path();
  }
};

TEST_F(CommandLineRuns, TrainEvalPredictInspectAndConvertGoTogether) {
  const fs::path out = folder() / "run", adapter = out / "adapter.safetensors";
  Result trained = run(training(out));
  ASSERT_EQ(trained.status, 0) << trained.err;
  const Json result = Json::parse(trained.out);
  EXPECT_EQ(std::count(trained.out.begin(), trained.out.end(), '\n'), 1);

  const Json evaluated = Json::parse(run({"eval", out.string()}).out);
  EXPECT_EQ(evaluated["top1"], result["last"]["top1"]);
  const Json elsewhere =
      Json::parse(run({"eval", adapter.string(), "--data", (folder() / "images/test").string(),
                       "--backbone", weights().string()})
                      .out);
  EXPECT_EQ(elsewhere["top1"], result["last"]["top1"]);
  Result untested = run({"eval", out.string(), "--recipe", recipe_without_test().string()});
  EXPECT_NE(untested.err.find("or --split val, or --data PATH"), std::string::npos) << untested.err;

  Result predicted = run({"predict", out.string(), (folder() / "images/test/a/0.bmp").string(),
                          (folder() / "absent.jpg").string(), "--top", "2"});
  EXPECT_EQ(predicted.status, 2);  // one of the two is not there
  std::istringstream lines(predicted.out);
  std::string first, second;
  std::getline(lines, first);
  std::getline(lines, second);
  EXPECT_EQ(Json::parse(first)["classes"].size(), 2u);
  EXPECT_TRUE(Json::parse(second).contains("error"));

  const Json inspected = Json::parse(run({"inspect", out.string()}).out);
  EXPECT_EQ(inspected["what"], "convpass adapter");
  ASSERT_EQ(run({"convert", adapter.string(), (folder() / "official.pt").string()}).status, 0);
  Result back =
      run({"convert", (folder() / "official.pt").string(), (folder() / "back.safetensors").string(),
           "--backbone", weights().string(), "--scale", "1"});
  ASSERT_EQ(back.status, 0) << back.err;
  const TensorMap before = load_tensors(adapter),
                  after = load_tensors(folder() / "back.safetensors");
  ASSERT_EQ(before.tensors.size(), after.tensors.size());
  for (const auto& [name, tensor] : before.tensors)
    EXPECT_TRUE(at::equal(tensor, after.at(name))) << name;
}

TEST_F(CommandLineRuns, CheckReportsAllAndEndsWithTwoWhereTheDataDoesNotFit) {
  const std::string recipe = (folder() / "recipe.json").string();
  EXPECT_EQ(run({"check", recipe}).status, 0);
  const fs::path other = folder() / "other";
  for (const char* name : {"a", "stranger"}) {
    fs::create_directories(other / name);
    fs::copy_file(folder() / "images/test/a/0.bmp", other / name / "0.bmp");
  }
  for (const auto& [set, text] :
       {std::pair{std::string("data.train.path=") + (folder() / "absent").string(), "absent"},
        {std::string("data.test.path=") + other.string(), "data.test: "}}) {
    const Result checked = run({"check", recipe, "--set", set});
    EXPECT_EQ(checked.status, 2) << set;
    EXPECT_TRUE(Json::accept(checked.out)) << checked.out;
    EXPECT_NE(checked.err.find("memory for training"), std::string::npos) << checked.err;
    EXPECT_NE(checked.err.rfind(text), std::string::npos) << checked.err;
  }
}

TEST_F(CommandLineRuns, CheckOpensTheTeachersAsARunWould) {
  for (const char* end : {".pt", ".json"})
    fs::copy_file(std::string(CONVPASS_TEST_DATA) + "/teacher/tiny" + end,
                  folder() / (std::string("teacher") + end));
  auto checked = [&](std::vector<std::string> sets) {
    std::vector<std::string> words{"check", (folder() / "recipe.json").string()};
    for (const std::string& set : sets) words.insert(words.end(), {"--set", set});
    return run(words);
  };
  auto teacher = [&](const std::string& file) {
    return R"(distill.teachers={"type": "torchscript", "file": ")" + (folder() / file).string() +
           "\"}";
  };
  const Result good = checked({teacher("teacher.pt")});
  EXPECT_EQ(good.status, 0) << good.err;
  EXPECT_NE(good.err.find("teachers: 1, their weights take"), std::string::npos) << good.err;
  std::ofstream(folder() / "s.store") << "nothing";
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{teacher("none.pt")}, "/distill/teachers/0/file: no such file"},
      {{teacher("weights/tiny.safetensors")}, "/distill/teachers/0: "},
      {{teacher("teacher.pt"), "data.train.path=" + (folder() / "images").string(), "data.val=null",
        "data.test=null"},
       "/distill/teachers/0: "},
      {{teacher("teacher.pt"), "distill.store.file=" + (folder() / "s.store").string()}, "s.store"},
      {{teacher("teacher.pt"), "distill.store.file=" + (folder() / "none/s").string()},
       "cannot be written"},
      {{"loss.label_weight=0"}, "/loss/label_weight: got 0 without distill.teachers"},
  };
  for (const auto& [sets, says] : cases) {
    const Result refused = checked(sets);
    EXPECT_EQ(refused.status, 2) << says;
    EXPECT_NE(refused.err.find(says), std::string::npos) << refused.err;
  }
}

TEST_F(CommandLineRuns, AnAdapterOnABackboneOfAnotherPatchNamesBothBackbones) {
  ASSERT_EQ(run(training(folder() / "run")).status, 0);
  VitConfig config;
  config.width = 32;
  config.depth = config.heads = 2;
  config.hidden = 64;
  config.patch = 3;
  config.grid_height = config.grid_width = 4;
  save_safetensors(folder() / "weights/other.safetensors", Vit::random_weights(config, 1));
  const Result refused = run({"predict", (folder() / "run").string(), "x.bmp", "--backbone",
                              (folder() / "weights/other.safetensors").string()});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("the adapter was trained on vit width 32 depth 2 heads 2 patch 4"),
            std::string::npos)
      << refused.err;
  EXPECT_NE(refused.err.find("got vit width 32 depth 2 heads 2 patch 3"), std::string::npos)
      << refused.err;
}

TEST_F(CommandLineRuns, WhatAFileCannotTellIsNotConvertedToIt) {
  const std::string deit =
      std::string(CONVPASS_TEST_DATA) + "/vit/timm_deit_distilled/model.safetensors";
  const Result trained =
      run(training(folder() / "run",
                   {"--set", "backbone.weights=" + deit, "--set", "head.type=distilled", "--set",
                    "train.epochs=1", "--set",
                    R"(distill.teachers={"type": "checkpoint", "weights": ")" + deit + R"("})"}));
  ASSERT_EQ(trained.status, 0) << trained.err;
  const fs::path out = folder() / "out.pt";
  const Result heads =
      run({"convert", (folder() / "run/adapter.safetensors").string(), out.string()});
  EXPECT_EQ(heads.status, 2);
  EXPECT_NE(heads.err.find("it holds DeiT's two heads"), std::string::npos) << heads.err;

  BitCheckpoint bit;
  bit.config.units = {2, 1};
  bit.config.root = 16;
  bit.config.widths = {32, 64};
  bit.config.groups = 8;
  bit.backbone = BitResnet::random_weights(bit.config, 1);
  const fs::path file = folder() / "bit.safetensors";
  save_safetensors(file, bit_checkpoint_as(bit, BitFormat::timm));
  const Result groups = run({"convert", file.string(), out.string(), "--to", "big-transfer"});
  EXPECT_EQ(groups.status, 2);
  EXPECT_NE(groups.err.find("nothing in a PyTorch file tells its 8 groups"), std::string::npos)
      << groups.err;
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(CommandLineRuns, NothingIsConvertedOverItself) {
  const auto before = read_file(weights());
  const Result refused = run({"convert", weights().string(), weights().string()});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("is the input"), std::string::npos) << refused.err;
  EXPECT_EQ(read_file(weights()), before);
}

TEST_F(CommandLineRuns, TenKillsAtRandomMomentsAndResumingEndInTheSameBytes) {
  const std::vector<std::string> settings{"--set", "train.epochs=12", "--set", "train.save_every=1",
                                          "--set", "select=best_val"};
  outlives_ten_kills(settings, settings);
}

TEST_F(CommandLineRuns, TenKillsOfFunMatchWithAveragesAndStoredPredictionsEndInTheSameBytes) {
  for (const char* end : {".pt", ".json"})
    fs::copy_file(std::string(CONVPASS_TEST_DATA) + "/teacher/tiny" + end,
                  folder() / (std::string("teacher") + end));
  std::vector<std::string> settings;
  for (const std::string& set :
       {R"(distill.teachers=[{"type": "torchscript", "file": ")" +
            (folder() / "teacher.pt").string() + "\"}]",
        std::string("distill.view=mix"), std::string("loss.label_weight=0"),
        std::string("train.epochs=16"), std::string("train.save_every=1"),
        std::string("train.ema_decay=0.9")})
    settings.insert(settings.end(), {"--set", set});
  // Each stores for itself: kills fall into the storing, too.
  auto storing = [&](const char* name) {
    std::vector<std::string> all = settings;
    all.insert(all.end(), {"--set", "distill.store.file=" + (folder() / name).string()});
    return all;
  };
  outlives_ten_kills(storing("whole.store"), storing("killed.store"));
  EXPECT_EQ(read_file(folder() / "whole.store"), read_file(folder() / "killed.store"));
}

TEST_F(CommandLineRuns, TenKillsOfConvpassOnASwinEndInTheSameBytes) {
  const std::vector<std::string> swin{
      "--set", "backbone.weights=" CONVPASS_TEST_DATA "/swin/shifted/microsoft.pth", "--set",
      "train.save_every=2"};
  outlives_ten_kills(swin, swin);
}

TEST_F(CommandLineRuns, TerminationSavesAndSaysHowToGoOn) {
  const fs::path out = folder() / "run";
  const std::vector<std::string> settings{"--set", "train.epochs=400"};
  const pid_t child = start(training(out, settings));
  while (!fs::exists(out / "log.jsonl")) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::kill(child, SIGTERM);
  const Result stopped = wait_for(child);
  EXPECT_EQ(stopped.status, 128 + SIGTERM) << stopped.err;
  EXPECT_NE(stopped.err.find("--resume"), std::string::npos) << stopped.err;
  EXPECT_TRUE(fs::exists(out / "checkpoint.pt"));
  EXPECT_FALSE(fs::exists(out / "adapter.safetensors"));

  ASSERT_EQ(run(training(folder() / "whole", settings)).status, 0);
  std::vector<std::string> resuming = settings;
  resuming.push_back("--resume");
  ASSERT_EQ(run(training(out, resuming)).status, 0);
  EXPECT_EQ(read_file(out / "adapter.safetensors"),
            read_file(folder() / "whole/adapter.safetensors"));
  // Each epoch stands once in the log although the run was cut.
  std::ifstream log(out / "log.jsonl");
  int64_t epoch = 0;
  for (std::string line; std::getline(log, line);) EXPECT_EQ(Json::parse(line)["epoch"], ++epoch);
  EXPECT_EQ(epoch, 400);
}

/// A CLIP whose classes are those of the images.
const fs::path kClip = fs::path(CONVPASS_TEST_DATA) / "clip";

TEST_F(CommandLineRuns, ClipIsEvaluatedBeforeTrainingAndOnSetsOfFewerClasses) {
  const fs::path recipe = folder() / "clip.json";
  std::ofstream(recipe) << Json{
      {"extends", "recipe.json"},
      {"backbone", {{"weights", (kClip / "model.safetensors").string()}}},
      {"head", {{"type", "cosine"}, {"text", (kClip / "text.safetensors").string()}}}};
  // One class alone: whatever the model says of it is right.
  for (const auto& [set, names] :
       {std::pair{"one", std::vector<std::string>{"b"}}, {"two", {"c", "a"}}, {"odd", {"a", "d"}}})
    for (const std::string& name : names) {
      fs::create_directories(folder() / set);
      const fs::path source = folder() / "images/test" / (name == "d" ? "b" : name);
      fs::copy(source, folder() / set / name);
    }
  auto on = [&](const std::string& set) { return "--on=" + set + "=" + (folder() / set).string(); };
  auto lines = [&](const Result& result) {
    EXPECT_EQ(result.status, 0) << result.err;
    std::istringstream text(result.out);
    std::vector<Json> all;
    for (std::string line; std::getline(text, line);) all.push_back(Json::parse(line));
    return all;
  };
  const Json texts = Json::parse(run({"inspect", (kClip / "text.safetensors").string()}).out);
  EXPECT_EQ(texts["what"], "class-text embeddings");
  const std::vector<Json> whole = lines(run({"eval", recipe.string()}));
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_EQ(whole[0]["images"], 12);
  EXPECT_FALSE(whole[0].contains("set"));

  const std::vector<Json> sets = lines(run({"eval", recipe.string(), on("one"), on("two")}));
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[0]["set"], "one");
  EXPECT_EQ(sets[0]["classes"], 1);
  EXPECT_EQ(sets[0]["top1"], 1.0);
  EXPECT_EQ(sets[0]["loss"], 0.0);
  EXPECT_EQ(sets[1]["classes"], 2);
  EXPECT_EQ(sets[1]["images"], 8);
  EXPECT_EQ(sets[1]["per_class"].size(), 2u);

  const fs::path out = folder() / "clip";
  ASSERT_EQ(
      run({"train", recipe.string(), "--set", "optimizer.lr=0.001", "--out", out.string()}).status,
      0);
  EXPECT_EQ(lines(run({"eval", out.string(), on("two")}))[0]["images"], 8);
  const std::string image = (folder() / "images/test/a/0.bmp").string();
  EXPECT_EQ(lines(run({"predict", out.string(), image}))[0]["classes"].size(), 3u);
  EXPECT_EQ(lines(run({"predict", recipe.string(), image}))[0]["classes"].size(), 3u);

  const std::pair<std::vector<std::string>, std::string> refusals[] = {
      {{"eval", out.string(), on("odd")},
       "odd: got the class \"d\", which is none of the model's 3"},
      {{"eval", out.string(), "--on", "here"}, "--on: got \"here\", wanted NAME=PATH"},
      {{"eval", out.string(), on("two"), "--split", "val"}, "wanted one of them"},
      {{"eval", out.string(), "--data", (folder() / "two").string()}, "are not the model's"},
      {{"eval", out.string(), "--set", "train.seed=1"}, "got --set with"},
      {{"eval", (folder() / "recipe.json").string()}, "/head/type: got a head that knows no"},
      {{"convert", (out / "adapter.safetensors").string(), (folder() / "o.pt").string()},
       "its head is of the type \"cosine\""},
  };
  for (const auto& [words, says] : refusals) {
    const Result refused = run(words);
    EXPECT_EQ(refused.status, 2) << words[0];
    EXPECT_EQ(std::count(refused.err.begin(), refused.err.end(), '\n'), 1) << refused.err;
    EXPECT_NE(refused.err.find(says), std::string::npos) << refused.err << "lacks " << says;
  }
}

}  // namespace
}  // namespace convpass
