#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/models/bit_checkpoint.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "convpass/train/throughput.h"
#include "convpass/train/trainer.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

/// Runs on a BiT ResNet of two stages; transfer as in BiT: a zero head, SGD with momentum.
class BitRuns : public TinyRun {
 protected:
  void SetUp() override {
    TinyRun::SetUp();
    std::filesystem::create_directories(folder() / "bit");
    BitCheckpoint checkpoint;
    checkpoint.config.units = {1, 1};
    checkpoint.config.root = 16;
    checkpoint.config.widths = {32, 64};
    checkpoint.config.groups = 8;
    checkpoint.config.standardization_eps = 1e-8;
    checkpoint.normalization = {{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}};
    checkpoint.backbone = BitResnet::random_weights(checkpoint.config, 3);
    save_safetensors(bit_weights(), bit_checkpoint_as(checkpoint, BitFormat::big_transfer));
  }
  std::filesystem::path bit_weights() const { return folder() / "bit/bit.safetensors"; }

  Recipe recipe(std::vector<std::string> sets = {}) const {
    sets.insert(sets.begin(), {"backbone.weights=" + bit_weights().string(), "backbone.drop_path=0",
                               "backbone.image_size=24", "adapter.type=none", "head.init=zero",
                               "optimizer.type=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.1"});
    return tiny_recipe(sets);
  }
  LoadedModel loaded(Precision precision = Precision::f32) const {
    return load_tuned_model(folder() / "run/adapter.safetensors", bit_weights(), DeviceChoice::cpu,
                            precision);
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

double loss_of(const std::string& line) {
  return nlohmann::json::parse(line)["train_loss"].get<double>();
}

TEST_F(BitRuns, TrainAHeadAloneAndTheAdapterFileGivesTheSameAccuracy) {
  const Recipe recipe = this->recipe({"train.epochs=20"});
  const TrainOutcome outcome = train(recipe, folder() / "run", false);
  ASSERT_TRUE(outcome.finished);
  const auto result = nlohmann::json::parse(outcome.result_json);
  EXPECT_EQ(result["trainable_parameters"], 64 * 3 + 3);
  EXPECT_GT(result["last"]["top1"].get<double>(), 0.6);  // a third by chance
  for (Precision precision : {Precision::f32, Precision::bf16}) {
    const LoadedModel model = loaded(precision);
    auto test = open_dataset(*recipe.data.test, {}, 0, "test");
    const Metrics metrics = evaluate(model.model, *test, ImagePipeline(model.input, {}), {});
    EXPECT_NEAR(metrics.top1, result["last"]["top1"].get<double>(),
                precision == Precision::f32 ? 0 : 0.1);
  }
  EXPECT_EQ(loaded().input.mean, (std::vector<double>{0.5, 0.5, 0.5}));
}

TEST_F(BitRuns, TrainEveryWeightAndTheFileHoldsThemAll) {
  const Recipe recipe = this->recipe({"backbone.trainable=true", "train.epochs=4"});
  ASSERT_TRUE(train(recipe, folder() / "run", false).finished);
  std::ifstream log(folder() / "run/log.jsonl");
  std::vector<double> losses;
  for (std::string line; std::getline(log, line);) losses.push_back(loss_of(line));
  EXPECT_LT(losses.back(), 0.9 * losses.front());
  const TensorMap before = load_bit_checkpoint(bit_weights()).backbone;
  const TensorMap after = load_adapter(folder() / "run/adapter.safetensors").weights;
  EXPECT_EQ(after.tensors.size(), before.tensors.size() + 2);
  for (const auto& [name, tensor] : before.tensors)
    EXPECT_FALSE(at::equal(tensor, after.at("backbone." + name))) << name;
  EXPECT_TRUE(at::equal(after.at("backbone.norm.weight"),
                        loaded().model.backbone->parameters().rbegin()[1].second));
}

TEST_F(BitRuns, MicroBatchesOf8And16And64GiveOneGradient) {
  std::ofstream list(folder() / "list.txt");
  for (int i = 0; i < 64; ++i)
    list << "images/train/" << static_cast<char>('a' + i % 3) << '/' << i % 12 << ".bmp " << i % 3
         << '\n';
  list.close();
  const TensorMap before = load_bit_checkpoint(bit_weights()).backbone;
  // One step of plain SGD with rate 1 moves each weight by its gradient.
  auto gradients = [&](int64_t batch) {
    const std::string name = "batch" + std::to_string(batch);
    const Recipe recipe = this->recipe(
        {"backbone.trainable=true", "head.init=xavier", "optimizer.lr=1", "optimizer.momentum=0",
         "optimizer.weight_decay=0", "schedule.type=constant", "schedule.warmup=0", "train.steps=1",
         R"(data.train={"format": "list", "root": ")" + folder().string() + R"(", "path": ")" +
             (folder() / "list.txt").string() + "\"}",
         "data.val=null", "data.test=null", "train.batch_size=" + std::to_string(batch),
         "train.accumulate=" + std::to_string(64 / batch)});
    EXPECT_TRUE(train(recipe, folder() / name, false).finished);
    TensorMap after = load_adapter(folder() / name / "adapter.safetensors").weights;
    std::map<std::string, at::Tensor> moved;
    for (const auto& [weight, tensor] : before.tensors)
      moved[weight] = tensor - after.at("backbone." + weight);
    return moved;
  };
  const auto whole = gradients(64);
  for (int64_t batch : {16, 8})
    for (const auto& [name, gradient] : gradients(batch)) {
      EXPECT_GT(gradient.abs().max().item<double>(), 1e-4) << name;
      EXPECT_TRUE(at::allclose(gradient, whole.at(name), 1e-5, 1e-5)) << batch << " " << name;
    }
}

TEST_F(BitRuns, RefuseWhatAResnetHasNot) {
  EXPECT_EQ(refusal(recipe()), "");
  EXPECT_NE(refusal(recipe({"adapter.type=convpass"}))
                .find("/adapter/type: got \"convpass\", wanted \"none\""),
            std::string::npos)
      << refusal(recipe({"adapter.type=convpass"}));
  EXPECT_NE(refusal(recipe({"backbone.pool=cls"})).find("/backbone/pool"), std::string::npos);
  EXPECT_NE(refusal(recipe({"backbone.drop_path=0.1"})).find("/backbone/drop_path"),
            std::string::npos);
  EXPECT_NE(refusal(recipe({"backbone.image_size=5000"})).find("/backbone/image_size"),
            std::string::npos);
}

TEST_F(BitRuns, ShowBothWhereTheFileIsAnotherNetworkThanTheVariant) {
  // Real widths, so that the file is an R50x1 but for the number of units.
  BitCheckpoint small;
  small.config = bit_variant("R50x1");
  small.backbone = BitResnet::random_weights(small.config, 1);
  save_safetensors(bit_weights(), bit_checkpoint_as(small, BitFormat::timm));
  EXPECT_EQ(refusal(recipe({"backbone.variant=R50x1"})), "");
  const std::string text = refusal(recipe({"backbone.variant=R101x1"}));
  EXPECT_NE(text.find("/backbone/variant: got resnetv2_50x1_bit (units 3-4-6-3"), std::string::npos)
      << text;
  EXPECT_NE(text.find("wanted resnetv2_101x1_bit (units 3-4-23-3"), std::string::npos) << text;
  EXPECT_NE(refusal(recipe({"backbone.variant=vit_base_patch16"})).find("wanted vit_base_patch16"),
            std::string::npos);
  EXPECT_NE(refusal(recipe({"backbone.variant=R34x1"})).find("/backbone/variant"),
            std::string::npos);
}

TEST_F(BitRuns, MeasureRandomWeightsOfAVariant) {
  const Recipe recipe = recipe_from_sets({"backbone.variant=R50x1", "backbone.image_size=32",
                                          "backbone.trainable=true", "adapter.type=none",
                                          "train.batch_size=2", "train.device=cpu"});
  const auto line = nlohmann::json::parse(measure_throughput(recipe, 1));
  EXPECT_EQ(line["backbone"], "resnetv2_50x1_bit");
  EXPECT_EQ(line["trainable_parameters"], 23500352 + 2048 * 100 + 100);
}

TEST_F(BitRuns, AdapterFilesFromBeforeThereWereKindsAreStillAViTs) {
  ASSERT_TRUE(train(tiny_recipe({"train.epochs=1"}), folder() / "run", false).finished);
  const auto file = folder() / "run/adapter.safetensors";
  auto load = [&] { return load_tuned_model(file, weights(), DeviceChoice::cpu, Precision::f32); };
  const std::string architecture = load().model.identity.architecture;
  AdapterFile adapter = load_adapter(file);
  auto json = nlohmann::ordered_json::parse(adapter.backbone.architecture);
  EXPECT_EQ(json["kind"], "vit");
  json.erase("kind");
  adapter.backbone.architecture = json.dump();
  save_adapter(file, adapter);
  EXPECT_EQ(load().model.identity.architecture, architecture);
  // Another kind on the same weights is a damaged file.
  adapter.backbone.architecture = R"({"kind": "bit"})";
  save_adapter(file, adapter);
  EXPECT_THROW(load(), FileError);
}

}  // namespace
}  // namespace convpass
