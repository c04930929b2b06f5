#include "src/train/run_cache.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "convpass/adapters/adapter.h"
#include "convpass/core/file.h"
#include "convpass/models/vit.h"
#include "convpass/train/build.h"
#include "convpass/train/trainer.h"
#include "tests/adapters/reference.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

using Sets = std::vector<std::string>;

/// A run whose stems are kept gives what one gives that computes them anew in every step: the same
/// but for the last bits, in which LibTorch's products depend on the row of the batch where an
/// image stands.
class KeptStems : public TinyRun {
 protected:
  struct Outcome {
    TensorMap weights;
    std::vector<nlohmann::json> log;
  };
  Outcome trained(const std::string& name, const Sets& sets) {
    EXPECT_TRUE(train(tiny_recipe(sets), folder() / name, false).finished);
    Outcome outcome{load_adapter(folder() / name / "adapter.safetensors").weights, {}};
    std::ifstream lines(folder() / name / "log.jsonl");
    for (std::string line; std::getline(lines, line);)
      outcome.log.push_back(nlohmann::json::parse(line));
    std::filesystem::remove_all(folder() / name);
    return outcome;
  }

  void expect_same_without_cache(Sets sets) {
    const Outcome kept = trained("kept", sets);
    sets.push_back("data.cache_mb=0");
    const Outcome plain = trained("plain", sets);
    ASSERT_EQ(kept.weights.tensors.size(), plain.weights.tensors.size());
    for (const auto& [name, tensor] : plain.weights.tensors)
      EXPECT_TRUE(close(kept.weights.at(name), tensor, 1e-5)) << name;
    ASSERT_EQ(kept.log.size(), plain.log.size());
    for (size_t i = 0; i < plain.log.size(); ++i)
      for (const char* split : {"val", "val_average"})
        if (plain.log[i].contains(split)) {
          EXPECT_EQ(kept.log[i][split]["top1"], plain.log[i][split]["top1"]);
          EXPECT_NEAR(kept.log[i][split]["loss"], plain.log[i][split]["loss"], 1e-5);
        }
  }
};

TEST_F(KeptStems, DoNotChangeAnAdapterInUpperBlocks) {
  for (const char* precision : {"f32", "bf16"})
    for (const char* type : {"convpass", "lora"})
      expect_same_without_cache(
          {std::string("train.precision=") + precision,
           std::string("adapter={\"type\":\"") + type + "\",\"blocks\":[1]}"});
}

TEST_F(KeptStems, DoNotChangeALinearProbe) {
  for (const char* precision : {"f32", "bf16"})
    expect_same_without_cache({"adapter.type=none", std::string("train.precision=") + precision});
}

TEST_F(KeptStems, ServeWeightsAndTheirAverageOnVal) {
  expect_same_without_cache({"adapter.blocks=[1]", "train.ema_decay=0.9"});
}

TEST_F(KeptStems, SurviveAKill) {
  const Sets sets{"adapter.blocks=[1]", "train.steps=6", "train.save_every=3"};
  train(tiny_recipe(sets), folder() / "whole", false);
  leave_killed_run(tiny_recipe(sets), folder() / "cut", 3);
  ASSERT_TRUE(train(tiny_recipe(sets), folder() / "cut", true).finished);
  EXPECT_EQ(read_file(folder() / "whole/adapter.safetensors"),
            read_file(folder() / "cut/adapter.safetensors"));
}

TEST_F(KeptStems, DoNotHangOnWhichImagesCameTogether) {
  // Wide enough, and of few enough tokens, for products of few rows to be summed otherwise.
  VitConfig config;
  config.width = 384;
  config.heads = 6;
  config.hidden = 1536;
  config.depth = 2;
  config.patch = 8;
  config.grid_height = config.grid_width = 2;
  save_safetensors(weights(), Vit::random_weights(config, 3));
  std::ofstream(folder() / "weights/config.json") << R"({"model_args": {"num_heads": 6}})";
  const TunedModel model = build_model(tiny_recipe({"adapter.type=none"}), 3);
  const at::Tensor images = at::rand({9, 3, 16, 16});
  auto stem_of = [&](const std::vector<int64_t>& together) {
    // All are known but these; what is known is not computed.
    StemCache stems(model,
                    std::make_shared<SampleTensors>(9, std::make_shared<CacheBudget>(1 << 30)),
                    "a test");
    Batch batch;
    batch.images = images;
    batch.indices = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    stems.of(batch);
    batch.blanks.assign(9, true);
    for (int64_t image : together) batch.blanks[static_cast<size_t>(image)] = false;
    return stems.of(batch);
  };
  const at::Tensor whole = stem_of({0, 1, 2, 3, 4, 5, 6, 7, 8});
  for (const auto& together : std::vector<std::vector<int64_t>>{{4}, {0, 8}, {1, 2, 3, 5, 7}})
    EXPECT_TRUE(at::equal(stem_of(together), whole)) << together.size();
}

TEST_F(KeptStems, DoNotHangOnTheNumberOfWorkers) {
  const Sets sets{"adapter.type=none", "train.batch_size=9", "train.epochs=4"};
  std::vector<TensorMap> adapters;
  for (const char* workers : {"train.workers=1", "train.workers=4"}) {
    Sets with = sets;
    with.push_back(workers);
    train(tiny_recipe(with), folder() / workers, false);
    adapters.push_back(load_adapter(folder() / workers / "adapter.safetensors").weights);
  }
  for (const auto& [name, tensor] : adapters[0].tensors)
    EXPECT_TRUE(at::equal(tensor, adapters[1].at(name))) << name;
}

TEST_F(KeptStems, AndTeachersAnswersAreInTheBudgetOnce) {
  DataConfig data;
  data.cache_mb = 1;
  RunCache cache(data, folder());
  EXPECT_TRUE(cache.take_answers(600 << 10));
  EXPECT_TRUE(cache.take_answers(600 << 10));  // of the next run
  EXPECT_TRUE(cache.take_answers(1 << 20));
  EXPECT_FALSE(cache.take_answers((1 << 20) + 1));
}

TEST_F(KeptStems, MayLieOnDiskOrFitInPart) {
  const Recipe recipe = tiny_recipe({"adapter.blocks=[1]"});
  const TunedModel model = build_model(recipe, 3);
  ASSERT_TRUE(model.has_stem());
  const at::Tensor images = at::rand({6, 3, 16, 16});
  const at::Tensor wanted = model.stem(images);  // [6, 17, 32]
  const int64_t row = 17 * 32 * 4;
  for (const auto& [memory, disk] : {std::pair<int64_t, int64_t>{2 * row, 2 * row}, {row, 0}}) {
    const auto budget = std::make_shared<CacheBudget>(memory, disk, folder());
    StemCache stems(model, std::make_shared<SampleTensors>(6, budget), "a test");
    Batch batch;
    batch.images = images;
    batch.indices = {0, 1, 2, 3, 4, 5};
    EXPECT_TRUE(at::equal(stems.of(batch), wanted));
    EXPECT_EQ(stems.known(3), disk > 0);
    EXPECT_FALSE(stems.known(5));
    // Pixels of what is known are not looked at.
    batch.images = images.clone();
    for (int64_t i = 0; i < 6; ++i) {
      batch.blanks.push_back(stems.known(i));
      if (stems.known(i)) batch.images[i].fill_(std::numeric_limits<float>::quiet_NaN());
    }
    EXPECT_TRUE(at::allclose(stems.of(batch), wanted, 1e-6, 1e-6));
  }
}

TEST_F(KeptStems, AreOnlyOfWhatNeverChanges) {
  auto keeps = [&](const Sets& sets) {
    const Recipe recipe = tiny_recipe(sets);
    const TunedModel model = build_model(recipe, 3);
    const auto dataset = open_dataset(*recipe.data.train, {}, 0, "data.train");
    const ImagePipeline pipeline(resolve_input(recipe.input, model), recipe.augment);
    RunCache cache(recipe.data, folder());
    return cache.for_training(model, *dataset, recipe, {{.pipeline = &pipeline}}).stem != nullptr;
  };
  const std::string upper = "adapter.blocks=[1]";
  EXPECT_TRUE(keeps({upper}));
  EXPECT_TRUE(keeps({"adapter.type=none"}));
  EXPECT_FALSE(keeps({}));  // a bypass beside the first block
  EXPECT_FALSE(keeps({upper, "augment.flip=0.5"}));
  EXPECT_FALSE(keeps({upper, "augment.mixup=0.2"}));
  EXPECT_FALSE(keeps({upper, "backbone.trainable=true"}));
  EXPECT_FALSE(keeps({upper, "data.cache_mb=0"}));
  for (const char* type : {"vpt", "ssf", "bitfit"})
    EXPECT_FALSE(keeps({std::string("adapter={\"type\":\"") + type + "\"}"})) << type;
}

TEST_F(KeptStems, AndImagesAndTheBackboneMayComeFromARunBefore) {
  const std::vector<Sets> runs{
      {"adapter.blocks=[1]"},
      {"adapter.blocks=[1]", "adapter.scale=3", "train.seed=7"},
      {"adapter.blocks=[1]", "input.mean=[0.2,0.2,0.2]", "input.std=[1,1,1]"},
      {"adapter.blocks=[1]", "backbone.drop_path=0.3"},
      {"adapter.type=none"},
      {"adapter.scale=2"},
      {"augment.flip=0.5"},
      {"augment.flip=0.5", "train.seed=7"},
      {"adapter.blocks=[1]", "data.train.per_class=6"},
      {"adapter.type=none", "backbone.trainable=true"},
      {"adapter.blocks=[1]"}};
  const auto cache = shared_cache(tiny_recipe().data, folder());
  for (size_t i = 0; i < runs.size(); ++i) {
    const Recipe recipe = tiny_recipe(runs[i]);
    const auto alone = folder() / ("alone" + std::to_string(i)),
               after = folder() / ("after" + std::to_string(i));
    ASSERT_TRUE(train(recipe, alone, false).finished);
    ASSERT_TRUE(train(recipe, after, {.cache = cache}).finished);
    const TensorMap wanted = load_adapter(alone / "adapter.safetensors").weights;
    const TensorMap got = load_adapter(after / "adapter.safetensors").weights;
    for (const auto& [name, tensor] : wanted.tensors)
      EXPECT_TRUE(close(got.at(name), tensor, 1e-5)) << i << " " << name;
  }
  // What is gone by then was taken over.
  std::filesystem::rename(weights(), folder() / "elsewhere");
  EXPECT_TRUE(train(tiny_recipe(runs.back()), folder() / "taken", {.cache = cache}).finished);
}

TEST(Stem, IsTheFirstPartOfTheForwardPassBitForBit) {
  // With stochastic depth, which acts in none of the blocks below the adapter's.
  VitConfig config;
  config.width = 32;
  config.depth = 4;
  config.heads = 2;
  config.hidden = 64;
  config.patch = config.grid_height = config.grid_width = 4;
  for (Pool pool : {Pool::cls, Pool::mean}) {
    Vit vit(config, Vit::random_weights(config, 3),
            {.image_size = {16, 16}, .pool = pool, .drop_path = 0.9});
    const at::Tensor images = at::rand({16, 3, 16, 16});
    for (int64_t block : {1, 3}) {
      const auto adapter = make_adapter(ConvpassConfig{.blocks = {block}}, vit, 5);
      at::NoGradGuard no_grad;
      for (const auto& [name, tensor] : adapter->parameters())
        if (name.ends_with("up.weight")) tensor.fill_(0.1);
      ASSERT_TRUE(vit.has_stem(adapter.get()));
      auto pass = [] { return Pass{seeded_generator(7)}; };
      const at::Tensor stem = vit.stem(images, adapter.get());
      const at::Tensor whole = vit.forward(images, adapter.get(), pass());
      EXPECT_TRUE(at::equal(vit.after_stem(stem, adapter.get(), pass()), whole));
      EXPECT_TRUE(at::equal(vit.after_stem(stem, adapter.get(), Pass{}),
                            vit.forward(images, adapter.get(), Pass{})));
      EXPECT_FALSE(at::equal(whole, vit.forward(images, adapter.get(), Pass{})));
    }
  }
}

}  // namespace
}  // namespace convpass
