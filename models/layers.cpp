#include "convpass/models/layers.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

namespace convpass {

at::Generator seeded_generator(uint64_t key) { return at::detail::createCPUGenerator(key); }

at::Tensor Linear::forward(const at::Tensor& input) const {
  return at::linear(input, weight, bias.defined() ? std::make_optional(bias) : std::nullopt);
}

at::Tensor Linear::forward_rows(const at::Tensor& input, int64_t first, int64_t count) const {
  return at::linear(
      input, weight.narrow(0, first, count),
      bias.defined() ? std::make_optional(bias.narrow(0, first, count)) : std::nullopt);
}

at::Tensor LayerNorm::forward(const at::Tensor& input) const {
  return at::layer_norm(input, {weight.size(0)}, weight, bias, eps);
}

at::Tensor quick_gelu(const at::Tensor& input) { return input * at::sigmoid(input * 1.702); }

at::Tensor drop_path_factor(const at::Tensor& branch, double rate, const Pass& pass) {
  if (!pass.training() || rate <= 0) return {};
  const double keep = 1.0 - rate;
  // Drawn on the CPU in float32 whatever the device and precision, so that all see the same draw.
  return at::empty({branch.size(0), 1, 1}, at::kFloat)
      .bernoulli_(keep, pass.random)
      .div_(keep)
      .to(branch.options());
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  at::Tensor out = at::scaled_dot_product_attention(q, k, v);  // [B, H, M, d]
  return out.transpose(1, 2).flatten(2);                       // [B, M, H d]
}

}  // namespace convpass
