// A backbone that trains whole: in bfloat16 over float32 weights, and what a finished one runs in.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convpass/adapters/adapter_file.h"
#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/models/layers.h"
#include "convpass/train/build.h"
#include "convpass/train/optimizer.h"
#include "models/packed_linear.h"
#include "tests/adapters/reference.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

using Sets = std::vector<std::string>;

double relative_error(const at::Tensor& got, const at::Tensor& wanted) {
  const at::Tensor difference = got.to(at::kFloat) - wanted.to(at::kFloat);
  return (difference.norm() / wanted.to(at::kFloat).norm()).item<double>();
}

TEST(WeightFor, IsTheWeightItselfUnlessTheTypesDiffer) {
  const at::Tensor tokens = at::randn({3, 4}), half = tokens.to(at::kBFloat16);
  const at::Tensor weight = at::randn({4}).set_requires_grad(true);
  EXPECT_TRUE(weight_for(tokens, weight).is_same(weight));
  EXPECT_FALSE(weight_for(tokens, at::Tensor()).defined());
  const at::Tensor cast = weight_for(half, weight);
  EXPECT_EQ(cast.scalar_type(), at::kBFloat16);
  (half * cast).sum().backward();
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

class FullTuning : public TinyRun {
 protected:
  Recipe recipe(const Sets& sets = {}) const {
    Sets all{"adapter.type=none", "backbone.trainable=true", "train.precision=bf16"};
    all.insert(all.end(), sets.begin(), sets.end());
    return tiny_recipe(all);
  }
  /// A ViT with everything that a checkpoint can have, in a file.
  std::filesystem::path rich_vit(Activation activation) const {
    VitConfig config;
    config.width = 32;
    config.depth = config.heads = 2;
    config.hidden = 64;
    config.patch = config.grid_height = config.grid_width = 4;
    config.registers = 2;
    config.prefix_positions = config.layer_scale = true;
    config.activation = activation;
    TensorMap map = Vit::random_weights(config, 3);
    for (auto& [name, tensor] : map.tensors)
      if (tensor.dim() > 1) tensor.mul_(8);
    std::filesystem::create_directories(folder() / "rich");
    const auto file = folder() / "rich/vit.safetensors";
    save_safetensors(file, map);
    std::filesystem::copy_file(weights().parent_path() / "config.json",
                               folder() / "rich/config.json",
                               std::filesystem::copy_options::overwrite_existing);
    return file;
  }
};

const at::Tensor& images() {
  static const at::Tensor all = at::empty({8, 3, 16, 16}).normal_(0, 1, seeded_generator(5));
  return all;
}

/// Loss on fixed labels.
at::Tensor loss_of(const TunedModel& model, const Pass& pass = {}) {
  return at::cross_entropy_loss(model.logits(images(), pass), at::arange(8).remainder(3));
}

TEST_F(FullTuning, GradientsInBfloat16AreThoseOfFloat32WithinItsError) {
  for (const Sets& sets :
       {Sets{}, Sets{"backbone.pool=mean"}, Sets{"adapter.type=convpass"},
        Sets{"adapter.type=lora"}, Sets{"adapter.type=ssf"}, Sets{"adapter.type=vpt"},
        Sets{"backbone.weights=" + rich_vit(Activation::swiglu).string()}}) {
    auto run = [&](const std::string& precision) {
      Recipe recipe = this->recipe(sets);
      recipe.train.precision = precision == "bf16" ? Precision::bf16 : Precision::f32;
      TunedModel model = build_model(recipe, 3);
      EXPECT_EQ(model.features(images(), Pass{}).scalar_type(),
                precision == "bf16" ? at::kBFloat16 : at::kFloat);
      at::Tensor loss = loss_of(model, Pass{seeded_generator(7)});
      EXPECT_EQ(loss.scalar_type(), at::kFloat);
      loss.backward();
      return model.trainable();
    };
    const NamedTensors exact = run("f32"), half = run("bf16");
    const std::string where = sets.empty() ? "" : " " + sets[0];
    std::vector<at::Tensor> got, wanted;
    ASSERT_EQ(exact.size(), half.size());
    for (size_t i = 0; i < exact.size(); ++i) {
      const auto& [name, tensor] = half[i];
      EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
      EXPECT_TRUE(at::equal(tensor, exact[i].second)) << name;
      ASSERT_EQ(tensor.grad().defined(), exact[i].second.grad().defined()) << name;
      if (!tensor.grad().defined() || exact[i].second.grad().norm().item<double>() < 1e-6) continue;
      EXPECT_EQ(tensor.grad().scalar_type(), at::kFloat) << name;
      EXPECT_LT(relative_error(tensor.grad(), exact[i].second.grad()), 0.08) << name << where;
      got.push_back(tensor.grad().flatten());
      wanted.push_back(exact[i].second.grad().flatten());
    }
    EXPECT_LT(relative_error(at::cat(got), at::cat(wanted)), 0.03) << where;
  }
}

TEST_F(FullTuning, StepsThatBfloat16CouldNotRepresentAddUp) {
  const TunedModel model = build_model(recipe({"backbone.drop_path=0"}), 3);
  std::vector<at::Tensor> before;
  for (const auto& [name, tensor] : model.trainable()) before.push_back(tensor.detach().clone());
  Optimizer optimizer({.lr = 1e-6, .weight_decay = 0}, model.trainable());
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    loss_of(model).backward();
    optimizer.step(1e-6);
  }
  size_t i = 0;
  for (const auto& [name, tensor] : model.trainable()) {
    const at::Tensor& start = before[i++];
    EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
    if (!tensor.grad().defined() || tensor.grad().abs().max().item<double>() == 0) continue;
    EXPECT_FALSE(at::equal(tensor, start)) << name;
    // Around 1 neighbours in bfloat16 are 0.004 apart: the norms' weights would still be where they
    // were.
    if (!name.ends_with("norm1.weight")) continue;
    EXPECT_TRUE(at::equal(tensor.detach().to(at::kBFloat16), start.to(at::kBFloat16))) << name;
  }
}

TEST_F(FullTuning, SixStepsEqualThreeThenResumeThenThree) {
  for (const Sets& sets : {Sets{}, Sets{"adapter.type=convpass"}, Sets{"adapter.type=lora"}}) {
    Sets all = sets;
    for (const char* set : {"train.steps=6", "train.save_every=3", "train.ema_decay=0.9"})
      all.emplace_back(set);
    const Recipe recipe = this->recipe(all);
    const std::string name = adapter_type(recipe.adapter);
    const auto whole = folder() / (name + "_whole"), cut = folder() / (name + "_cut");
    ASSERT_TRUE(train(recipe, whole, false).finished);
    leave_killed_run(recipe, cut, 3);
    ASSERT_TRUE(train(recipe, cut, true).finished);
    EXPECT_EQ(read_file(whole / "adapter.safetensors"), read_file(cut / "adapter.safetensors"));
    for (const auto& [key, tensor] : load_adapter(whole / "adapter.safetensors").weights.tensors)
      EXPECT_EQ(tensor.scalar_type(), at::kFloat) << key;
  }
}

TEST_F(FullTuning, FinishedRunsFrozenInEveryPrecision) {
  for (const char* adapter : {"none", "lora", "convpass"}) {
    const Recipe recipe = this->recipe({std::string("adapter.type=") + adapter, "train.epochs=2"});
    const auto run = folder() / adapter;
    ASSERT_TRUE(train(recipe, run, false).finished);
    const auto file = run / "adapter.safetensors";
    Recipe exact = recipe;
    exact.train.precision = Precision::f32;
    TunedModel trained = build_model(exact, 3);
    const at::Tensor untrained = trained.logits(images(), Pass{}).detach();
    apply_adapter(load_adapter(file), trained);
    const at::Tensor wanted = trained.logits(images(), Pass{}).detach();
    ASSERT_GT(relative_error(untrained, wanted), 0.2);
    const auto before = read_file(weights());
    for (Precision precision : {Precision::f32, Precision::bf16, Precision::int8}) {
      if (precision == Precision::int8 && PackedLinear::unsupported(precision)) continue;
      const LoadedModel loaded = load_tuned_model(file, weights(), DeviceChoice::cpu, precision);
      EXPECT_FALSE(loaded.model.backbone_trainable);
      EXPECT_EQ(loaded.model.adapter_merged, std::string(adapter) == "lora");
      for (const auto& [name, tensor] : loaded.model.backbone->parameters()) {
        EXPECT_FALSE(tensor.requires_grad()) << name;
        EXPECT_EQ(tensor.scalar_type(), dtype_of(precision)) << name;
      }
      EXPECT_LT(relative_error(loaded.model.logits(images(), Pass{}), wanted),
                precision == Precision::f32 ? 1e-5 : 0.05)
          << adapter << " " << kPrecisionNames[static_cast<size_t>(precision)];
    }
    EXPECT_EQ(before, read_file(weights()));
  }
}

TEST_F(FullTuning, RefusesWhatItCannotComputeIn) {
  auto message = [&](const Sets& sets) {
    const Recipe recipe = this->recipe(sets);
    try {
      build_model(recipe, 3);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::string no_file = "backbone.weights=", no_drop = "backbone.drop_path=0";
  EXPECT_EQ(message({}), "no error");
  EXPECT_EQ(message({no_file, "backbone.variant=bit root 32 widths 128-256 units 1-1", no_drop}),
            "no error");
  const std::string tresnet = message({no_file, "backbone.variant=tresnet width 16 layers 1-1-1-1",
                                       "backbone.image_size=24", no_drop});
  EXPECT_NE(tresnet.find(
                "/train/precision: got bf16 with a trainable backbone, wanted f32 (auto means bf16 "
                "on this device): tresnet"),
            std::string::npos)
      << tresnet;
  EXPECT_NE(
      message({"train.precision=int8"})
          .find("/train/precision: got int8 with a trainable backbone, wanted auto, bf16 or f32"),
      std::string::npos);
}

}  // namespace
}  // namespace convpass
