#include "adapters/bypass_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "src/core/widest_vectors.h"

namespace convpass::kernels {
namespace {

constexpr int64_t kLanes = 16;
using Vector = float __attribute__((vector_size(64), aligned(4), may_alias));
using Bits = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32), aligned(2), may_alias));

// Force-inlined, so that each copy of a caller gets them for its own vector unit.
#define CONVPASS_INLINE inline __attribute__((always_inline))

CONVPASS_INLINE Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
CONVPASS_INLINE void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
CONVPASS_INLINE Vector load(const uint16_t* from) {
  const Bits bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16;
  Vector value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
/// To the nearest bfloat16, ties to even; NaN stays NaN.
CONVPASS_INLINE void store(uint16_t* to, Vector value) {
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Bits nan = reinterpret_cast<Bits>(value != value);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bits = (nan & 0x7fc0) | (~nan & bits);
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(bits, Halves);
}
CONVPASS_INLINE Vector all(float value) { return Vector{} + value; }
CONVPASS_INLINE float total(Vector value) {
  using Order = int32_t __attribute__((vector_size(64)));
  value += __builtin_shuffle(value, Order{8, 9, 10, 11, 12, 13, 14, 15});
  value += __builtin_shuffle(value, Order{4, 5, 6, 7});
  value += __builtin_shuffle(value, Order{2, 3});
  return value[0] + value[1];
}

float sigmoid(float x) { return 1 / (1 + std::exp(-1.702f * x)); }
float quick_gelu(float x) { return x * sigmoid(x); }
float quick_gelu_slope(float x) {
  const float s = sigmoid(x);
  return s + 1.702f * x * s * (1 - s);
}

/// out[t, j] = sum_d rows[t, d] weight[j, d] for kCount values of j, the rows of all tokens.
template <int kCount, class Element>
CONVPASS_INLINE void dots(const Element* rows, const float* weight, int64_t tokens, int64_t dim,
                          int64_t hidden, float* out) {
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2) {  // two tokens for each load of a weight
    Vector first[kCount] = {}, second[kCount] = {};
    for (int64_t d = 0; d < dim; d += kLanes) {
      const Vector x = load(rows + t * dim + d), y = load(rows + (t + 1) * dim + d);
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) {
        const Vector w = load(weight + j * dim + d);
        first[j] += x * w;
        second[j] += y * w;
      }
    }
    for (int j = 0; j < kCount; ++j) {
      out[t * hidden + j] = total(first[j]);
      out[(t + 1) * hidden + j] = total(second[j]);
    }
  }
  for (; t < tokens; ++t) {
    Vector sum[kCount] = {};
    for (int64_t d = 0; d < dim; d += kLanes) {
      const Vector x = load(rows + t * dim + d);
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) sum[j] += x * load(weight + j * dim + d);
    }
    for (int j = 0; j < kCount; ++j) out[t * hidden + j] = total(sum[j]);
  }
}

/// weight[j, d] = sum_t factors[t, j] rows[t, d] for kCount values of j.
template <int kCount, class Element>
CONVPASS_INLINE void outer(const Element* rows, const float* factors, int64_t tokens, int64_t dim,
                           int64_t hidden, float* weight) {
  for (int64_t d = 0; d < dim; d += kLanes) {
    Vector sum[kCount] = {};
    for (int64_t t = 0; t < tokens; ++t) {
      const Vector x = load(rows + t * dim + d);
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) sum[j] += x * factors[t * hidden + j];
    }
    for (int j = 0; j < kCount; ++j) store(weight + j * dim + d, sum[j]);
  }
}

/// sum += sum_j factors[j] weight[j, :] for kCount vectors; several at once, since each is a chain
/// of additions.
template <int kCount>
CONVPASS_INLINE void combine(const float* factors, const float* weight, int64_t dim, int64_t hidden,
                             Vector (&sum)[kCount]) {
  for (int64_t j = 0; j < hidden; ++j)
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) sum[v] += factors[j] * load(weight + j * dim + v * kLanes);
}

/// Calls `work` with as many vectors at once as fit, and where they begin, over a row.
template <class Work>
CONVPASS_INLINE void along(int64_t dim, const Work& work) {
  int64_t d = 0;
  for (; d + 8 * kLanes <= dim; d += 8 * kLanes) work(std::integral_constant<int, 8>(), d);
  for (; d < dim; d += kLanes) work(std::integral_constant<int, 1>(), d);
}

/// Calls `work` with chunks of 8, 4, 2 and 1 that make up `hidden`.
template <class Work>
CONVPASS_INLINE void in_chunks(int64_t hidden, const Work& work) {
  int64_t j = 0;
  for (; j + 8 <= hidden; j += 8) work(std::integral_constant<int, 8>(), j);
  if (j + 4 <= hidden) work(std::integral_constant<int, 4>(), std::exchange(j, j + 4));
  if (j + 2 <= hidden) work(std::integral_constant<int, 2>(), std::exchange(j, j + 2));
  if (j + 1 <= hidden) work(std::integral_constant<int, 1>(), j);
}

template <class Element>
CONVPASS_INLINE void all_dots(const Element* rows, const float* weight, int64_t tokens, int64_t dim,
                              int64_t hidden, float* out) {
  in_chunks(
      hidden, [&](auto count, int64_t j) __attribute__((always_inline)) {
        dots<decltype(count)::value>(rows, weight + j * dim, tokens, dim, hidden, out + j);
      });
}

template <class Element>
CONVPASS_INLINE void all_outer(const Element* rows, const float* factors, int64_t tokens,
                               int64_t dim, int64_t hidden, float* weight) {
  in_chunks(
      hidden, [&](auto count, int64_t j) __attribute__((always_inline)) {
        outer<decltype(count)::value>(rows, factors + j, tokens, dim, hidden, weight + j * dim);
      });
}

/// Calls `work(token, neighbour, tap)` for each pair of tokens that the convolution connects: a
/// prefix token meets itself alone, under the centre tap.
template <class Work>
CONVPASS_INLINE void each_tap(const BypassShape& shape, const Work& work) {
  for (int64_t t = 0; t < shape.prefix; ++t) work(t, t, 4);
  for (int64_t y = 0; y < shape.height; ++y)
    for (int64_t x = 0; x < shape.width; ++x)
      for (int64_t dy = -1; dy <= 1; ++dy)
        for (int64_t dx = -1; dx <= 1; ++dx) {
          const int64_t v = y + dy, u = x + dx;
          if (v < 0 || v >= shape.height || u < 0 || u >= shape.width) continue;
          work(shape.prefix + y * shape.width + x, shape.prefix + v * shape.width + u,
               (dy + 1) * 3 + dx + 1);
        }
}

/// The usual h = 8 is known to the compiler, which then keeps a token's values in one register.
template <class Work>
CONVPASS_INLINE void with_hidden(int64_t hidden, const Work& work) {
  if (hidden == 8)
    work(std::integral_constant<int64_t, 8>());
  else
    work(hidden);
}

/// state.before_conv and after_conv, and what goes into the last projection: [tokens, h].
template <class Element, class Hidden>
CONVPASS_INLINE void hidden_values(const BypassShape& shape, Hidden h, const BypassWeights& weights,
                                   const Element* normed, const BypassState& state, float* out) {
  const int64_t tokens = shape.tokens();
  all_dots(normed, weights.down, tokens, shape.dim, h, state.before_conv);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = 0; j < h; ++j) {
      state.before_conv[t * h + j] += weights.down_bias[j];
      out[t * h + j] = quick_gelu(state.before_conv[t * h + j]);
      state.after_conv[t * h + j] = weights.taps_bias[j];
    }
  each_tap(
      shape, [&](int64_t t, int64_t from, int64_t tap) __attribute__((always_inline)) {
        const float* taps = weights.taps + tap * h * h;
        float* to = state.after_conv + t * h;
        for (int64_t i = 0; i < h; ++i) {
          const float value = out[from * h + i];
          for (int64_t j = 0; j < h; ++j) to[j] += value * taps[i * h + j];
        }
      });
  for (int64_t i = 0; i < tokens * h; ++i) {
    out[i] = quick_gelu(state.after_conv[i]);
    if (state.dropout != nullptr) out[i] *= state.dropout[i];
  }
}

template <class Element, class Hidden>
CONVPASS_INLINE void forward(const BypassShape& shape, Hidden h, const BypassWeights& weights,
                             const Element* normed, float factor, const BypassState& state,
                             Element* sum) {
  const int64_t tokens = shape.tokens(), dim = shape.dim;
  std::vector<float> hidden(static_cast<size_t>(tokens * h));
  hidden_values(shape, h, weights, normed, state, hidden.data());
  for (int64_t t = 0; t < tokens; ++t)
    along(
        dim, [&](auto count, int64_t d) __attribute__((always_inline)) {
          constexpr int kCount = decltype(count)::value;
          Vector added[kCount];
#pragma GCC unroll 8
          for (int v = 0; v < kCount; ++v) added[v] = load(weights.up_bias + d + v * kLanes);
          combine(hidden.data() + t * h, weights.up + d, dim, h, added);
          Element* to = sum + t * dim + d;
#pragma GCC unroll 8
          for (int v = 0; v < kCount; ++v)
            store(to + v * kLanes, load(to + v * kLanes) + factor * added[v]);
        });
}

template <class Element, class Hidden>
CONVPASS_INLINE void backward(const BypassShape& shape, Hidden h, const BypassWeights& weights,
                              const Element* normed, float factor, const BypassState& state,
                              const Element* grad_sum, Element* grad_normed,
                              const BypassGradients& grad) {
  const int64_t tokens = shape.tokens(), dim = shape.dim;
  const auto size = static_cast<size_t>(tokens * h);
  std::vector<float> inner(size), outer_values(size), change(size), inner_change(size, 0.0f);
  for (size_t i = 0; i < size; ++i) {
    inner[i] = quick_gelu(state.before_conv[i]);
    outer_values[i] = quick_gelu(state.after_conv[i]) * factor;
    if (state.dropout != nullptr) outer_values[i] *= state.dropout[i];
  }

  // Through the last projection.
  all_outer(grad_sum, outer_values.data(), tokens, dim, h, grad.up);
  along(
      dim, [&](auto count, int64_t d) __attribute__((always_inline)) {
        constexpr int kCount = decltype(count)::value;
        Vector sum[kCount] = {};
        for (int64_t t = 0; t < tokens; ++t)
#pragma GCC unroll 8
          for (int v = 0; v < kCount; ++v) sum[v] += load(grad_sum + t * dim + d + v * kLanes);
        for (int v = 0; v < kCount; ++v) store(grad.up_bias + d + v * kLanes, sum[v] * factor);
      });
  all_dots(grad_sum, weights.up, tokens, dim, h, change.data());
  for (size_t i = 0; i < size; ++i) {
    change[i] *= factor * quick_gelu_slope(state.after_conv[i]);
    if (state.dropout != nullptr) change[i] *= state.dropout[i];
  }

  // Through the convolution.
  std::fill_n(grad.taps, 9 * h * h, 0.0f);
  std::fill_n(grad.taps_bias, h, 0.0f);
  std::fill_n(grad.down_bias, h, 0.0f);
  for (size_t i = 0; i < size; ++i) grad.taps_bias[static_cast<int64_t>(i) % h] += change[i];
  each_tap(
      shape, [&](int64_t t, int64_t from, int64_t tap) __attribute__((always_inline)) {
        const float* changes = change.data() + t * h;
        for (int64_t i = 0; i < h; ++i) {
          const float value = inner[static_cast<size_t>(from * h + i)];
          const float* taps = weights.taps + (tap * h + i) * h;
          float* taps_grad = grad.taps + (tap * h + i) * h;
          float sum = 0;
          for (int64_t j = 0; j < h; ++j) {
            taps_grad[j] += value * changes[j];
            sum += taps[j] * changes[j];
          }
          inner_change[static_cast<size_t>(from * h + i)] += sum;
        }
      });

  // Through the first projection.
  for (size_t i = 0; i < size; ++i) {
    inner_change[i] *= quick_gelu_slope(state.before_conv[i]);
    grad.down_bias[static_cast<int64_t>(i) % h] += inner_change[i];
  }
  all_outer(normed, inner_change.data(), tokens, dim, h, grad.down);
  if (grad_normed == nullptr) return;
  for (int64_t t = 0; t < tokens; ++t)
    along(
        dim, [&](auto count, int64_t d) __attribute__((always_inline)) {
          constexpr int kCount = decltype(count)::value;
          Vector sum[kCount] = {};
          combine(inner_change.data() + t * h, weights.down + d, dim, h, sum);
#pragma GCC unroll 8
          for (int v = 0; v < kCount; ++v) store(grad_normed + t * dim + d + v * kLanes, sum[v]);
        });
}

}  // namespace

template <>
CONVPASS_WIDEST_VECTORS void bypass(const BypassShape& shape, const BypassWeights& weights,
                                    const float* normed, float factor, const BypassState& state,
                                    float* sum) {
  with_hidden(
      shape.hidden, [&](auto h) __attribute__((always_inline)) {
        forward(shape, h, weights, normed, factor, state, sum);
      });
}
template <>
CONVPASS_WIDEST_VECTORS void bypass(const BypassShape& shape, const BypassWeights& weights,
                                    const uint16_t* normed, float factor, const BypassState& state,
                                    uint16_t* sum) {
  with_hidden(
      shape.hidden, [&](auto h) __attribute__((always_inline)) {
        forward(shape, h, weights, normed, factor, state, sum);
      });
}
template <>
CONVPASS_WIDEST_VECTORS void bypass_back(const BypassShape& shape, const BypassWeights& weights,
                                         const float* normed, float factor,
                                         const BypassState& state, const float* grad_sum,
                                         float* grad_normed, const BypassGradients& grad) {
  with_hidden(
      shape.hidden, [&](auto h) __attribute__((always_inline)) {
        backward(shape, h, weights, normed, factor, state, grad_sum, grad_normed, grad);
      });
}
template <>
CONVPASS_WIDEST_VECTORS void bypass_back(const BypassShape& shape, const BypassWeights& weights,
                                         const uint16_t* normed, float factor,
                                         const BypassState& state, const uint16_t* grad_sum,
                                         uint16_t* grad_normed, const BypassGradients& grad) {
  with_hidden(
      shape.hidden, [&](auto h) __attribute__((always_inline)) {
        backward(shape, h, weights, normed, factor, state, grad_sum, grad_normed, grad);
      });
}

}  // namespace convpass::kernels
