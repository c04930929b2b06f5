#include "convpass/adapters/adapter_file.h"
#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/train/build.h"
#include "tests/adapters/reference.h"
#include "tests/train/tiny_run.h"

// Whole runs with each of the adapters that Convpass is compared with.
namespace convpass {
namespace {

using Sets = std::vector<std::string>;

class AdapterRuns : public TinyRun, public ::testing::WithParamInterface<Sets> {
 protected:
  Sets sets(const Sets& more = {}) const {
    Sets all = GetParam();
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_P(AdapterRuns, TrainAreSavedAndComputeTheSameWhenLoaded) {
  const Recipe recipe = tiny_recipe(sets({"train.epochs=2"}));
  train(recipe, folder() / "run", false);
  const auto file = folder() / "run/adapter.safetensors";
  const AdapterFile saved = load_adapter(file);
  EXPECT_EQ(saved.adapter.index(), recipe.adapter.index());

  TunedModel fresh = build_model(recipe, 3);
  bool moved = false;
  for (const auto& [name, tensor] : fresh.adapter->parameters())
    moved |= !at::equal(tensor, saved.weights.at(name));
  EXPECT_TRUE(moved);
  TunedModel trained = build_model(recipe, 3);
  apply_adapter(saved, trained);
  const LoadedModel loaded = load_tuned_model(file, weights(), DeviceChoice::cpu, Precision::f32);
  at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({3, 3, 16, 16});
  EXPECT_TRUE(close(loaded.model.logits(images, Pass{}), trained.logits(images, Pass{}), 1e-5));
  EXPECT_EQ(loaded.model.trainable_parameters(), trained.trainable_parameters());
  // The file's weights are still the backbone's: merging changed none of what is mapped.
  TunedModel again = build_model(recipe, 3);
  EXPECT_TRUE(at::equal(again.backbone->forward(images, nullptr, Pass{}),
                        fresh.backbone->forward(images, nullptr, Pass{})));

  const LoadedModel rounded = load_tuned_model(file, weights(), DeviceChoice::cpu, Precision::bf16);
  EXPECT_TRUE(close(rounded.model.logits(images, Pass{}), trained.logits(images, Pass{}), 0.5));
}

TEST_P(AdapterRuns, InBfloat16WithTheAverageOfTheWeightsGoOnWhereTheyWereKilled) {
  const Recipe recipe = tiny_recipe(
      sets({"train.steps=6", "train.precision=bf16", "train.ema_decay=0.9", "train.save_every=3"}));
  train(recipe, folder() / "whole", false);
  leave_killed_run(recipe, folder() / "killed", 3);
  train(recipe, folder() / "killed", true);
  EXPECT_EQ(read_file(folder() / "whole/adapter.safetensors"),
            read_file(folder() / "killed/adapter.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(
    Each, AdapterRuns,
    ::testing::Values(Sets{"adapter.type=lora", "adapter.dropout=0.1"},
                      Sets{"adapter.type=lora", "adapter.layers=[\"qkv\",\"fc1\"]",
                           "adapter.blocks=[1]"},
                      Sets{"adapter.type=adaptformer"}, Sets{"adapter.type=bottleneck"},
                      Sets{"adapter.type=repadapter"}, Sets{"adapter.type=ssf"},
                      Sets{"adapter.type=bitfit"}, Sets{"adapter.type=vpt", "adapter.tokens=4"},
                      Sets{"adapter.type=vpt", "adapter.deep=false", "backbone.pool=mean"},
                      Sets{"adapter.type=fact"}),
    [](const auto& info) {
      return info.param[0].substr(info.param[0].find('=') + 1) + std::to_string(info.index);
    });

class AdapterRecipes : public TinyRun {};

TEST_F(AdapterRecipes, SayAtWhichKeyTheyAreWrong) {
  const std::vector<std::pair<Sets, std::string>> all = {
      {{"adapter.type=lora", "adapter.rank=0"}, "/adapter/rank: out of range, got 0"},
      {{"adapter.type=lora", "adapter.layers=[\"q\",\"atn\"]"},
       "/adapter/layers/1: unknown layer, got \"atn\""},
      {{"adapter.type=lora", "adapter.layers=[\"q\",\"qkv\"]"},
       "/adapter/layers: got \"qkv\" beside q, k or v"},
      {{"adapter.type=lora", "adapter.layers=[]"}, "/adapter/layers: got an empty list"},
      {{"adapter.type=lora", "adapter.blocks=[2]"}, "/adapter/blocks/0: got 2, wanted 0 to 1"},
      {{"adapter.type=adaptformer", "adapter.blocks=[1,1]"},
       "/adapter/blocks/1: the block stands twice"},
      {{"adapter.type=repadapter", "adapter.groups=3"}, "/adapter/groups: got 3, wanted a divisor"},
      {{"adapter.type=bottleneck", "adapter.sites=[\"x\"]"}, "/adapter/sites/0: unknown site"},
      {{"adapter.type=vpt", "adapter.tokens=0"}, "/adapter/tokens: out of range, got 0"},
      {{"adapter.type=vpt", "adapter.width=4"},
       "/adapter/width: got a key of \"type\" \"convpass\", wanted one of \"vpt\""},
      {{"adapter.type=lorra"}, "/adapter/type: unknown choice, got \"lorra\""},
      {{"adapter.type=bitfit", "backbone.trainable=true"},
       "/adapter/type: got \"bitfit\" with backbone.trainable"},
      {{"adapter.type=vpt", "backbone.drop_path=0", "backbone.weights=null",
        "backbone.variant=bit root 32 widths 128-256 units 1-1"},
       "/adapter/type: got \"vpt\", wanted \"none\""},
  };
  for (const auto& [sets, part] : all) {
    std::string text = "no error";
    try {
      const Recipe recipe = tiny_recipe(sets);
      validate(recipe, /*needs_data=*/false);
      build_model(recipe, 3);
    } catch (const RecipeError& error) {
      text = error.what();
    }
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nwanted: " << part;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace convpass
