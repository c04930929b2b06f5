#include "convpass/adapters/adapter_file.h"
#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/models/swin_checkpoint.h"
#include "convpass/train/build.h"
#include "tests/adapters/reference.h"
#include "tests/models/swin_files.h"
#include "tests/train/tiny_run.h"

// Whole runs with a Swin transformer as the backbone.
namespace convpass {
namespace {

using Sets = std::vector<std::string>;

class SwinRuns : public TinyRun {
 protected:
  static std::string weights_file() { return swin_file("shifted/microsoft.pth").string(); }
  Recipe swin_recipe(const Sets& more = {}) const {
    Sets all{"backbone.weights=" + weights_file()};
    all.insert(all.end(), more.begin(), more.end());
    return tiny_recipe(all);
  }
};

TEST_F(SwinRuns, TrainConvpassAndTheAdapterFileComputesTheSame) {
  const Recipe recipe = swin_recipe({"train.epochs=2"});
  train(recipe, folder() / "run", false);
  const auto file = folder() / "run/adapter.safetensors";
  TunedModel trained = build_model(recipe, 3);
  const at::Tensor start = trained.adapter->parameters().back().second.clone();
  apply_adapter(load_adapter(file), trained);
  EXPECT_FALSE(at::equal(trained.adapter->parameters().back().second, start));
  const LoadedModel loaded =
      load_tuned_model(file, weights_file(), DeviceChoice::cpu, Precision::f32);
  at::NoGradGuard no_grad;
  const at::Tensor images = swin_images(3, 32, 32);
  EXPECT_TRUE(close(loaded.model.logits(images, Pass{}), trained.logits(images, Pass{}), 1e-5));
}

TEST_F(SwinRuns, SixStepsEqualThreeThenResumeThenThree) {
  for (const Sets& sets : {Sets{}, Sets{"adapter.type=lora", "train.precision=bf16"}}) {
    Sets all{"train.steps=6", "train.save_every=3", "backbone.image_size=[48,64]"};
    all.insert(all.end(), sets.begin(), sets.end());
    const Recipe recipe = swin_recipe(all);
    const std::string name = "run" + std::to_string(sets.size());
    train(recipe, folder() / name, false);
    leave_killed_run(recipe, folder() / (name + "_killed"), 3);
    train(recipe, folder() / (name + "_killed"), true);
    EXPECT_EQ(read_file(folder() / name / "adapter.safetensors"),
              read_file(folder() / (name + "_killed") / "adapter.safetensors"));
  }
}

TEST_F(SwinRuns, TrainWholeFromRandomWeightsWhoseWindowsAreCutToTheGrid) {
  const Recipe recipe = tiny_recipe(
      {"backbone.weights=null",
       "backbone.variant=swin width 8 depths 1-2 heads 1-2 windows 7-7 patch 2",
       "backbone.image_size=16", "backbone.trainable=true", "adapter.type=none", "train.epochs=2"});
  train(recipe, folder() / "run", false);
  const auto file = folder() / "run/adapter.safetensors";
  const LoadedModel loaded = load_tuned_model(file, "", DeviceChoice::cpu, Precision::f32);
  const auto& swin = static_cast<const Swin&>(*loaded.model.backbone);
  EXPECT_EQ(swin.config().windows, (std::vector<int64_t>{7, 4}));
  EXPECT_TRUE(load_adapter(file).weights.has(
      "backbone.layers.1.blocks.1.attn.relative_position_bias_table"));
}

TEST_F(SwinRuns, SayAtWhichKeyTheyAreWrong) {
  const std::vector<std::pair<Sets, std::string>> all = {
      {{"backbone.image_size=36"}, "/backbone/image_size: got 36, wanted a multiple of 8"},
      {{"backbone.image_size=16"}, "wanted at least 32x32: the grid of stage 2 would be 2x2"},
      {{"backbone.pool=cls"}, "/backbone/pool: got \"cls\", wanted \"auto\" or \"mean\""},
      {{"backbone.blocks=2"}, "/backbone/blocks: got 2, wanted 0"},
      {{"adapter.type=vpt"}, "/adapter/type: got \"vpt\", wanted another for swin"},
      {{"adapter.blocks=[4]"}, "/adapter/blocks/0: got 4, wanted 0 to 3"},
      {{"head.type=distilled"}, "/head/type: got \"distilled\""},
      {{"backbone.variant=swin_tiny_patch4_window7"}, "/backbone/variant: got swin width 16"},
      {{"backbone.variant=swin_tinny_patch4_window7"},
       "did you mean \"swin_tiny_patch4_window7\"?"},
      {{"backbone.weights=null", "backbone.variant=swin_tiny_patch4_window7",
        "backbone.image_size=[32,64]"},
       "/backbone/image_size: got 32x64, wanted"},
  };
  for (const auto& [sets, part] : all) {
    std::string text = "no error";
    try {
      build_model(swin_recipe(sets), 3);
    } catch (const RecipeError& error) {
      text = error.what();
    }
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nwanted: " << part;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace convpass
