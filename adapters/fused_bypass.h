#pragma once

#include <ATen/core/Tensor.h>

#include "convpass/models/backbone.h"

/// One Convpass bypass in two steps, one before the branch that it stands beside and one after:
/// each passes over the tokens once forward and once backward, in float32 inside. The gradient of
/// the tokens is added to the branch's in place.
namespace convpass {

/// The float32 parameters up to the first activation: `[h, D]`, `[h]`.
struct BypassBegin {
  at::Tensor down_weight, down_bias;
};

/// The rest: conv `[h, h, 3, 3]`, `[h]`; up `[D, h]`, `[D]`; the constant that multiplies what it
/// yields.
struct BypassEnd {
  at::Tensor conv_weight, conv_bias, up_weight, up_bias;
  double scale = 1;
};

/// What a pass drew for one bypass: dropout factors `[B, N, h]` and those of stochastic depth
/// `[B]`, float32 both, undefined without.
struct BypassDraws {
  at::Tensor dropout, depth;
};

/// Whether the fused form computes with such tokens: on the CPU, float32 or bfloat16, a width that
/// fills whole vectors.
bool can_fuse_bypass(const at::Tensor& normed);

/// What goes into the first activation, as `end_fused_bypass` wants it, of the first tokens of
/// `normed` `[B, .., D]`, which becomes a view of itself that the branch must read.
at::Tensor begin_fused_bypass(at::Tensor& normed, const BypassBegin& parameters,
                              const TokenLayout& layout);

/// residual.stream + residual.branch + depth * scale * bypass; in place of the stream where there
/// is no branch.
at::Tensor end_fused_bypass(const Adapter::Residual& residual, const BypassEnd& parameters,
                            const TokenLayout& layout, const BypassDraws& draws);

}  // namespace convpass
