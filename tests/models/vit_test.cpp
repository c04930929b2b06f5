#include "convpass/models/vit.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "convpass/core/error.h"

namespace convpass {
namespace {

VitConfig tiny() {
  VitConfig config;
  config.width = 32;
  config.depth = 3;
  config.heads = 2;
  config.hidden = 64;
  config.patch = config.grid_height = config.grid_width = 4;
  return config;
}

TEST(Vit, FeaturesAreTheNormalisedClassTokenAlthoughTheLastBlockComputesNoOther) {
  for (int64_t registers : {0, 3}) {
    VitConfig config = tiny();
    config.registers = registers;
    TensorMap weights = Vit::random_weights(config, 1);
    for (auto& [name, tensor] : weights.tensors) tensor.normal_(0, 0.3);
    Vit vit(config, weights, {.image_size = {16, 24}});
    at::NoGradGuard no_grad;
    at::Tensor images = at::randn({2, 3, 16, 24});
    at::Tensor tokens = vit.forward_tokens(images, nullptr, Pass{});
    EXPECT_EQ(tokens.sizes(), (std::vector<int64_t>{2, 1 + registers + 24, 32}));
    EXPECT_TRUE(
        at::allclose(vit.forward(images, nullptr, Pass{}), tokens.select(1, 0), 1e-5, 1e-6));
  }
}

TEST(Vit, DropPathZeroesOrScalesWholeSamplesAndIsOffInEvaluation) {
  at::Tensor branch = at::ones({1000, 2, 3});
  at::Tensor factor = drop_path_factor(branch, 0.25, Pass{seeded_generator(1)});
  EXPECT_EQ(factor.sizes(), (std::vector<int64_t>{1000, 1, 1}));
  EXPECT_TRUE((factor.eq(0) | (factor - 4.0 / 3).abs().lt(1e-6)).all().item<bool>());
  EXPECT_NEAR(factor.gt(0).to(at::kFloat).mean().item<double>(), 0.75, 0.05);
  EXPECT_TRUE(at::equal(factor, drop_path_factor(branch, 0.25, Pass{seeded_generator(1)})));
  EXPECT_FALSE(drop_path_factor(branch, 0.25, Pass{}).defined());
  EXPECT_FALSE(drop_path_factor(branch, 0.0, Pass{seeded_generator(1)}).defined());
}

TEST(Vit, RefusesWeightsThatDoNotFitByName) {
  auto text = [](const std::function<void(TensorMap&)>& damage) -> std::string {
    VitConfig config = tiny();
    TensorMap weights = Vit::random_weights(config, 1);
    damage(weights);
    try {
      Vit(config, weights, {.image_size = {16, 16}});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(text([](TensorMap&) {}), "");
  EXPECT_EQ(text([](TensorMap& m) { m.tensors.erase("blocks.1.attn.qkv.bias"); }),
            "backbone: tensor blocks.1.attn.qkv.bias is missing");
  EXPECT_EQ(text([](TensorMap& m) {
              m.tensors["cls_token"] = at::zeros({1, 1, 31});
            }),
            "backbone: tensor cls_token: got shape [1, 1, 31], wanted [1, 1, 32]");
  EXPECT_EQ(text([](TensorMap& m) { m.tensors["extra"] = at::zeros({1}); }),
            "backbone: 1 tensors of the checkpoint have no place in this architecture");
}

TEST(Vit, RefusesImageSizesThatArePartOfAPatch) {
  VitConfig config = tiny();
  TensorMap weights = Vit::random_weights(config, 1);
  EXPECT_THROW(Vit(config, weights, {.image_size = {16, 18}}), Error);
  EXPECT_THROW(Vit(config, weights, {.image_size = {0, 16}}), Error);
}

TEST(Vit, Bfloat16StaysNearFloat32) {
  VitConfig config = tiny();
  TensorMap weights = Vit::random_weights(config, 1);
  for (auto& [name, tensor] : weights.tensors)
    if (tensor.dim() > 1) tensor.normal_(0, 0.1);
  Vit full(config, weights, {.image_size = {16, 16}}),
      half(config, weights, {.image_size = {16, 16}});
  half.to(at::kCPU, Precision::bf16);
  at::NoGradGuard no_grad;
  at::Tensor images = at::randn({2, 3, 16, 16});
  at::Tensor got = half.forward(images, nullptr, Pass{});
  EXPECT_EQ(got.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::allclose(got.to(at::kFloat), full.forward(images, nullptr, Pass{}), 0, 0.06));
}

TEST(Attention, EqualsSoftmaxOfScaledProductsInEveryPrecision) {
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (int64_t rows : {1, 9}) {
      at::Tensor q = at::randn({2, 3, rows, 8}), k = at::randn({2, 3, 9, 8}),
                 v = at::randn({2, 3, 9, 8});
      at::Tensor wanted =
          at::matmul(at::softmax(at::matmul(q, k.transpose(2, 3)) / std::sqrt(8.0), -1), v)
              .transpose(1, 2)
              .reshape({2, rows, 24});
      at::Tensor got = attention(q.to(type), k.to(type), v.to(type)).to(at::kFloat);
      EXPECT_TRUE(at::allclose(got, wanted, 0, type == at::kFloat ? 1e-5 : 0.05));
    }
  }
}

TEST(Vit, PositionsOfTheSameGridAreLeftAlone) {
  at::Tensor grid = at::randn({1, 12, 8});
  EXPECT_TRUE(
      at::equal(resize_positions(grid, 3, 4, 3, 4, PositionResize::dinov2_scale_offset), grid));
  EXPECT_EQ(resize_positions(grid, 3, 4, 5, 2, PositionResize::spline_order1).sizes(),
            (std::vector<int64_t>{1, 10, 8}));
}

}  // namespace
}  // namespace convpass
