// A frozen ViT with a Convpass, in the precisions that the CPU's kernels compute in.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convpass/adapters/convpass.h"
#include "convpass/models/vit.h"
#include "models/packed_linear.h"

namespace convpass {
namespace {

at::Tensor normal(at::IntArrayRef shape, uint64_t seed, double std = 1) {
  at::Generator generator = seeded_generator(seed);
  return at::empty(shape, at::kFloat).normal_(0, std, generator);
}
double relative_error(const at::Tensor& got, const at::Tensor& wanted) {
  const at::Tensor difference = got.to(at::kFloat) - wanted.to(at::kFloat);
  return (difference.norm() / wanted.to(at::kFloat).norm()).item<double>();
}

VitConfig small_vit() {
  VitConfig config;
  config.width = 64;
  config.depth = 3;
  config.heads = 2;
  config.hidden = 256;
  config.patch = config.grid_height = config.grid_width = 4;
  return config;
}

struct Outcome {
  at::Tensor features, gradient;
};

/// A ViT with a Convpass that is not fresh any more: features, and the first bypass's gradient.
Outcome run_vit(Precision precision, bool packed, uint64_t draw = 0) {
  const VitConfig config = small_vit();
  TensorMap weights = Vit::random_weights(config, 3 + draw);
  for (auto& [name, tensor] : weights.tensors)
    if (tensor.dim() > 1) tensor.mul_(6);
  Vit vit(config, weights, {.image_size = {16, 16}});
  Convpass convpass(ConvpassConfig{.conv_init = ConvInit::xavier, .dropout = 0}, vit, 1);
  uint64_t seed = 10;
  for (auto& [name, tensor] : convpass.parameters())
    tensor.copy_(normal(tensor.sizes(), ++seed, 0.1));
  convpass.to(at::kCPU);
  vit.to(at::kCPU, precision);
  if (packed) vit.set_trainable(false);
  Outcome run;
  run.features = vit.forward(normal({4, 3, 16, 16}, 5), &convpass, Pass{});
  run.features.backward(normal(run.features.sizes(), 6).to(run.features.scalar_type()));
  run.features = run.features.detach();
  run.gradient = convpass.parameters()[0].second.grad();
  return run;
}

/// How far from float32, on average over some ViTs: one alone may be near by chance.
struct MeanError {
  double features = 0, gradient = 0;
  void add(const Outcome& got, const Outcome& exact) {
    features += relative_error(got.features, exact.features);
    gradient += relative_error(got.gradient, exact.gradient);
  }
};

TEST(PackedVit, IsAsNearToFloat32AsThePlainOne) {
  if (PackedLinear::unsupported(Precision::bf16)) GTEST_SKIP() << "no kernels";
  MeanError of_plain, of_packed;
  for (uint64_t draw = 0; draw < 12; ++draw) {
    const Outcome exact = run_vit(Precision::f32, true, draw),
                  plain = run_vit(Precision::bf16, false, draw),
                  packed = run_vit(Precision::bf16, true, draw);
    EXPECT_FALSE(at::equal(plain.features, packed.features));
    of_plain.add(plain, exact);
    of_packed.add(packed, exact);
  }
  EXPECT_LT(of_packed.features, 1.2 * of_plain.features);
  EXPECT_LT(of_packed.gradient, 1.2 * of_plain.gradient);
}

TEST(PackedVit, InInt8IsNearToFloat32) {
  if (PackedLinear::unsupported(Precision::int8)) GTEST_SKIP() << "no kernels";
  const Outcome exact = run_vit(Precision::f32, true), int8 = run_vit(Precision::int8, true);
  EXPECT_LT(relative_error(int8.features, exact.features), 0.05);
  EXPECT_LT(relative_error(int8.gradient, exact.gradient), 0.1);
}

}  // namespace
}  // namespace convpass
