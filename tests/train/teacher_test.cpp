#include "convpass/train/teacher.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/core/tensor_map.h"
#include "convpass/train/build.h"
#include "convpass/train/trainer.h"
#include "tests/core/temp_folder.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

fs::path tiny(const std::string& end) {
  return fs::path(CONVPASS_TEST_DATA) / ("teacher/tiny" + end);
}

class ScriptedTeacher : public ::testing::Test {
 protected:
  ScriptedTeacher() {
    for (const char* end : {".pt", ".json"})
      fs::copy_file(tiny(end), folder_ / fs::path("t").concat(end));
  }
  std::unique_ptr<Teacher> load() const {
    return load_teacher({.source = TorchScriptTeacher{folder_ / "t.pt"}}, DeviceChoice::cpu);
  }
  std::string refusal() const {
    try {
      load();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  TempFolder folder_;
};

TEST_F(ScriptedTeacher, AnswersAsInEvaluationMode) {
  const auto teacher = load();
  const TensorMap map = load_tensors(tiny(".safetensors"));
  const TeacherOutput output = teacher->ask(map.at("images"), false);
  EXPECT_TRUE(at::allclose(output.logits, map.at("logits"), 1e-5, 1e-6));
  EXPECT_FALSE(output.logits.requires_grad());
  EXPECT_EQ(teacher->classes(), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(teacher->input().mean, (std::vector<double>{0.5, 0.4, 0.3}));
}

TEST_F(ScriptedTeacher, IsRefusedInOneLineThatSaysWhy) {
  const auto script = read_file(tiny(".pt"));
  auto write = [&](const char* name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  };
  const std::pair<const char*, const char*> notes[] = {
      {R"({"classes": ["a", "b"], "input": {"size": 8, "mean": 0, "std": 1}})", "mean"},
      {R"({"classes": ["a", "b"], "input": {"size": 8, "mean": [0,0,0], "std": [1,1,1]}})",
       "got 3 logits, wanted 2"},
      {R"({"classes": [], "input": {"size": 8, "mean": [0,0,0], "std": [1,1,1]}})", "/classes"},
      {R"({"classes": ["a", "b", "c"], "input": {"mean": [0,0,0], "std": [1,1,1]}})",
       "/input/size"},
      {"nothing", "t.json"},
  };
  for (const auto& [text, says] : notes) {
    write("t.json", text);
    const std::string got = refusal();
    EXPECT_NE(got.find(says), std::string::npos) << got;
    EXPECT_EQ(got.find('\n'), std::string::npos) << got;
  }
  fs::copy_file(tiny(".json"), folder_ / "t.json", fs::copy_options::overwrite_existing);
  EXPECT_EQ(refusal(), "no error");
  write("t.pt", std::string(script.begin(), script.begin() + static_cast<long>(script.size() / 2)));
  EXPECT_NE(refusal().find("no TorchScript file"), std::string::npos) << refusal();
  write("t.pt", "text");
  EXPECT_NE(refusal().find("no TorchScript file"), std::string::npos) << refusal();
  fs::copy_file(tiny(".safetensors"), folder_ / "t.pt", fs::copy_options::overwrite_existing);
  EXPECT_NE(refusal().find("no TorchScript file"), std::string::npos) << refusal();
  EXPECT_EQ(refusal().find('\n'), std::string::npos) << refusal();
  fs::remove(folder_ / "t.json");  // what the file is comes first
  EXPECT_NE(refusal().find("got a safetensors file"), std::string::npos) << refusal();
  fs::copy_file(tiny(".pt"), folder_ / "t.pt", fs::copy_options::overwrite_existing);
  EXPECT_NE(refusal().find("t.json beside it"), std::string::npos) << refusal();
}

TEST(Renormalized, IsExactForAnyPair) {
  InputConfig from, to;
  from.mean = {0.5, 0.5, 0.5}, from.std = {0.5, 0.5, 0.5};
  to.mean = {0.485, 0.456, 0.406}, to.std = {0.229, 0.224, 0.225};
  at::manual_seed(0);
  const at::Tensor pixels = at::rand({2, 3, 4, 5});
  auto normalized = [&](const InputConfig& config) {
    return (pixels - at::tensor(config.mean, at::kFloat).view({1, 3, 1, 1})) /
           at::tensor(config.std, at::kFloat).view({1, 3, 1, 1});
  };
  EXPECT_TRUE(at::allclose(renormalized(normalized(from), from, to), normalized(to), 1e-5, 1e-5));
}

class TunedTeacherRun : public TinyRun {};

TEST_F(TunedTeacherRun, TakesItsBackboneFromItsRunWhereItIsNotGiven) {
  train(tiny_recipe({"train.epochs=1"}), folder() / "run", false);
  auto load = [](const fs::path& adapter) {
    return load_teacher({.source = AdapterTeacher{.adapter = adapter, .backbone = {}}},
                        DeviceChoice::cpu);
  };
  EXPECT_EQ(load(folder() / "run")->classes().size(), 3u);
  const fs::path alone = folder() / "alone.safetensors";
  fs::copy_file(folder() / "run/adapter.safetensors", alone);
  fs::remove(folder() / "recipe.json");
  CheckpointTeacher checkpoint;
  checkpoint.weights = alone;
  for (const auto& [source, says] :
       {std::pair<TeacherConfig, const char*>{
            {.source = AdapterTeacher{.adapter = alone, .backbone = {}}},
            "alone.safetensors: backbone: missing, wanted the checkpoint that the adapter was"},
        {{.source = checkpoint}, "wanted the type \"adapter\""}}) {
    try {
      load_teacher(source, DeviceChoice::cpu);
      ADD_FAILURE() << says;
    } catch (const FileError& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    }
  }
}

TEST_F(TunedTeacherRun, AnswersAsTheModelItWasMadeOf) {
  const Recipe recipe = tiny_recipe();
  train(recipe, folder() / "run", false);
  const TeacherConfig config{
      .source = AdapterTeacher{.adapter = folder() / "run", .backbone = recipe.backbone.weights}};
  const auto teacher = load_teacher(config, DeviceChoice::cpu);
  LoadedModel loaded = load_tuned_model(folder() / "run/adapter.safetensors",
                                        recipe.backbone.weights, DeviceChoice::cpu, Precision::f32);
  const auto [height, width] = teacher->input().size;
  const at::Tensor images = at::randn({2, 3, height, width});
  const TeacherOutput output = teacher->ask(images, true);
  EXPECT_TRUE(at::equal(output.logits, loaded.model.logits(images, Pass{}).detach()));
  EXPECT_EQ(output.features.size(1), teacher->feature_dim());
  EXPECT_FALSE(output.logits.requires_grad());
  EXPECT_EQ(teacher->classes(), loaded.classes);
  // Another training, another identity.
  train(tiny_recipe({"train.seed=3"}), folder() / "other", false);
  const TeacherConfig other{
      .source = AdapterTeacher{.adapter = folder() / "other", .backbone = recipe.backbone.weights}};
  EXPECT_NE(load_teacher(other, DeviceChoice::cpu)->identity(), teacher->identity());
}

}  // namespace
}  // namespace convpass
