#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/models/tresnet_checkpoint.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

constexpr const char* kTiny = "tresnet width 4 layers 1-1-2-1";

/// Runs on a TResNet of five blocks, from scratch unless it is given weights.
class TResnetRuns : public TinyRun {
 protected:
  Recipe recipe(std::vector<std::string> sets = {}) const {
    sets.insert(sets.begin(),
                {"backbone.weights=", std::string("backbone.variant=") + kTiny,
                 "backbone.trainable=true", "backbone.image_size=24", "adapter.type=none",
                 "schedule.type=constant", "schedule.warmup=0", "train.batch_size=12"});
    return tiny_recipe(sets);
  }
  LoadedModel loaded(const std::filesystem::path& weights = {},
                     Precision precision = Precision::f32) const {
    return load_tuned_model(folder() / "run/adapter.safetensors", weights, DeviceChoice::cpu,
                            precision);
  }
  static double top1(const LoadedModel& model, const Recipe& recipe) {
    auto test = open_dataset(*recipe.data.test, {}, 0, "test");
    return evaluate(model.model, *test, ImagePipeline(model.input, {}), {}).top1;
  }
  static std::string refusal(const Recipe& recipe) {
    try {
      build_model(recipe, 3);
    } catch (const RecipeError& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(TResnetRuns, TrainFromScratchAndTheAdapterFileGivesTheSameAccuracy) {
  const Recipe recipe = this->recipe({"train.epochs=12"});
  const TrainOutcome outcome = train(recipe, folder() / "run", false);
  ASSERT_TRUE(outcome.finished);
  const auto result = nlohmann::json::parse(outcome.result_json);
  EXPECT_GT(result["last"]["top1"].get<double>(), 0.6);  // a third by chance
  const LoadedModel model = loaded();
  EXPECT_EQ(top1(model, recipe), result["last"]["top1"].get<double>());
  const TensorMap file = load_adapter(folder() / "run/adapter.safetensors").weights;
  int statistics = 0;
  for (const auto& [name, tensor] : file.tensors) {
    const bool variance = name.ends_with(".running_var");
    if (!variance && !name.ends_with(".running_mean")) continue;
    EXPECT_FALSE((tensor == (variance ? 1 : 0)).all().item<bool>()) << name;
    ++statistics;
  }
  EXPECT_GT(statistics, 0);
  // What trained whole is frozen once it is loaded, its statistics folded away.
  EXPECT_TRUE(model.model.backbone->buffers().empty());
  EXPECT_NEAR(top1(loaded({}, Precision::bf16), recipe), top1(model, recipe), 0.1);
}

TEST_F(TResnetRuns, SixStepsEqualThreeThenResumeThenThree) {
  const Recipe recipe = this->recipe(
      {"backbone.drop_path=0.2", "train.steps=6", "train.save_every=3", "train.ema_decay=0.9"});
  const auto whole = folder() / "whole", cut = folder() / "cut";
  train(recipe, whole, false);
  leave_killed_run(recipe, cut, 3);
  ASSERT_TRUE(train(recipe, cut, true).finished);
  EXPECT_EQ(read_file(whole / "adapter.safetensors"), read_file(cut / "adapter.safetensors"));
}

TEST_F(TResnetRuns, TrainAHeadOnACheckpointWhoseStatisticsStay) {
  TResnetCheckpoint checkpoint;
  checkpoint.config = tresnet_variant(kTiny);
  checkpoint.normalization = {{0, 0, 0}, {1, 1, 1}};
  checkpoint.backbone = TResnet::random_weights(checkpoint.config, 3);
  for (auto& [name, tensor] : checkpoint.backbone.tensors)
    if (name.ends_with("bn.weight")) tensor.fill_(1);
  std::filesystem::create_directories(folder() / "tresnet");
  const auto weights = folder() / "tresnet/tresnet.safetensors";
  save_safetensors(weights, tresnet_checkpoint_as_timm(checkpoint));
  const Recipe recipe =
      this->recipe({"backbone.weights=" + weights.string(), "backbone.trainable=false",
                    "backbone.drop_path=0.2", "train.epochs=10"});
  const TrainOutcome outcome = train(recipe, folder() / "run", false);
  const auto result = nlohmann::json::parse(outcome.result_json);
  EXPECT_EQ(result["trainable_parameters"], 128 * 3 + 3);
  EXPECT_EQ(load_adapter(folder() / "run/adapter.safetensors").weights.tensors.size(), 2U);
  const double last = result["last"]["top1"].get<double>();
  EXPECT_EQ(top1(loaded(weights), recipe), last);
  EXPECT_NEAR(top1(loaded(weights, Precision::bf16), recipe), last, 0.1);
  EXPECT_EQ(loaded(weights).input.mean, (std::vector<double>{0, 0, 0}));
  EXPECT_EQ(loaded(weights).input.std, (std::vector<double>{1, 1, 1}));
}

TEST_F(TResnetRuns, RefuseWhatATResnetHasNot) {
  auto refuses = [&](const std::string& set, const std::string& why) {
    const std::string text = refusal(recipe({set}));
    EXPECT_NE(text.find(why), std::string::npos) << set << ": " << text;
  };
  EXPECT_EQ(refusal(recipe()), "");
  EXPECT_EQ(refusal(recipe({"backbone.pool=mean"})), "");
  refuses("adapter.type=convpass", "/adapter/type: got \"convpass\", wanted \"none\"");
  refuses("backbone.pool=cls", "/backbone/pool");
  refuses("backbone.blocks=2", "/backbone/blocks");
  refuses("backbone.image_size=26", "/backbone/image_size: got 26, wanted a multiple of 4");
  refuses("backbone.image_size=16", "at least 20");
  refuses("backbone.variant=tresnet_xxl", "did you mean \"tresnet_xl\"?");
}

TEST_F(TResnetRuns, SayWhereABatchHasNoVariance) {
  // Of an image of 24x24 the last stage leaves one pixel.
  const Recipe recipe = this->recipe({"train.batch_size=1", "train.epochs=1"});
  EXPECT_THROW(train(recipe, folder() / "run", false), Error);
}

}  // namespace
}  // namespace convpass
