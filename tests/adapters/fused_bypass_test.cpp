// The fused Convpass against the plain form, which stays the reference.
#include "adapters/fused_bypass.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "adapters/token_products.h"
#include "convpass/adapters/convpass.h"
#include "tests/adapters/reference.h"

namespace convpass {
namespace {

struct Case {
  TokenLayout layout;
  int64_t dim, hidden;
  double dropout, drop_rate;
};

class TokensOf final : public Backbone {
 public:
  explicit TokensOf(int64_t dim) : dim_(dim) {}
  at::Tensor forward(const at::Tensor& images, const Adapter*, const Pass&) const override {
    return images;
  }
  int64_t feature_dim() const override { return dim_; }
  int64_t depth() const override { return 1; }
  int64_t step_values(const Adapter*, bool) const override { return 0; }
  std::array<int64_t, 2> image_size() const override { return {16, 16}; }
  NamedTensors parameters() const override { return {}; }
  void to(c10::Device, Precision) override {}
  void set_trainable(bool) override {}
  std::string describe() const override { return "tokens"; }

 private:
  int64_t dim_;
};

at::Tensor normal(at::IntArrayRef shape, uint64_t seed, double std = 1) {
  at::Generator generator = seeded_generator(seed);
  return at::empty(shape, at::kFloat).normal_(0, std, generator);
}

class FusedBypass : public ::testing::TestWithParam<Case> {
 protected:
  struct Outcome {
    at::Tensor out, grad_stream, grad_normed;
    std::vector<at::Tensor> grads;
  };
  /// Whether the stream and the branch come as their sum, and whether the branch reads `normed`.
  struct Way {
    bool added = true, through = true;
  };

  /// One pass forward and backward, training (dropout, stochastic depth) from a fixed seed.
  Outcome run(at::ScalarType type, bool fused) const { return run(type, fused, Way{}); }
  Outcome run(at::ScalarType type, bool fused, const Way& way) const {
    const Case& c = GetParam();
    Convpass adapter({.width = c.hidden,
                      .scale = 0.7,
                      .conv_init = ConvInit::xavier,
                      .sites = {"attn"},
                      .dropout = c.dropout},
                     TokensOf(c.dim), 1);
    uint64_t seed = 10;
    for (auto& [name, tensor] : adapter.parameters())
      tensor.copy_(normal(tensor.sizes(), ++seed, 0.2));
    adapter.to(at::kCPU);
    const int64_t tokens = c.layout.tokens();
    at::Tensor stream = normal({3, tokens, c.dim}, 1).to(type).set_requires_grad(true);
    // A longer sequence than the layout's, as in a ViT's last block.
    at::Tensor longer = normal({3, tokens + 2, c.dim}, 2).to(type).set_requires_grad(true);
    const Pass pass{seeded_generator(5)};
    at::Tensor normed = longer * 1;
    const at::Tensor begun =
        fused ? adapter.begin_beside(0, Site::attn, normed, c.layout) : at::Tensor();
    const at::Tensor branch =
        way.through ? (normed * 0.5).narrow(1, 0, tokens) : at::zeros_like(stream);
    const Adapter::Residual residual{way.added ? stream + branch : stream,
                                     way.added ? at::Tensor() : branch, normed.narrow(1, 0, tokens),
                                     begun, c.drop_rate};
    Outcome outcome;
    outcome.out = adapter.add_beside(0, Site::attn, residual, c.layout, pass);
    outcome.out.backward(normal(outcome.out.sizes(), 3).to(type));
    outcome.out = outcome.out.detach();
    outcome.grad_stream = stream.grad();
    outcome.grad_normed = longer.grad();
    for (auto& [name, tensor] : adapter.parameters()) outcome.grads.push_back(tensor.grad());
    return outcome;
  }
};

double relative_error(const at::Tensor& got, const at::Tensor& wanted) {
  const at::Tensor exact = wanted.to(at::kDouble);
  return ((got.to(at::kDouble) - exact).norm() / exact.norm().clamp_min(1e-30)).item<double>();
}

TEST_P(FusedBypass, EqualsThePlainFormInFloat32) {
  for (const bool added : {false, true})
    for (const bool through : {false, true}) {
      const Way way{added, through};
      const Outcome plain = run(at::kFloat, false, way), fused = run(at::kFloat, true, way);
      EXPECT_LT(relative_error(fused.out, plain.out), 1e-6);
      EXPECT_TRUE(at::equal(fused.grad_stream, plain.grad_stream));
      EXPECT_LT(relative_error(fused.grad_normed, plain.grad_normed), 1e-6);
      for (size_t i = 0; i < plain.grads.size(); ++i)
        EXPECT_LT(relative_error(fused.grads[i], plain.grads[i]), 2e-6) << i;
    }
}

TEST_P(FusedBypass, IsNearerToFloat32ThanThePlainFormInBfloat16) {
  const Outcome exact = run(at::kFloat, false), plain = run(at::kBFloat16, false),
                fused = run(at::kBFloat16, true);
  EXPECT_LT(relative_error(fused.out, exact.out), 1.05 * relative_error(plain.out, exact.out));
  EXPECT_LT(relative_error(fused.grad_normed, exact.grad_normed),
            1.05 * relative_error(plain.grad_normed, exact.grad_normed));
  for (size_t i = 0; i < plain.grads.size(); ++i)
    EXPECT_LT(relative_error(fused.grads[i], exact.grads[i]),
              1.05 * relative_error(plain.grads[i], exact.grads[i]) + 3e-3)
        << i;
}

TEST_P(FusedBypass, GivesTheSameBitsOnAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    at::set_num_threads(1);
    const Outcome one = run(type, true);
    at::set_num_threads(3);
    const Outcome three = run(type, true);
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(one.out, three.out));
    EXPECT_TRUE(at::equal(one.grad_normed, three.grad_normed));
    for (size_t i = 0; i < one.grads.size(); ++i)
      EXPECT_TRUE(at::equal(one.grads[i], three.grads[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, FusedBypass,
    ::testing::Values(Case{{1, 4, 4}, 32, 8, 0, 0}, Case{{1, 14, 14}, 192, 8, 0.1, 0.5},
                      Case{{5, 3, 7}, 64, 1, 0.3, 0}, Case{{0, 2, 5}, 144, 3, 0, 0.5},
                      Case{{2, 0, 0}, 48, 12, 0.1, 0}, Case{{1, 1, 1}, 16, 31, 0, 0},
                      Case{{1, 5, 4}, 64, 64, 0.1, 0.3}));

TEST(FusedBypassAlone, LeavesAGradientAloneThatOthersHold) {
  Convpass adapter({.sites = {"attn"}}, TokensOf(32), 1);
  for (auto& [name, tensor] : adapter.parameters()) tensor.normal_(0, 0.2, seeded_generator(1));
  adapter.to(at::kCPU);
  const TokenLayout layout{1, 4, 4};
  at::Tensor tokens = normal({2, 17, 32}, 1).set_requires_grad(true);
  at::Tensor normed = tokens * 1;
  const at::Tensor begun = adapter.begin_beside(0, Site::attn, normed, layout);
  const at::Tensor out = adapter.add_beside(
      0, Site::attn, {normal({2, 17, 32}, 2), at::Tensor(), normed, begun, 0}, layout, Pass{});
  // The same gradient reaches `normed` and is the caller's, too.
  const at::Tensor given = normal({2, 17, 32}, 3), before = given.clone();
  torch::autograd::backward({normed, out}, {given, given});
  EXPECT_TRUE(at::equal(given, before));
  EXPECT_FALSE(at::equal(tokens.grad(), before));
}

TEST(FreshConvpass, ChangesNoBitOfTheStream) {
  Convpass adapter({.sites = {"mlp"}}, TokensOf(64), 1);
  adapter.to(at::kCPU);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor stream = normal({2, 17, 64}, 1).to(type);
    at::Tensor normed = normal({2, 17, 64}, 2).to(type);
    const at::Tensor begun = adapter.begin_beside(0, Site::mlp, normed, {1, 4, 4});
    const at::Tensor out =
        adapter.add_beside(0, Site::mlp, {stream.clone(), at::Tensor(), normed, begun, 0.5},
                           {1, 4, 4}, Pass{seeded_generator(3)});
    EXPECT_TRUE(at::equal(out, stream));
  }
}

/// The products with the tokens, by AVX512's bfloat16 instructions where the CPU has them.
TEST(TokenProducts, AreTheSameByAllInstructions) {
  using namespace kernels;
  if (best_instructions<uint16_t>() == Instructions::any) GTEST_SKIP() << "no AVX512_BF16";
  for (const int64_t h : {1, 3, 8, 13, 64}) {
    const BypassShape shape{.prefix = 1, .height = 3, .width = 5, .dim = 80, .hidden = h};
    const int64_t n = shape.tokens();
    const at::Tensor rows = normal({n, shape.dim}, 1).to(at::kBFloat16),
                     weight = normal({h, shape.dim}, 2).to(at::kBFloat16).to(at::kFloat),
                     planes = normal({h, shape.plane()}, 3).to(at::kBFloat16).to(at::kFloat);
    const at::Tensor halves = weight.to(at::kBFloat16),
                     pairs = at::constant_pad_nd(halves, {0, 0, 0, h % 2})
                                 .view({-1, 2, shape.dim})
                                 .transpose(1, 2)
                                 .contiguous();
    const auto* tokens = static_cast<const uint16_t*>(rows.const_data_ptr());
    const Projection projection{.rows = weight.const_data_ptr<float>(),
                                .halves = static_cast<const uint16_t*>(halves.const_data_ptr()),
                                .pairs = static_cast<const uint32_t*>(pairs.const_data_ptr())};
    const BypassPlan plan(shape, {.down = projection}, Instructions::any);
    std::vector<uint32_t> scratch;
    at::Tensor dots[2], outer[2], total[2], sum[2];
    for (const bool avx512 : {false, true}) {
      dots[avx512] = at::zeros_like(planes);
      outer[avx512] = at::zeros_like(weight);
      total[avx512] = at::zeros({shape.dim});
      sum[avx512] = rows.clone();
      auto* to = static_cast<uint16_t*>(sum[avx512].data_ptr());
      const ResidualSum<uint16_t> residual{tokens, tokens, to};
      const float* hidden = planes.const_data_ptr<float>();
      auto* outer_to = outer[avx512].mutable_data_ptr<float>();
      auto* total_to = total[avx512].mutable_data_ptr<float>();
      if (avx512) {
        kernels::avx512::token_dots(plan, tokens, projection, dots[1].mutable_data_ptr<float>());
        kernels::avx512::add_combined(plan, hidden, projection, 0.5f, residual, scratch);
        kernels::avx512::token_outer(plan, hidden, tokens, outer_to, total_to, scratch);
      } else {
        token_dots(plan, tokens, projection, dots[0].mutable_data_ptr<float>());
        add_combined(plan, hidden, projection, 0.5f, residual);
        token_outer(plan, hidden, tokens, outer_to, total_to);
      }
    }
    EXPECT_LT(relative_error(dots[1], dots[0]), 1e-6);
    EXPECT_LT(relative_error(outer[1], outer[0]), 1e-6);
    EXPECT_LT(relative_error(total[1], total[0]), 1e-6);
    EXPECT_LT(relative_error(sum[1], sum[0]), 1e-3);
  }
}

}  // namespace
}  // namespace convpass
