#include "convpass/train/hyper_rule.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "tests/core/temp_folder.h"
#include "train/tiny_run.h"

namespace convpass {
namespace {

constexpr int64_t kSmall = 96 * 96 - 1, kLarge = 96 * 96;

struct Row {
  int64_t area, images;
  int64_t resize, crop, warmup, steps;
  std::vector<double> falls;  // of the reference: the steps at which the rate has not fallen yet
  double mixup;
};

TEST(BitHyperRule, FollowsItsTableAtEveryThreshold) {
  const std::vector<Row> table{
      {1, 1, 160, 128, 100, 500, {200, 300, 400}, 0.0},
      {kSmall, 19'999, 160, 128, 100, 500, {200, 300, 400}, 0.0},
      {kSmall, 20'000, 160, 128, 500, 10'000, {3000, 6000, 9000}, 0.1},
      {kSmall, 499'999, 160, 128, 500, 10'000, {3000, 6000, 9000}, 0.1},
      {kSmall, 500'000, 160, 128, 500, 20'000, {6000, 12'000, 18'000}, 0.1},
      {kLarge, 19'999, 512, 480, 100, 500, {200, 300, 400}, 0.0},
      {kLarge, 20'000, 512, 480, 500, 10'000, {3000, 6000, 9000}, 0.1},
      {kLarge, 499'999, 512, 480, 500, 10'000, {3000, 6000, 9000}, 0.1},
      {kLarge, 500'000, 512, 480, 500, 20'000, {6000, 12'000, 18'000}, 0.1},
      {224 * 224, 1'281'167, 512, 480, 500, 20'000, {6000, 12'000, 18'000}, 0.1},
  };
  for (const Row& row : table) {
    for (bool light : {false, true}) {
      const BitRule rule = bit_hyper_rule(row.area, row.images, light);
      EXPECT_EQ(rule.resize, row.resize) << row.area;
      EXPECT_EQ(rule.crop, row.crop) << row.area;
      EXPECT_EQ(rule.warmup, row.warmup) << row.images;
      EXPECT_EQ(rule.steps, row.steps) << row.images;
      EXPECT_EQ(rule.mixup, row.mixup) << row.images;
      EXPECT_EQ(rule.batch, light ? 128 : 512);
      EXPECT_EQ(rule.lr, light ? 0.001 : 0.003);
      std::vector<double> falls = rule.milestones;
      for (double& fall : falls) fall -= 1;
      EXPECT_EQ(falls, row.falls) << row.images;
    }
  }
}

// get_lr of bit_hyperrule.py: lr t / warm-up, then a tenth for each milestone strictly below t.
TEST(BitHyperRule, SetsTheRateOfEveryStepAsTheReference) {
  for (int64_t images : {19'999, 20'000, 500'000}) {
    Recipe recipe;
    recipe.rule = RecipeRule::bit_hyperrule;
    apply_bit_hyper_rule(recipe, kSmall, images);
    const BitRule rule = bit_hyper_rule(kSmall, images, false);
    for (int64_t step = 0; step < rule.steps; ++step) {
      double wanted = 0.003;
      if (step < rule.warmup) {
        wanted *= static_cast<double>(step) / static_cast<double>(rule.warmup);
      } else {
        for (double milestone : rule.milestones)
          if (static_cast<int64_t>(milestone) - 1 < step) wanted /= 10;
      }
      ASSERT_NEAR(learning_rate(recipe.schedule, recipe.optimizer.lr, step, 7, rule.steps), wanted,
                  1e-12)
          << step;
    }
  }
}

TEST(BitHyperRule, FillsInWhatItGoverns) {
  Recipe recipe;
  recipe.rule = RecipeRule::bit_hyperrule;
  EXPECT_TRUE(apply_bit_hyper_rule(recipe, 32 * 32, 50'000).empty());
  EXPECT_EQ(recipe.rule, RecipeRule::none);
  EXPECT_TRUE(recipe.backbone.trainable);
  EXPECT_EQ(recipe.backbone.image_size, std::vector<int64_t>{128});
  EXPECT_EQ(recipe.head.init, HeadInit::zero);
  EXPECT_EQ(recipe.input.resize, ResizeMode::stretch);
  EXPECT_EQ(recipe.input.interpolation, Interpolation::bilinear);
  EXPECT_EQ(recipe.augment.crop, CropMode::random);
  EXPECT_EQ(recipe.augment.resize_to, std::vector<int64_t>{160});
  EXPECT_EQ(recipe.augment.flip, 0.5);
  EXPECT_EQ(recipe.augment.mix.mixup, 0.1);
  EXPECT_EQ(recipe.augment.mix.style, MixStyle::bit);
  EXPECT_EQ(recipe.optimizer.type, OptimizerType::sgd);
  EXPECT_EQ(recipe.optimizer.momentum, 0.9);
  EXPECT_EQ(recipe.optimizer.weight_decay, 0);
  EXPECT_EQ(recipe.train.steps, 10'000);
  EXPECT_EQ(recipe.train.batch_size, 512);
  EXPECT_EQ(recipe.train.accumulate, 1);
  EXPECT_FALSE(recipe.train.drop_last);
  EXPECT_EQ(recipe.train.small_set, SmallSet::with_replacement);
}

class RuleRecipes : public TinyRun {
 protected:
  Recipe ruled(std::vector<std::string> sets) const {
    sets.push_back("rule=bit_hyperrule");
    return tiny_recipe(sets);
  }
};

// The recipe of TinyRun gives optimizer.lr 0.01, epochs 3 and batch_size 8.
TEST_F(RuleRecipes, KeepWhatTheyGiveThemselves) {
  Recipe recipe = ruled({"schedule.milestones=[50]", "augment.flip=0", "backbone.image_size=16"});
  const std::vector<std::string> kept = apply_bit_hyper_rule(recipe, kSmall, 36);
  EXPECT_EQ(kept,
            (std::vector<std::string>{"/backbone/image_size", "/augment/flip", "/optimizer/lr",
                                      "/schedule/milestones", "/train/epochs"}));
  EXPECT_EQ(recipe.optimizer.lr, 0.01);
  EXPECT_EQ(recipe.train.steps, 0);
  EXPECT_EQ(recipe.train.epochs, 3);
  EXPECT_EQ(recipe.schedule.milestones, std::vector<double>{50});
  EXPECT_EQ(recipe.augment.flip, 0);
  EXPECT_EQ(recipe.train.batch_size, 8);
  EXPECT_EQ(recipe.train.accumulate, 64);
}

TEST_F(RuleRecipes, GiveBackToTheRuleWhatIsSetToNull) {
  Recipe recipe = ruled({"optimizer.lr=null", "train.epochs=null"});
  EXPECT_TRUE(apply_bit_hyper_rule(recipe, kSmall, 36).empty());
  EXPECT_EQ(recipe.optimizer.lr, 0.003);
  EXPECT_EQ(recipe.train.steps, 500);
}

TEST_F(RuleRecipes, MakeTheBatchOfMicroBatches) {
  auto batch = [&](const std::vector<std::string>& sets) {
    Recipe recipe = ruled(sets);
    apply_bit_hyper_rule(recipe, kSmall, 36);
    return std::pair(recipe.train.batch_size, recipe.train.accumulate);
  };
  EXPECT_EQ(batch({"train.batch_size=null", "train.accumulate=32"}), std::pair(16l, 32l));
  EXPECT_EQ(batch({"train.batch_size=128"}), std::pair(128l, 4l));
  EXPECT_EQ(batch({"train.batch_size=5", "train.accumulate=3"}), std::pair(5l, 3l));
  try {
    batch({"train.batch_size=100"});
    FAIL();
  } catch (const RecipeError& error) {
    EXPECT_NE(std::string(error.what())
                  .find("/train/batch_size: got 100, wanted a divisor of the "
                        "rule's batch of 512"),
              std::string::npos);
  }
}

TEST_F(RuleRecipes, TrainLikeTheResolvedRecipeThatTheyStore) {
  const std::vector<std::string> sets{
      "backbone.image_size=16", "augment.resize_to=20", "train.epochs=null", "train.steps=3",
      "schedule.warmup=1",      "train.accumulate=2",   "adapter.type=none"};
  const TrainOutcome first = train(ruled(sets), folder() / "ruled", false);
  ASSERT_TRUE(first.finished);
  const Recipe stored = load_recipe(folder() / "ruled/recipe.json");
  EXPECT_EQ(stored.rule, RecipeRule::none);
  EXPECT_EQ(stored.augment.crop, CropMode::random);
  EXPECT_EQ(stored.optimizer.type, OptimizerType::sgd);
  EXPECT_EQ(stored.train.batch_size, 8);
  ASSERT_TRUE(train(stored, folder() / "again", false).finished);
  const TensorMap a = load_tensors(folder() / "ruled/adapter.safetensors");
  const TensorMap b = load_tensors(folder() / "again/adapter.safetensors");
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
  // The recipe with the rule is the stored one's: it may resume that run.
  EXPECT_EQ(train(ruled(sets), folder() / "ruled", true).result_json, first.result_json);
}

TEST(ShippedBitRecipes, ResolveForEverySizeAndAreReadBack) {
  namespace fs = std::filesystem;
  const TempFolder folder;
  int count = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(CONVPASS_SOURCE) / "recipes/bit")) {
    for (const auto& [area, images] : {std::pair<int64_t, int64_t>{32 * 32, 50'000},
                                       {400 * 500, 1020},
                                       {400 * 500, 1'281'167}}) {
      Recipe recipe = load_recipe(entry.path());
      EXPECT_NE(recipe.rule, RecipeRule::none) << entry.path();
      apply_bit_hyper_rule(recipe, area, images);
      EXPECT_NO_THROW(validate(recipe, /*needs_data=*/false)) << entry.path();
      EXPECT_EQ(recipe.train.batch_size * recipe.train.accumulate,
                recipe.optimizer.lr == 0.003 ? 512 : 128)
          << entry.path();
      const fs::path written = folder / "written.json";
      std::ofstream(written) << recipe_json(recipe);
      EXPECT_EQ(recipe_hash(load_recipe(written)), recipe_hash(recipe)) << entry.path();
    }
    ++count;
  }
  EXPECT_GE(count, 9);
}

}  // namespace
}  // namespace convpass
