#pragma once

#include <ATen/core/Tensor.h>

#include "convpass/models/backbone.h"

namespace convpass {

/// The float32 parameters of one Convpass bypass: down `[h, D]`, `[h]`; conv `[h, h, 3, 3]`, `[h]`;
/// up `[D, h]`, `[D]`.
struct BypassParameters {
  at::Tensor down_weight, down_bias, conv_weight, conv_bias, up_weight, up_bias;
};

/// What a pass drew for one bypass: dropout factors `[B, N, h]` and those of stochastic depth
/// `[B]`, float32 both, undefined without.
struct BypassDraws {
  at::Tensor dropout, depth;
};

/// Whether the fused form computes with such tokens: on the CPU, float32 or bfloat16, a width that
/// fills whole vectors.
bool can_fuse_bypass(const at::Tensor& normed);

/// sum + depth * scale * bypass(normed), in place of `sum`: one pass over the tokens forward and
/// one backward, in float32 inside; both `[B, N, D]`.
at::Tensor add_fused_bypass(const at::Tensor& sum, const at::Tensor& normed,
                            const BypassParameters& parameters, double scale,
                            const TokenLayout& layout, const BypassDraws& draws);

}  // namespace convpass
