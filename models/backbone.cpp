#include "convpass/models/backbone.h"

#include <ATen/core/Tensor.h>

#include "convpass/core/error.h"

namespace convpass {

Backbone::Size Backbone::size() const {
  Size total;
  for (const auto& [name, tensor] : parameters()) {
    total.values += tensor.numel();
    total.bytes += static_cast<int64_t>(tensor.nbytes());
  }
  return total;
}

at::Tensor Backbone::stem(const at::Tensor& images, const Adapter* adapter) const {
  TORCH_CHECK(has_stem(adapter), "an adapter that reaches down to the images");
  return forward(images, nullptr, Pass{});
}

at::Tensor Backbone::after_stem(const at::Tensor& stem, const Adapter*, const Pass&) const {
  return stem;
}

void Backbone::refuse_int8(Precision precision) const {
  if (precision == Precision::int8)
    throw Error(
        "precision: got int8, wanted auto, bf16 or f32: it is for vision transformers, this is " +
        describe());
}

void Backbone::refuse_trainable_int8(Precision precision) {
  if (precision == Precision::int8)
    throw Error("precision: got int8 with a trainable backbone, wanted auto, bf16 or f32");
}

void Backbone::compute_in(Precision precision) {
  refuse_trainable_int8(precision);
  if (precision == Precision::bf16)
    throw Error(
        "precision: got bf16 with a trainable backbone, wanted f32 (auto means bf16 on this "
        "device): " +
        describe() + " trains in float32 alone");
}

}  // namespace convpass
