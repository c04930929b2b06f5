#include "models/linear.h"

#include <ATen/ATen.h>

#include "convpass/core/error.h"
#include "convpass/models/layers.h"

namespace convpass {
namespace {

at::Tensor product(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(input, weight_for(input, weight),
                    bias.defined() ? std::make_optional(weight_for(input, bias)) : std::nullopt);
}

}  // namespace

at::Tensor Linear::forward(const at::Tensor& input) const {
  return packed ? packed->forward(input) : product(input, weight, bias);
}

at::Tensor Linear::forward_rows(const at::Tensor& input, int64_t first, int64_t count) const {
  if (packed) return packed->forward(input, first, count);
  return product(input, weight.narrow(0, first, count),
                 bias.defined() ? bias.narrow(0, first, count) : bias);
}

void Linear::pack(Precision precision) {
  if (packed || PackedLinear::unsupported(precision) || !PackedLinear::fits(weight)) return;
  packed = c10::make_intrusive<PackedLinear>(weight, bias, precision);
  weight = at::Tensor();
  bias = at::Tensor();
}

void require_kernels(c10::Device device, Precision precision) {
  if (precision != Precision::int8) return;
  const auto missing = device.is_cpu() ? PackedLinear::unsupported(precision)
                                       : std::optional<std::string>("it is a CPU's precision");
  if (missing) throw Error("precision: got int8, wanted auto, bf16 or f32: " + *missing);
}

}  // namespace convpass
