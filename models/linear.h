#pragma once

#include <ATen/core/Tensor.h>

#include "models/packed_linear.h"

namespace convpass {

/// Dense layer `[.., in] -> [.., out]`, weight `[out, in]`, bias `[out]` or undefined. A frozen one
/// (its tensors require no gradient) keeps neither its input nor a weight gradient: autograd's
/// addmm saves the weight alone, for the gradient that passes through.
struct Linear {
  at::Tensor weight, bias;
  c10::intrusive_ptr<PackedLinear> packed{};  ///< holds both from pack() on

  at::Tensor forward(const at::Tensor& input) const;
  /// Output channels [first, first + count) only.
  at::Tensor forward_rows(const at::Tensor& input, int64_t first, int64_t count) const;
  /// Hands weight and bias over to the CPU's kernels, for good, where there are such for
  /// `precision` and they are faster; else nothing changes.
  void pack(Precision precision);
};

/// Errors: Error for int8 where `device` has no kernels of that precision.
void require_kernels(c10::Device device, Precision precision);

}  // namespace convpass
