#pragma once

#include <cstdint>

/// A whole Convpass bypass of one image, forward and backward, on one thread: the tokens are read
/// and the residual is written once. Plain memory, any vector unit; sums are in float32.
namespace convpass::kernels {

/// Tokens: `prefix` ones, then height x width patches. h = hidden; dim a multiple of 16.
struct BypassShape {
  int64_t prefix = 1, height = 14, width = 14, dim = 768, hidden = 8;
  int64_t tokens() const { return prefix + height * width; }
  bool operator==(const BypassShape&) const = default;
};

/// All float32. The convolution's taps lie as [3, 3, h in, h out]; `up` is transposed, and it and
/// its bias hold the constant scale of the bypass.
struct BypassWeights {
  const float *down = nullptr, *down_bias = nullptr;  ///< [h, dim], [h]
  const float *taps = nullptr, *taps_bias = nullptr;  ///< [9, h, h], [h]
  const float *up = nullptr, *up_bias = nullptr;      ///< [h, dim], [dim]
};

/// What the backward pass reads again, float32 [tokens, h] each: what goes into both QuickGELUs,
/// and the dropout's factors (null without).
struct BypassState {
  float *before_conv = nullptr, *after_conv = nullptr;
  const float* dropout = nullptr;
};

/// Gradients, shaped as BypassWeights; each is overwritten.
struct BypassGradients {
  float *down = nullptr, *down_bias = nullptr, *taps = nullptr, *taps_bias = nullptr;
  float *up = nullptr, *up_bias = nullptr;
};

/// sum += factor * bypass(normed), both `[tokens, dim]` of float or bfloat16 (as uint16_t).
template <class Element>
void bypass(const BypassShape& shape, const BypassWeights& weights, const Element* normed,
            float factor, const BypassState& state, Element* sum);

/// From the gradient of the sum that of normed (overwritten; null: not wanted) and of the weights.
template <class Element>
void bypass_back(const BypassShape& shape, const BypassWeights& weights, const Element* normed,
                 float factor, const BypassState& state, const Element* grad_sum,
                 Element* grad_normed, const BypassGradients& grad);

}  // namespace convpass::kernels
