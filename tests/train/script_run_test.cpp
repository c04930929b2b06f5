#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/models/script_backbone.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "train/script_files.h"
#include "train/tiny_run.h"

namespace convpass {
namespace {

const std::filesystem::path kUsi = std::filesystem::path(CONVPASS_TEST_DATA) / "usi";

class ScriptRun : public TinyRun {
 protected:
  /// A run of a TorchScript network of tests/reference/usi_step.py, trained whole: the whole
  /// scheme.
  Recipe script_recipe(const std::string& file, std::vector<std::string> sets = {}) const {
    std::vector<std::string> all{"backbone.weights=" + (kUsi / file).string(),
                                 "backbone.variant=torchscript",
                                 "backbone.image_size=16",
                                 "backbone.drop_path=0",
                                 "backbone.trainable=true",
                                 "adapter.type=none",
                                 "augment.crop=random_resized",
                                 "augment.flip=0.5",
                                 "augment.mixup=0.8",
                                 "augment.cutmix=1",
                                 "augment.repeated=3",
                                 "optimizer.decay_norm_and_bias=false",
                                 "train.ema_decay=0.9"};
    all.insert(all.end(), sets.begin(), sets.end());
    return tiny_recipe(all);
  }
  static std::string message_of(const Recipe& recipe) {
    try {
      build_model(recipe, 3);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

void expect_same_files(const std::filesystem::path& a, const std::filesystem::path& b) {
  const TensorMap left = load_tensors(a / "adapter.safetensors"),
                  right = load_tensors(b / "adapter.safetensors");
  ASSERT_EQ(left.tensors.size(), right.tensors.size());
  for (const auto& [name, tensor] : left.tensors)
    EXPECT_TRUE(at::equal(tensor, right.at(name))) << name;
}

TEST_F(ScriptRun, TrainsWholeAndTheAdapterFileGivesTheSameResult) {
  const TrainOutcome outcome = train(script_recipe("student.pt"), folder() / "run", false);
  const auto result = nlohmann::json::parse(outcome.result_json);
  LoadedModel loaded = load_tuned_model(folder() / "run/adapter.safetensors", kUsi / "student.pt",
                                        DeviceChoice::cpu, Precision::f32);
  const Recipe recipe = script_recipe("student.pt");
  const auto test = open_dataset(*recipe.data.test, {}, 3, "test");
  const Metrics metrics = evaluate(loaded.model, *test,
                                   ImagePipeline(loaded.input, AugmentConfig{}), {.batch_size = 8});
  EXPECT_EQ(metrics.top1, result["last"]["top1"].get<double>());
  const TensorMap file = load_tensors(folder() / "run/adapter.safetensors");
  EXPECT_NE(file.at("backbone.1.running_mean").abs().sum().item<double>(), 0);
  EXPECT_GT(file.at("backbone.1.num_batches_tracked").item<int64_t>(), 0);
  EXPECT_THROW(load_tuned_model(folder() / "run/adapter.safetensors", kUsi / "classifier.pt",
                                DeviceChoice::cpu, Precision::f32),
               Error);
}

TEST_F(ScriptRun, KilledInTheMiddleOfAnEpochEndsInTheSameBytes) {
  // 36 images, batches of 8: steps 2 and 3 are within epochs; dropout draws too.
  for (const char* file : {"student.pt", "classifier.pt"}) {
    std::vector<std::string> sets{"train.save_every=3", "train.epochs=3"};
    if (std::string(file) == "classifier.pt") sets.push_back("head.type=none");
    const Recipe recipe = script_recipe(file, sets);
    const auto whole = folder() / (std::string(file) + "_whole"),
               killed = folder() / (std::string(file) + "_killed");
    train(recipe, whole, false);
    leave_killed_run(recipe, killed, 3);
    train(recipe, killed, true);
    expect_same_files(whole, killed);
  }
}

TEST_F(ScriptRun, AClassifierNeedsNoHead) {
  const Recipe recipe = script_recipe("classifier.pt", {"head.type=none"});
  train(recipe, folder() / "run", false);
  const TensorMap file = load_tensors(folder() / "run/adapter.safetensors");
  EXPECT_FALSE(file.has("head.weight"));
  EXPECT_TRUE(file.has("backbone.9.weight"));
  LoadedModel loaded = load_tuned_model(folder() / "run/adapter.safetensors",
                                        kUsi / "classifier.pt", DeviceChoice::cpu, Precision::f32);
  EXPECT_EQ(loaded.model.classes(), 3);
  EXPECT_EQ(loaded.model.logits(at::zeros({2, 3, 16, 16}), Pass{}).sizes(),
            (at::IntArrayRef{2, 3}));
}

TEST_F(ScriptRun, AFrozenOneTrainsItsHeadAlone) {
  const Recipe recipe =
      script_recipe("traced.pt", {"backbone.trainable=false", "train.ema_decay=0"});
  train(recipe, folder() / "run", false);
  EXPECT_EQ(load_tensors(folder() / "run/adapter.safetensors").tensors.size(), 2u);
}

TEST_F(ScriptRun, AForwardThatIsNoNetworkToTrainIsRefused) {
  const std::filesystem::path file = folder() / "x.pt";
  auto message = [&](const std::string& expression, c10::ScalarType type = at::kFloat) {
    write_script(file, expression, type);
    return message_of(script_recipe("student.pt", {"backbone.weights=" + file.string()}));
  };
  const std::string features = "x.mean([2, 3]) @ self.weight";
  EXPECT_EQ(message(features), "");
  for (const auto& [expression, says] :
       {std::pair<std::string, const char*>{"(" + features + ").detach()", "passes no gradient"},
        {"(" + features + ").long()", "got a tensor of Long [2, 3], wanted floating point"},
        {"(x - x.mean(0)).mean([2, 3]) @ self.weight", "got another answer for an image beside"},
        {"x.mean([2, 3]) @ self.weight[0:2]", "RuntimeError: "}}) {
    const std::string got = message(expression);
    EXPECT_NE(got.find(says), std::string::npos) << got;
    EXPECT_EQ(got.find('\n'), std::string::npos) << got;
  }
  EXPECT_EQ(message(features, at::kHalf), "");  // taken to float32
  EXPECT_EQ(message(features, at::kDouble), "");
}

TEST_F(ScriptRun, WhatCannotTrainIsRefused) {
  EXPECT_NE(message_of(script_recipe("constant.pt")).find("got a module without parameters"),
            std::string::npos);
  EXPECT_NE(message_of(script_recipe("traced.pt")).find("traced in evaluation mode"),
            std::string::npos);
  EXPECT_NE(message_of(script_recipe("student.pt", {"head.type=none"}))
                .find("/head/type: got \"none\" with a backbone that puts out 6 values"),
            std::string::npos);
  EXPECT_NE(
      message_of(script_recipe("classifier.pt", {"head.type=none", "backbone.trainable=false"}))
          .find("nothing would train"),
      std::string::npos);
  EXPECT_NE(message_of(script_recipe("steps.safetensors"))
                .find("is no TorchScript file: got a safetensors file"),
            std::string::npos);
  EXPECT_NE(message_of(script_recipe("student.pt", {"backbone.pool=mean"})).find("/backbone/pool"),
            std::string::npos);
  EXPECT_NE(message_of(script_recipe("student.pt", {"backbone.blocks=2"})).find("/backbone/blocks"),
            std::string::npos);
  EXPECT_NE(message_of(script_recipe("student.pt", {"adapter.type=convpass"}))
                .find("no blocks of tokens"),
            std::string::npos);
}

}  // namespace
}  // namespace convpass
