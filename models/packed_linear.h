#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/util/intrusive_ptr.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "convpass/core/device.h"
#include "convpass/models/vit.h"
#include "models/gemm_kernels.h"

namespace convpass {

/// A frozen dense layer as the CPU's matrix instructions want it: its weight is held once for each
/// direction that is used, in bfloat16 or as int8 with one scale an output channel. Inputs and
/// outputs are bfloat16; with int8 each token is quantised on the way, symmetrically and with a
/// scale of its own. The backward pass yields the gradient of the input alone; nothing is saved
/// for it.
class PackedLinear : public torch::CustomClassHolder {
 public:
  /// Why this machine has no kernels for `precision` (bf16 or int8), or nothing when it has.
  static std::optional<std::string> unsupported(Precision precision);
  /// Whether a weight `[out, in]` can be packed: both sides multiples of 4.
  static bool fits(const at::Tensor& weight);

  /// weight `[out, in]` and bias `[out]` (or undefined), any float type.
  PackedLinear(const at::Tensor& weight, const at::Tensor& bias, Precision precision);

  /// `[.., in]` to `[.., count]`: the output channels [first, first + count).
  at::Tensor forward(const at::Tensor& input, int64_t first, int64_t count) const;
  at::Tensor forward(const at::Tensor& input) const { return forward(input, 0, out_); }

  int64_t values() const;  ///< of weight and bias
  int64_t bytes() const;   ///< as held now
  int64_t out() const { return out_; }
  int64_t in() const { return in_; }

  /// One of the two directions: a product `[M, depth] -> [M, columns]`.
  struct Side {
    at::Tensor panels;  ///< uint8, kernels::Product::weight
    int64_t depth = 0, columns = 0;
    at::Tensor column_scale;  ///< float32 [columns], forward int8 alone
    /// int32 [columns], int8 alone: 128 times the sum over the depth, or over a part of it.
    std::map<std::pair<int64_t, int64_t>, at::Tensor> column_offsets{};
    at::Tensor input_factor;  ///< float32 [depth], backward int8 alone
  };
  struct Finishing {
    kernels::Finish finish = kernels::Finish::none;
    at::Tensor slope{};  ///< uint8 [M, columns], contiguous: see kernels::Product::slope
  };
  /// input `[M, in]` bfloat16, its last dimension dense, to out `[M, out]` (a view of bfloat16).
  at::Tensor multiply(const at::Tensor& input, const Finishing& finishing) const;
  /// grad `[M, out]` bfloat16 to the gradient of the input `[M, in]`.
  at::Tensor multiply_back(const at::Tensor& grad, const Finishing& finishing) const;
  /// The same of the output channels [first, first + count) alone.
  at::Tensor multiply_rows(const at::Tensor& input, int64_t first, int64_t count) const;
  at::Tensor multiply_back_rows(const at::Tensor& grad, int64_t first, int64_t count) const;

 private:
  Side& backward() const;
  /// Made when first asked for, of the inputs [first, first + count) of a side.
  at::Tensor column_offset(Side& side, int64_t first, int64_t count) const;
  at::Tensor run(Side& side, const at::Tensor& input, int64_t first_group, int64_t first_panel,
                 int64_t columns, bool with_bias, const Finishing& finishing) const;

  kernels::Element element_;
  int64_t out_ = 0, in_ = 0;
  at::Tensor bias_;  ///< float32 [out] or undefined
  mutable Side forward_;
  mutable Side backward_;  ///< made when first asked for
  mutable std::once_flag backward_made_;
  mutable std::mutex offsets_mutex_;
};

/// fc2(activation(fc1(x))), x `[.., in]` bfloat16, of two frozen layers; SwiGLU is not among the
/// activations. All that is saved for the backward pass is the activation's slope.
at::Tensor packed_mlp(const at::Tensor& x, const c10::intrusive_ptr<PackedLinear>& fc1,
                      const c10::intrusive_ptr<PackedLinear>& fc2, Activation activation);

}  // namespace convpass
