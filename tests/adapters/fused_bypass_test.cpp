// The fused Convpass against the plain form, which stays the reference.
#include "adapters/fused_bypass.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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
    at::Tensor out, grad_sum, grad_normed;
    std::vector<at::Tensor> grads;
  };

  /// One pass forward and backward, training (dropout, stochastic depth) from a fixed seed.
  Outcome run(at::ScalarType type, bool fused) const {
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
    // A part of a longer sequence, as in a ViT's last block.
    at::Tensor longer = normal({3, tokens + 2, c.dim}, 2).to(type).set_requires_grad(true);
    const at::Tensor normed = longer.narrow(1, 0, tokens), sum = stream * 1;
    const Pass pass{seeded_generator(5)};
    const Adapter::Residual residual{sum, normed, c.drop_rate};
    Outcome outcome;
    outcome.out = fused ? adapter.add_beside(0, Site::attn, residual, c.layout, pass)
                        : adapter.Adapter::add_beside(0, Site::attn, residual, c.layout, pass);
    outcome.out.backward(normal(outcome.out.sizes(), 3).to(type));
    outcome.out = outcome.out.detach();
    outcome.grad_sum = stream.grad();
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
  const Outcome plain = run(at::kFloat, false), fused = run(at::kFloat, true);
  EXPECT_LT(relative_error(fused.out, plain.out), 1e-6);
  EXPECT_TRUE(at::equal(fused.grad_sum, plain.grad_sum));
  EXPECT_LT(relative_error(fused.grad_normed, plain.grad_normed), 1e-6);
  for (size_t i = 0; i < plain.grads.size(); ++i)
    EXPECT_LT(relative_error(fused.grads[i], plain.grads[i]), 2e-6) << i;
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

INSTANTIATE_TEST_SUITE_P(
    Shapes, FusedBypass,
    ::testing::Values(Case{{1, 4, 4}, 32, 8, 0, 0}, Case{{1, 14, 14}, 192, 8, 0.1, 0.5},
                      Case{{5, 3, 7}, 64, 1, 0.3, 0}, Case{{0, 2, 5}, 144, 3, 0, 0.5},
                      Case{{2, 0, 0}, 48, 12, 0.1, 0}, Case{{1, 1, 1}, 16, 31, 0, 0},
                      Case{{1, 5, 4}, 64, 64, 0.1, 0.3}));

TEST(FreshConvpass, ChangesNoBitOfTheStream) {
  Convpass adapter({.sites = {"mlp"}}, TokensOf(64), 1);
  adapter.to(at::kCPU);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor stream = normal({2, 17, 64}, 1).to(type);
    const at::Tensor out =
        adapter.add_beside(0, Site::mlp, {stream.clone(), normal({2, 17, 64}, 2).to(type), 0.5},
                           {1, 4, 4}, Pass{seeded_generator(3)});
    EXPECT_TRUE(at::equal(out, stream));
  }
}

}  // namespace
}  // namespace convpass
