#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "convpass/data/pipeline.h"
#include "convpass/train/build.h"
#include "convpass/train/suite.h"
#include "src/train/memory.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

fs::path recipes() { return fs::path(CONVPASS_SOURCE) / "recipes"; }

struct Method {
  const char* suite;
  std::vector<std::string> sites;
  std::vector<double> group_means;  ///< of the paper's table 1
  double overall;
};

class VtabMethods : public testing::TestWithParam<Method> {};

TEST_P(VtabMethods, AreNineteenTasksBelowOneRoot) {
  const fs::path file = recipes() / "vtab1k" / GetParam().suite;
  const Suite suite = load_suite(file, {"data.root=/vtab"});
  ASSERT_EQ(suite.recipes.size(), 19u);
  std::map<std::string, std::vector<double>> published;
  for (size_t i = 0; i < suite.recipes.size(); ++i) {
    const SuiteRun& run = suite.config.runs[i];
    const Recipe& recipe = suite.recipes[i];
    published[run.group].push_back(run.published);
    EXPECT_EQ(run.recipe.stem(), run.name);
    const auto& train = std::get<ListSource>(recipe.data.train->source);
    const auto& test = std::get<ListSource>(recipe.data.test->source);
    EXPECT_EQ(train.path, fs::path("/vtab") / run.name / "train800val200.txt");
    EXPECT_EQ(test.path, fs::path("/vtab") / run.name / "test.txt");
    EXPECT_FALSE(recipe.data.val);
    EXPECT_GT(recipe.data.classes, 1);
    const auto& adapter = std::get<ConvpassConfig>(recipe.adapter);
    EXPECT_EQ(adapter.sites, GetParam().sites) << run.name;
    EXPECT_TRUE(std::ranges::count(std::vector{0.01, 0.1, 1.0, 10.0, 100.0}, adapter.scale))
        << run.name;
    char figure[32];
    std::snprintf(figure, sizeof figure, "published %.2f %%", 100 * run.published);
    EXPECT_TRUE(recipe.about.expected.starts_with(figure)) << recipe.about.expected;
    EXPECT_NE(recipe.about.expected.find("best of ten evaluations on the test split"),
              std::string::npos);
    EXPECT_NE(recipe.about.command.find(run.name + ".json"), std::string::npos);
    EXPECT_FALSE(recipe.about.source.empty());
  }
  double overall = 0;
  const char* groups[] = {"Natural", "Specialized", "Structured"};
  for (size_t g = 0; g < 3; ++g) {
    double mean = 0;
    for (double figure : published.at(groups[g])) mean += 100 * figure;
    mean /= static_cast<double>(published.at(groups[g]).size());
    EXPECT_NEAR(mean, GetParam().group_means[g], 0.00501) << groups[g];
    overall += mean / 3;
  }
  EXPECT_NEAR(overall, GetParam().overall, 0.00501);
}

INSTANTIATE_TEST_SUITE_P(
    Paper, VtabMethods,
    testing::Values(Method{"convpass.suite.json", {"attn", "mlp"}, {81.69, 85.31, 62.68}, 76.56},
                    Method{"convpass_attn.suite.json", {"attn"}, {81.24, 84.73, 61.53}, 75.83}),
    [](const auto& info) { return std::string(info.index == 0 ? "Convpass" : "ConvpassAttn"); });

TEST(ShippedSuites, AreRead) {
  int64_t read = 0;
  for (const auto& entry : fs::recursive_directory_iterator(recipes())) {
    if (!entry.path().string().ends_with(".suite.json")) continue;
    EXPECT_NO_THROW(load_suite(entry.path())) << entry.path();
    EXPECT_TRUE(is_suite(entry.path()));
    ++read;
  }
  EXPECT_GE(read, 2);
}

class ShippedRuns : public TinyRun {};

TEST_F(ShippedRuns, EveryRecipeBuildsOnATinyBackbone) {
  int64_t built = 0;
  for (const auto& entry : fs::recursive_directory_iterator(recipes())) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".json") || name.ends_with(".suite.json") || name.ends_with("schema.json"))
      continue;
    Recipe recipe = load_recipe(entry.path());
    // Its own networks are too large for a test, or not here; everything else is the recipe's.
    recipe.backbone.weights = weights();
    recipe.backbone.variant = "auto";
    recipe.backbone.image_size = {16};
    recipe.train.device = DeviceChoice::cpu;
    recipe.distill.teachers.clear();
    auto* convpass = std::get_if<ConvpassConfig>(&recipe.adapter);
    if (convpass && !convpass->blocks.empty()) convpass->blocks = {1};
    if (recipe.head.type != HeadType::distilled) recipe.head.type = HeadType::linear;
    const int64_t classes = std::max<int64_t>(2, recipe.data.classes);
    const TunedModel model = build_for_training(recipe, classes);
    recipe.input.size = {};
    const InputConfig input = resolve_input(recipe.input, model);
    const ImagePipeline training(input, recipe.augment), evaluation(input, AugmentConfig{});
    const at::Tensor logits = model.logits(at::zeros({2, 3, 16, 16}), Pass{});
    EXPECT_EQ(logits.sizes(), (std::vector<int64_t>{2, classes})) << entry.path();
    EXPECT_GT(model.trainable_parameters(), 0) << entry.path();
    ++built;
  }
  EXPECT_GE(built, 85);
}

}  // namespace
}  // namespace convpass
