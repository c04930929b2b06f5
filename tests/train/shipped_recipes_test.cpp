// The recipes that the project ships.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "convpass/train/recipe.h"
#include "tests/core/temp_folder.h"
#include "tests/core/tensor_files.h"
#include "tests/train/official_rates.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

fs::path recipes() { return fs::path(CONVPASS_SOURCE) / "recipes"; }

std::vector<fs::path> shipped_recipes() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(recipes())) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".json") && !name.ends_with("schema.json") && !name.ends_with(".suite.json"))
      files.push_back(entry.path());
  }
  return files;
}

TEST(ShippedRecipes, ParseResolveAndAreValid) {
  EXPECT_GE(shipped_recipes().size(), 16u);
  for (const fs::path& file : shipped_recipes()) {
    EXPECT_NO_THROW(validate(load_recipe(file), /*needs_data=*/false)) << file;
  }
}

TEST(ShippedRecipes, AreReadBackFromTheirResolvedText) {
  const TempFolder folder;
  for (const fs::path& file : shipped_recipes()) {
    Recipe recipe = load_recipe(file);
    const fs::path written = folder / "resolved.json";
    std::ofstream(written) << recipe_json(recipe);
    EXPECT_EQ(recipe_json(load_recipe(written)), recipe_json(recipe)) << file;
    EXPECT_EQ(recipe_hash(load_recipe(written)), recipe_hash(recipe)) << file;
  }
}

TEST(ShippedRecipes, SchemaIsCurrent) {
  EXPECT_TRUE(read_text(recipes() / "schema.json") == recipe_schema())
      << "write it anew: convpass help schema > recipes/schema.json";
}

TEST(ShippedRecipes, VtabIsTheOfficialProtocol) {
  Recipe recipe = load_recipe(recipes() / "vtab1k/base.json");
  EXPECT_EQ(recipe.train.epochs, 100);
  EXPECT_EQ(recipe.train.batch_size, 64);
  EXPECT_EQ(recipe.train.seed, 42);
  const std::vector<double> official = official_rates();
  ASSERT_EQ(official.size(), 100u);
  constexpr int64_t kStepsPerEpoch = 15;
  for (int64_t step = 0; step < 1500; ++step) {  // equal to the last digit
    EXPECT_EQ(learning_rate(recipe.schedule, recipe.optimizer.lr, step, kStepsPerEpoch, 1500),
              official[static_cast<size_t>(step / kStepsPerEpoch)])
        << "step " << step;
  }
}

TEST(ShippedRecipes, FewShotIsThePapersProtocol) {
  for (const auto& [name, classes, folder, images] :
       {std::tuple{"aircraft", 100, "fgvc_aircraft", "images"},
        {"pets", 37, "oxford_pets", "images"},
        {"food101", 101, "food-101", "images"},
        {"cars", 196, "stanford_cars", ""},
        {"flowers102", 102, "oxford_flowers", "images"}}) {
    const Recipe recipe = load_recipe(recipes() / "few_shot" / (std::string(name) + ".json"),
                                      {"data.train.seed=2", "data.root=/few"});
    const auto& list = std::get<ListSource>(recipe.data.train->source);
    EXPECT_EQ(list.path,
              fs::path("/few") / folder / "annotations/train_meta.list.num_shot_16.seed_0");
    EXPECT_EQ((list.root / "x").lexically_normal(),
              (fs::path("/few") / folder / images / "x").lexically_normal());
    EXPECT_EQ(recipe.data.classes, classes);
    EXPECT_EQ(recipe.data.train->per_class, 16);
    EXPECT_EQ(recipe.data.train->seed, 2);
    EXPECT_FALSE(recipe.data.val);
    EXPECT_EQ(recipe.optimizer.lr, 5e-3);
    EXPECT_EQ(recipe.optimizer.weight_decay, 1e-4);
    EXPECT_EQ(recipe.train.epochs, 100);
    EXPECT_EQ(recipe.train.batch_size, 64);
    EXPECT_EQ(recipe.schedule.warmup, 10);
    EXPECT_EQ(recipe.input.resize, ResizeMode::stretch);
    EXPECT_EQ(recipe.input.resize_to, (std::vector<int64_t>{256, 256}));
    EXPECT_EQ(recipe.input.mean[0], 0.485);
    EXPECT_EQ(recipe.augment.rand_augment, "rand-m9-mstd0.5-inc1");
    EXPECT_FALSE(recipe.augment.mix.on());
    EXPECT_EQ(recipe.loss.label_smoothing, 0);
  }
}

TEST(ShippedRecipes, FunMatchTeachersSeeWhatTheStudentSees) {
  for (const fs::path& file : shipped_recipes()) {
    if (file.parent_path().filename() != "funmatch") continue;
    const Recipe recipe = load_recipe(file);
    for (const TeacherConfig& config : recipe.distill.teachers) {
      const auto& teacher = std::get<CheckpointTeacher>(config.source);
      EXPECT_EQ(teacher.image_size, recipe.backbone.image_size) << file;
      EXPECT_EQ(teacher.input.resize, recipe.input.resize) << file;
      EXPECT_EQ(teacher.input.resize_to, recipe.input.resize_to) << file;
      EXPECT_EQ(teacher.input.interpolation, recipe.input.interpolation) << file;
    }
  }
}

TEST(ShippedRecipes, ThePresetHoldsOutWhatItsSearchChoosesBy) {
  const Recipe recipe = load_recipe(recipes() / "finetune.json");
  EXPECT_TRUE(std::holds_alternative<HeldOutSource>(recipe.data.val->source));
  EXPECT_TRUE(recipe.input.mean.empty());  // the backbone's own
  EXPECT_NE(recipe.about.command.find("convpass search recipes/finetune.json --over adapter.scale"),
            std::string::npos);
}

TEST(ShippedRecipes, DemoSharesAllButTheMethod) {
  Recipe probe = load_recipe(recipes() / "demo/linear_probe.json");
  Recipe convpass = load_recipe(recipes() / "demo/convpass.json");
  EXPECT_TRUE(std::holds_alternative<NoAdapter>(probe.adapter));
  EXPECT_EQ(std::get<ConvpassConfig>(convpass.adapter).conv_init, ConvInit::xavier);
  probe.adapter = convpass.adapter;
  EXPECT_EQ(recipe_hash(probe), recipe_hash(convpass));
}

}  // namespace
}  // namespace convpass
