// The CPU's kernels against the plain operators, which stay the reference.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

#include "convpass/models/vit.h"
#include "models/gemm_kernels.h"
#include "models/packed_attention.h"
#include "models/packed_linear.h"

namespace convpass {
namespace {

using PackedPtr = c10::intrusive_ptr<PackedLinear>;

at::Tensor normal(at::IntArrayRef shape, uint64_t seed, double std = 1) {
  at::Generator generator = seeded_generator(seed);
  return at::empty(shape, at::kFloat).normal_(0, std, generator);
}
at::Tensor rounded(const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); }

double relative_error(const at::Tensor& got, const at::Tensor& wanted) {
  const at::Tensor difference = got.to(at::kFloat) - wanted.to(at::kFloat);
  return (difference.norm() / wanted.to(at::kFloat).norm()).item<double>();
}

/// What int8 is by definition: x and weight rounded to 127 steps of their rows' largest values.
at::Tensor steps(const at::Tensor& x) {
  const at::Tensor scale = x.abs().amax(-1, true).clamp_min(1e-30) / 127;
  return (x / scale).round() * scale;
}

/// Runs `work` in each unit that this machine has; the one in use is put back.
template <class Work>
void in_each_unit(const Work& work) {
  const kernels::Unit before = kernels::unit();
  for (const kernels::Unit unit : {kernels::Unit::vectors, kernels::Unit::tiles})
    if (kernels::use(unit)) work(unit);
  kernels::use(before);
}
class Packed : public ::testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    if (const auto why = PackedLinear::unsupported(GetParam())) GTEST_SKIP() << *why;
  }
  PackedPtr layer(const at::Tensor& weight, const at::Tensor& bias) const {
    return c10::make_intrusive<PackedLinear>(weight, bias, GetParam());
  }
  bool int8() const { return GetParam() == Precision::int8; }
  at::Tensor weights(const at::Tensor& weight) const {
    return int8() ? steps(weight) : rounded(weight);
  }
  at::Tensor inputs(const at::Tensor& input) const { return int8() ? steps(input) : input; }
};
INSTANTIATE_TEST_SUITE_P(Precisions, Packed, ::testing::Values(Precision::bf16, Precision::int8),
                         [](const auto& info) {
                           return kPrecisionNames[static_cast<size_t>(info.param)];
                         });

constexpr double kRounding = 3e-3;  // of a result to bfloat16: 2^-9 at most for each value

TEST_P(Packed, LinearEqualsItsDefinitionBothWays) {
  for (const auto& [rows, in, out] : {std::array<int64_t, 3>{1, 4, 4},
                                      {5, 36, 100},
                                      {13, 64, 64},
                                      {500, 32, 96},
                                      {197, 768, 72}}) {
    const at::Tensor weight = normal({out, in}, 1), bias = normal({out}, 2);
    const at::Tensor x = rounded(normal({rows, in}, 3));
    const PackedPtr packed = layer(weight, bias);
    at::Tensor input = x.to(at::kBFloat16).set_requires_grad(true);
    const at::Tensor y = packed->forward(input);
    EXPECT_LT(relative_error(y, at::linear(inputs(x), weights(weight), bias)), kRounding)
        << rows << " " << in << " " << out;

    const at::Tensor grad = rounded(normal({rows, out}, 4));
    y.backward(grad.to(at::kBFloat16));
    at::Tensor wanted = at::matmul(grad, weights(weight));
    if (int8()) {
      const at::Tensor scale = weight.abs().amax(1).clamp_min(1e-30) / 127;  // [out]
      wanted = at::matmul(steps(grad * scale), weights(weight) / scale.unsqueeze(1));
    }
    EXPECT_LT(relative_error(input.grad(), wanted), kRounding) << rows << " " << in << " " << out;
    EXPECT_EQ(packed->values(), weight.numel() + out);
  }
}

TEST_P(Packed, TilesEqualVectors) {
  if (!kernels::tiles::supported()) GTEST_SKIP() << "this machine has no AMX";
  // Rows, depths and columns that are whole tiles, and all ways in which they are not.
  for (const auto& [rows, in, out] : {std::array<int64_t, 3>{1, 4, 4},
                                      {5, 36, 100},
                                      {16, 64, 32},
                                      {17, 96, 64},
                                      {32, 128, 192},
                                      {37, 100, 36},
                                      {197, 768, 72},
                                      {1300, 256, 160}}) {
    const PackedPtr packed = layer(normal({out, in}, 1), normal({out}, 2));
    const at::Tensor x = normal({rows, in}, 3).to(at::kBFloat16);
    const at::Tensor grad = normal({rows, out}, 4).to(at::kBFloat16);
    std::vector<at::Tensor> outs, slopes, backs;
    in_each_unit([&](kernels::Unit) {
      slopes.push_back(at::zeros({rows, out}, at::kByte));
      outs.push_back(packed->multiply(x, {kernels::Finish::gelu, slopes.back()}));
      backs.push_back(packed->multiply_back(grad, {}));
    });
    const std::string where =
        std::to_string(rows) + " " + std::to_string(in) + " " + std::to_string(out);
    if (int8()) {
      EXPECT_TRUE(at::equal(outs[0], outs[1])) << where;
      EXPECT_TRUE(at::equal(slopes[0], slopes[1])) << where;
      EXPECT_TRUE(at::equal(backs[0], backs[1])) << where;
    } else {
      EXPECT_LT(relative_error(outs[1], outs[0]), kRounding) << where;
      EXPECT_LE((slopes[0].to(at::kInt) - slopes[1].to(at::kInt)).abs().max().item<int>(), 1);
      EXPECT_LT(relative_error(backs[1], backs[0]), kRounding) << where;
    }
  }
}

TEST_P(Packed, LinearTakesViewsAndPartsOfItsChannels) {
  const at::Tensor weight = normal({96, 32}, 1), bias = normal({96}, 2);
  const PackedPtr packed = layer(weight, bias);
  at::Tensor x = normal({2, 7, 32}, 3).to(at::kBFloat16).set_requires_grad(true);
  const at::Tensor all = packed->forward(x);
  const at::Tensor part = packed->forward(x.narrow(1, 2, 3), 32, 64);
  EXPECT_TRUE(at::equal(part, all.narrow(1, 2, 3).narrow(2, 32, 64)));

  const at::Tensor grad = normal({2, 3, 64}, 4).to(at::kBFloat16);
  part.backward(grad);
  at::Tensor whole = at::zeros({2, 7, 96}, at::kBFloat16);
  whole.narrow(1, 2, 3).narrow(2, 32, 64).copy_(grad);
  const at::Tensor from_part = x.grad().clone();
  x.mutable_grad().zero_();
  packed->forward(x).backward(whole);
  EXPECT_LT(relative_error(from_part, x.grad()), kRounding);
}

TEST_P(Packed, RowsMayBeOneAndTheSame) {
  const PackedPtr packed = layer(normal({96, 64}, 1), normal({96}, 2));
  at::Tensor x = normal({7, 64}, 3).to(at::kBFloat16).set_requires_grad(true);
  packed->forward(x).sum(0).backward(normal({96}, 4).to(at::kBFloat16));  // an expanded gradient
  EXPECT_TRUE(at::equal(x.grad()[0], x.grad()[6]));
  at::NoGradGuard no_grad;
  const at::Tensor row = x.detach().narrow(0, 0, 1);
  EXPECT_TRUE(
      at::equal(packed->forward(row.expand({7, 64})), packed->forward(row).expand({7, 96})));
}

TEST_P(Packed, MlpEqualsThePlainOneBothWays) {
  auto plain = [](const at::Tensor& h, Activation activation) {
    if (activation == Activation::quick_gelu) return quick_gelu(h);
    return at::gelu(h, activation == Activation::gelu ? "none" : "tanh");
  };
  const at::Tensor w1 = normal({256, 64}, 1, 0.2), b1 = normal({256}, 2),
                   w2 = normal({64, 256}, 3, 0.1), b2 = normal({64}, 4);
  for (const Activation activation :
       {Activation::gelu, Activation::gelu_tanh, Activation::quick_gelu}) {
    const at::Tensor x = rounded(normal({3, 50, 64}, 5)), grad = rounded(normal({3, 50, 64}, 6));
    at::Tensor input = x.to(at::kBFloat16).set_requires_grad(true);
    const at::Tensor y = packed_mlp(input, layer(w1, b1), layer(w2, b2), activation);
    y.backward(grad.to(at::kBFloat16));
    at::Tensor wanted_input = x.clone().set_requires_grad(true);
    const at::Tensor wanted =
        at::linear(plain(at::linear(wanted_input, weights(w1), b1), activation), weights(w2), b2);
    wanted.backward(grad);
    // int8: its own steps within, each 1/254 of a row's largest at most.
    EXPECT_LT(relative_error(y, wanted), int8() ? 0.02 : 5e-3);
    EXPECT_LT(relative_error(input.grad(), wanted_input.grad()), int8() ? 0.02 : 6e-3);
    at::NoGradGuard no_grad;
    EXPECT_TRUE(at::equal(packed_mlp(input, layer(w1, b1), layer(w2, b2), activation), y));
  }
}

TEST(OurLoops, RunOnAllThreads) {
  // Without OpenMP's option at::parallel_for is a plain loop, and nothing says so.
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::set<std::thread::id> threads;
  std::mutex mutex;
  at::parallel_for(0, 2, 1, [&](int64_t, int64_t) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  at::set_num_threads(before);
  EXPECT_EQ(threads.size(), 2u);
}

/// Error of `got` against float32, as a multiple of the error that LibTorch's own bfloat16 makes.
double times_plain_error(const at::Tensor& got, const at::Tensor& plain, const at::Tensor& exact) {
  return relative_error(got, exact) / relative_error(plain, exact);
}

TEST(PackedAttention, IsAsNearToFloat32AsThePlainOne) {
  if (!can_pack_attention(at::empty({1}, at::kBFloat16), 64)) GTEST_SKIP() << "no kernels";
  for (const auto& [tokens, queries, heads, dim] : {std::array<int64_t, 4>{1, 1, 2, 16},
                                                    {5, 5, 2, 32},
                                                    {50, 50, 6, 64},
                                                    {197, 197, 2, 64},
                                                    {257, 257, 1, 80},
                                                    {401, 401, 2, 64},
                                                    {197, 1, 3, 64},
                                                    {50, 5, 2, 48},
                                                    {1, 1, 2, 32},
                                                    {50, 5, 2, 32},
                                                    {65, 33, 1, 96},
                                                    {197, 197, 1, 128}}) {
    const at::Tensor qkv = rounded(normal({2, tokens, 3 * heads * dim}, 1, 1.5));
    const at::Tensor grad = rounded(normal({2, queries, heads * dim}, 2));
    auto run = [&](at::ScalarType type, bool packed) {
      at::Tensor input = qkv.clone().to(type).set_requires_grad(true);
      at::Tensor out;
      const int64_t width = heads * dim;
      if (packed) {
        out = queries == tokens ? packed_attention(input, heads)
                                : packed_attention(input.narrow(1, 0, queries).narrow(2, 0, width),
                                                   input.narrow(2, width, 2 * width), heads);
      } else {
        const at::Tensor parts = input.view({2, tokens, 3, heads, dim}).permute({2, 0, 3, 1, 4});
        out = attention(parts[0].narrow(2, 0, queries), parts[1], parts[2]);
      }
      out.backward(grad.to(type));
      return std::pair{out.detach(), input.grad()};
    };
    const auto exact = run(at::kFloat, false), plain = run(at::kBFloat16, false);
    in_each_unit([&](kernels::Unit unit) {
      const auto packed = run(at::kBFloat16, true);
      const std::string where = std::to_string(queries) + " of " + std::to_string(tokens) +
                                " tokens, width " + std::to_string(dim) +
                                (unit == kernels::Unit::tiles ? " in tiles" : " in vectors");
      if (tokens == 1) {  // nothing to weigh: the value itself, its gradient the output's
        EXPECT_TRUE(at::equal(packed.first, plain.first)) << where;
        return;
      }
      EXPECT_LT(times_plain_error(packed.first, plain.first, exact.first), 1.2) << where;
      EXPECT_LT(times_plain_error(packed.second, plain.second, exact.second), 1.2) << where;
    });
  }
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

TEST(PackedVit, HoldsItsWeightsOnceAndCountsThem) {
  if (PackedLinear::unsupported(Precision::bf16)) GTEST_SKIP() << "no kernels";
  const VitConfig config = small_vit();
  const TensorMap weights = Vit::random_weights(config, 3);
  int64_t values = 0;
  for (const auto& [name, tensor] : weights.tensors) values += tensor.numel();
  for (const auto& [precision, bytes] : {std::pair{Precision::bf16, 2.0}, {Precision::int8, 1.0}}) {
    Vit vit(config, weights, {.image_size = {16, 16}});
    EXPECT_EQ(vit.size().values, values);
    vit.to(at::kCPU, precision);
    vit.set_trainable(false);
    EXPECT_EQ(vit.size().values, values);
    EXPECT_LT(static_cast<double>(vit.size().bytes), 1.25 * bytes * static_cast<double>(values));
    EXPECT_EQ(vit.parameters().size(), weights.tensors.size() - 8 * 3);
  }
}

TEST(PackedVit, ATrainableOneKeepsItsWeightsAsTheyAre) {
  const VitConfig config = small_vit();
  const TensorMap weights = Vit::random_weights(config, 3);
  Vit vit(config, weights, {.image_size = {16, 16}});
  vit.to(at::kCPU, Precision::f32);
  vit.set_trainable(true);
  EXPECT_EQ(vit.parameters().size(), weights.tensors.size());
}

}  // namespace
}  // namespace convpass
