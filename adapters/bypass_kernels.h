#pragma once

#include <cstdint>
#include <vector>

/// A Convpass bypass of one image, forward and backward, on one thread. Plain memory; sums are in
/// float32. What is hidden lies in planes, so that the convolution and the activations go over
/// whole vectors whatever h is.
namespace convpass::kernels {

/// Tokens: `prefix` ones, then height x width patches. h = hidden; dim a multiple of 16.
struct BypassShape {
  int64_t prefix = 1, height = 14, width = 14, dim = 768, hidden = 8;
  int64_t tokens() const { return prefix + height * width; }
  bool operator==(const BypassShape&) const = default;

  /// A plane holds one hidden value of every token: the prefix tokens', then the grid's, in rows of
  /// `pitch` slots whose last is zero, between zeros enough for a 3x3 window and a whole vector.
  int64_t pitch() const { return width + 1; }
  int64_t grid_begin() const { return prefix + pitch() + 1; }
  int64_t plane() const { return (grid_begin() + (height + 1) * pitch() + 1 + 31) / 16 * 16; }
  int64_t slot(int64_t token) const {
    if (token < prefix) return token;
    const int64_t patch = token - prefix;
    return grid_begin() + patch / width * pitch() + patch % width;
  }
};

/// A projection between tokens and hidden values, `[h, dim]`, with the bias of what it yields (null
/// without). What is read depends on the instructions: the float32 rows, or of bfloat16 the rows
/// where hidden values are made, the pairs where tokens are.
struct Projection {
  const float *rows = nullptr, *bias = nullptr;
  const uint16_t* halves = nullptr;
  /// [h / 2 rounded up, dim]: two rows' bfloat16, the first in the low half.
  const uint32_t* pairs = nullptr;
};

/// The convolution's taps lie as [3, 3, h in, h out]; `up` is transposed, and it and its bias hold
/// the constant scale of the bypass.
struct BypassWeights {
  Projection down{}, up{};
  const float *taps = nullptr, *taps_bias = nullptr;
  const float* taps_back = nullptr;  ///< [3, 3, h out, h in], turned by half: of bypass_up_back
};

/// What goes into both QuickGELUs, h planes each, and the dropout's factors [tokens, h] (null
/// without).
struct BypassState {
  const float* before_conv = nullptr;
  float* after_conv = nullptr;
  const float* dropout = nullptr;
};

/// Gradients, shaped as the float32 weights, and of what goes into the first QuickGELU, h planes;
/// each is overwritten.
struct BypassGradients {
  float *down = nullptr, *down_bias = nullptr, *taps = nullptr, *taps_bias = nullptr;
  float *up = nullptr, *up_bias = nullptr, *before_conv = nullptr;
};

/// The residual stream `[tokens, dim]`, what the branch adds to it (null: nothing), and where the
/// sum of all goes, which may be either of them.
template <class Element>
struct ResidualSum {
  const Element *stream = nullptr, *branch = nullptr;
  Element* sum = nullptr;
};

/// Which instructions the products with the tokens use.
enum class Instructions : uint8_t { any, avx512_bf16 };
/// The best that this CPU has for tokens of this type, float or bfloat16 (as uint16_t).
template <class Element>
Instructions best_instructions();

/// What all images and threads share.
struct BypassPlan {
  BypassPlan(const BypassShape& shape, const BypassWeights& weights, Instructions instructions);
  BypassShape shape;
  BypassWeights weights;
  Instructions instructions;
  std::vector<int32_t> slots;  ///< of each token
};

/// Memory of one thread.
struct BypassScratch {
  std::vector<float> first, second;
  std::vector<uint32_t> pairs;
};

/// What goes into the first QuickGELU, h planes, from the tokens `[tokens, dim]`.
template <class Element>
void bypass_down(const BypassPlan& plan, const Element* normed, float* before_conv);
/// The rest: sum = stream + branch + factor * it; fills state.after_conv.
template <class Element>
void bypass_up(const BypassPlan& plan, const BypassState& state, float factor,
               const ResidualSum<Element>& sum, BypassScratch& scratch);
/// From the gradient of the sum to those of all but the first projection.
template <class Element>
void bypass_up_back(const BypassPlan& plan, const BypassState& state, float factor,
                    const Element* grad_sum, const BypassGradients& grad, BypassScratch& scratch);
/// From grad.before_conv to the first projection and the tokens, whose gradient is added to
/// grad_normed (null: not wanted).
template <class Element>
void bypass_down_back(const BypassPlan& plan, const Element* normed, Element* grad_normed,
                      const BypassGradients& grad, BypassScratch& scratch);

}  // namespace convpass::kernels
