#include "adapters/bypass_kernels.h"

#include <algorithm>
#include <type_traits>

#include "adapters/token_products.h"
#include "adapters/vectors.h"
#include "src/core/widest_vectors.h"

namespace convpass::kernels {
namespace {

/// planes = quick_gelu(before)
CONVPASS_WIDEST_FUSED_VECTORS void activate(const float* before, int64_t size, float* planes) {
  for (int64_t i = 0; i < size; i += kLanes) store(planes + i, quick_gelu(load(before + i)));
}
/// change *= factor * the slope of quick_gelu at `before`
CONVPASS_WIDEST_FUSED_VECTORS void activate_back(const float* before, int64_t size, float factor,
                                                 float* change) {
  for (int64_t i = 0; i < size; i += kLanes)
    store(change + i, load(change + i) * factor * quick_gelu_slope(load(before + i)));
}

/// Of a tap, how far its input lies from its output.
int64_t reach(const BypassShape& shape, int64_t tap) {
  return (tap / 3 - 1) * shape.pitch() + tap % 3 - 1;
}
int64_t grid_end(const BypassShape& shape) {
  return shape.grid_begin() + shape.height * shape.pitch();
}

/// out[j] = bias[j] + sum over taps and i of taps[tap, i, j] in[i, shifted], planes both, for
/// kCount values of j. A prefix token meets itself alone, under the centre tap.
template <int kCount>
CONVPASS_INLINE void convolve(const BypassShape& shape, const float* in, const float* taps,
                              const float* bias, float* out, int64_t j) {
  const int64_t h = shape.hidden, plane = shape.plane();
  const float* centre = taps + 4 * h * h;
  for (int64_t t = 0; t < shape.prefix; ++t)
    for (int c = 0; c < kCount; ++c) {
      float sum = bias == nullptr ? 0.0f : bias[j + c];
      for (int64_t i = 0; i < h; ++i) sum += in[i * plane + t] * centre[i * h + j + c];
      out[(j + c) * plane + t] = sum;
    }
  for (int64_t p = shape.grid_begin(); p < grid_end(shape); p += 2 * kLanes) {
    Vector sums[kCount][2] = {};
    if (bias != nullptr)
#pragma GCC unroll 8
      for (int c = 0; c < kCount; ++c) sums[c][0] = sums[c][1] = all(bias[j + c]);
    for (int64_t tap = 0; tap < 9; ++tap) {
      const float* from = in + p + reach(shape, tap);
      const float* weight = taps + tap * h * h + j;
      for (int64_t i = 0; i < h; ++i) {
        const Vector x = load(from + i * plane), y = load(from + i * plane + kLanes);
#pragma GCC unroll 8
        for (int c = 0; c < kCount; ++c) {
          const Vector w = all(weight[i * h + c]);
          sums[c][0] += x * w;
          sums[c][1] += y * w;
        }
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      store(out + (j + c) * plane + p, sums[c][0]);
      store(out + (j + c) * plane + p + kLanes, sums[c][1]);
    }
  }
}

CONVPASS_WIDEST_FUSED_VECTORS void convolve_all(const BypassShape& shape, const float* in,
                                                const float* taps, const float* bias, float* out) {
  in_chunks<4>(
      shape.hidden, [&](auto count, int64_t j) __attribute__((always_inline)) {
        convolve<decltype(count)::value>(shape, in, taps, bias, out, j);
      });
}

/// grad[tap, i, j] = sum over p of in[i, shifted] change[j, p], for kCount values of j.
template <int kCount>
CONVPASS_INLINE void convolve_weights(const BypassShape& shape, const float* in,
                                      const float* change, float* grad, int64_t j) {
  const int64_t h = shape.hidden, plane = shape.plane();
  for (int64_t tap = 0; tap < 9; ++tap)
    for (int64_t i = 0; i < h; ++i) {
      const float* from = in + i * plane + reach(shape, tap);
      Vector sums[kCount] = {};
      for (int64_t p = shape.grid_begin(); p < grid_end(shape); p += kLanes) {
        const Vector x = load(from + p);
#pragma GCC unroll 8
        for (int c = 0; c < kCount; ++c) sums[c] += x * load(change + (j + c) * plane + p);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kCount; ++c) grad[(tap * h + i) * h + j + c] = total(sums[c]);
    }
  float* centre = grad + 4 * h * h;
  for (int64_t i = 0; i < h; ++i)
    for (int64_t c = j; c < j + kCount; ++c)
      for (int64_t t = 0; t < shape.prefix; ++t)
        centre[i * h + c] += in[i * plane + t] * change[c * plane + t];
}

CONVPASS_WIDEST_FUSED_VECTORS void convolve_all_weights(const BypassShape& shape, const float* in,
                                                        const float* change, float* grad) {
  in_chunks<8>(
      shape.hidden, [&](auto count, int64_t j) __attribute__((always_inline)) {
        convolve_weights<decltype(count)::value>(shape, in, change, grad, j);
      });
}

/// sums[j] of each plane
CONVPASS_WIDEST_FUSED_VECTORS void sum_planes(const BypassShape& shape, const float* planes,
                                              float* sums) {
  for (int64_t j = 0; j < shape.hidden; ++j, planes += shape.plane()) {
    Vector sum = {};
    for (int64_t p = 0; p < shape.plane(); p += kLanes) sum += load(planes + p);
    sums[j] = total(sum);
  }
}

/// Zero wherever no token lies: what the convolution counts on, and so do sums over planes.
void clear_between(const BypassShape& shape, float* planes) {
  for (int64_t j = 0; j < shape.hidden; ++j, planes += shape.plane()) {
    std::fill(planes + shape.prefix, planes + shape.grid_begin(), 0.0f);
    for (int64_t p = shape.grid_begin() + shape.width; p < grid_end(shape); p += shape.pitch())
      planes[p] = 0;
    std::fill(planes + grid_end(shape), planes + shape.plane(), 0.0f);
  }
}

void drop(const BypassPlan& plan, const float* dropout, float* planes) {
  if (dropout == nullptr) return;
  const int64_t h = plan.shape.hidden, plane = plan.shape.plane();
  for (int32_t slot : plan.slots)
    for (int64_t j = 0; j < h; ++j) planes[j * plane + slot] *= *dropout++;
}

// The products with the tokens by the instructions that the plan names.

template <class Element>
void dots(const BypassPlan& plan, const Element* rows, const Projection& weight, float* planes) {
  if constexpr (std::is_same_v<Element, uint16_t>)
    if (plan.instructions == Instructions::avx512_bf16)
      return avx512::token_dots(plan, rows, weight, planes);
  token_dots(plan, rows, weight, planes);
}
template <class Element>
void add(const BypassPlan& plan, const float* planes, const Projection& weight, float factor,
         const ResidualSum<Element>& sum, BypassScratch& scratch) {
  if constexpr (std::is_same_v<Element, uint16_t>)
    if (plan.instructions == Instructions::avx512_bf16)
      return avx512::add_combined(plan, planes, weight, factor, sum, scratch.pairs);
  add_combined(plan, planes, weight, factor, sum);
}
template <class Element>
void outer(const BypassPlan& plan, const float* planes, const Element* rows, float* weight,
           float* total, BypassScratch& scratch) {
  if constexpr (std::is_same_v<Element, uint16_t>)
    if (plan.instructions == Instructions::avx512_bf16)
      return avx512::token_outer(plan, planes, rows, weight, total, scratch.pairs);
  token_outer(plan, planes, rows, weight, total);
}

}  // namespace

template <>
Instructions best_instructions<float>() {
  return Instructions::any;
}
template <>
Instructions best_instructions<uint16_t>() {
  return avx512::supported() ? Instructions::avx512_bf16 : Instructions::any;
}

BypassPlan::BypassPlan(const BypassShape& of, const BypassWeights& with, Instructions by)
    : shape(of), weights(with), instructions(by) {
  for (int64_t t = 0; t < shape.tokens(); ++t) slots.push_back(static_cast<int32_t>(shape.slot(t)));
}

template <class Element>
void bypass_down(const BypassPlan& plan, const Element* normed, float* before_conv) {
  const BypassShape& shape = plan.shape;
  dots(plan, normed, plan.weights.down, before_conv);
  for (int64_t j = 0; j < shape.hidden; ++j) {
    float* plane = before_conv + j * shape.plane();
    const float bias = plan.weights.down.bias[j];
    for (int64_t p = 0; p < shape.plane(); ++p) plane[p] += bias;
  }
  clear_between(shape, before_conv);
}

template <class Element>
void bypass_up(const BypassPlan& plan, const BypassState& state, float factor,
               const ResidualSum<Element>& sum, BypassScratch& scratch) {
  const BypassShape& shape = plan.shape;
  const BypassWeights& weights = plan.weights;
  const int64_t size = shape.hidden * shape.plane();
  scratch.first.resize(static_cast<size_t>(size));
  float* planes = scratch.first.data();
  activate(state.before_conv, size, planes);
  convolve_all(shape, planes, weights.taps, weights.taps_bias, state.after_conv);
  clear_between(shape, state.after_conv);
  activate(state.after_conv, size, planes);
  drop(plan, state.dropout, planes);
  add(plan, planes, weights.up, factor, sum, scratch);
}

template <class Element>
void bypass_up_back(const BypassPlan& plan, const BypassState& state, float factor,
                    const Element* grad_sum, const BypassGradients& grad, BypassScratch& scratch) {
  const BypassShape& shape = plan.shape;
  const BypassWeights& weights = plan.weights;
  const int64_t h = shape.hidden, size = h * shape.plane();
  scratch.first.resize(static_cast<size_t>(size));
  scratch.second.resize(static_cast<size_t>(size));
  float *planes = scratch.first.data(), *change = scratch.second.data();

  // Through the last projection.
  dots(plan, grad_sum, weights.up, change);
  clear_between(shape, change);
  drop(plan, state.dropout, change);
  activate_back(state.after_conv, size, factor, change);
  activate(state.after_conv, size, planes);
  drop(plan, state.dropout, planes);
  outer(plan, planes, grad_sum, grad.up, grad.up_bias, scratch);
  for (int64_t i = 0; i < h * shape.dim; ++i) grad.up[i] *= factor;
  for (int64_t d = 0; d < shape.dim; ++d) grad.up_bias[d] *= factor;

  // Through the convolution.
  sum_planes(shape, change, grad.taps_bias);
  activate(state.before_conv, size, planes);
  convolve_all_weights(shape, planes, change, grad.taps);
  convolve_all(shape, change, weights.taps_back, nullptr, grad.before_conv);
  clear_between(shape, grad.before_conv);
  activate_back(state.before_conv, size, 1, grad.before_conv);
}

template <class Element>
void bypass_down_back(const BypassPlan& plan, const Element* normed, Element* grad_normed,
                      const BypassGradients& grad, BypassScratch& scratch) {
  sum_planes(plan.shape, grad.before_conv, grad.down_bias);
  outer(plan, grad.before_conv, normed, grad.down, static_cast<float*>(nullptr), scratch);
  if (grad_normed == nullptr) return;
  Projection down = plan.weights.down;
  down.bias = nullptr;
  add(plan, grad.before_conv, down, 1,
      ResidualSum<Element>{.stream = grad_normed, .sum = grad_normed}, scratch);
}

template void bypass_down(const BypassPlan&, const float*, float*);
template void bypass_down(const BypassPlan&, const uint16_t*, float*);
template void bypass_up(const BypassPlan&, const BypassState&, float, const ResidualSum<float>&,
                        BypassScratch&);
template void bypass_up(const BypassPlan&, const BypassState&, float, const ResidualSum<uint16_t>&,
                        BypassScratch&);
template void bypass_up_back(const BypassPlan&, const BypassState&, float, const float*,
                             const BypassGradients&, BypassScratch&);
template void bypass_up_back(const BypassPlan&, const BypassState&, float, const uint16_t*,
                             const BypassGradients&, BypassScratch&);
template void bypass_down_back(const BypassPlan&, const float*, float*, const BypassGradients&,
                               BypassScratch&);
template void bypass_down_back(const BypassPlan&, const uint16_t*, uint16_t*,
                               const BypassGradients&, BypassScratch&);

}  // namespace convpass::kernels
