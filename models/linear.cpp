#include "models/linear.h"

#include <ATen/ATen.h>

namespace convpass {

at::Tensor Linear::forward(const at::Tensor& input) const {
  if (packed) return packed->forward(input);
  return at::linear(input, weight, bias.defined() ? std::make_optional(bias) : std::nullopt);
}

at::Tensor Linear::forward_rows(const at::Tensor& input, int64_t first, int64_t count) const {
  if (packed) return packed->forward(input, first, count);
  return at::linear(
      input, weight.narrow(0, first, count),
      bias.defined() ? std::make_optional(bias.narrow(0, first, count)) : std::nullopt);
}

void Linear::pack(Precision precision) {
  if (packed || PackedLinear::unsupported(precision) || !PackedLinear::fits(weight)) return;
  packed = c10::make_intrusive<PackedLinear>(weight, bias, precision);
  weight = at::Tensor();
  bias = at::Tensor();
}

}  // namespace convpass
