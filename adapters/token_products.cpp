#include "adapters/token_products.h"

#include "adapters/vectors.h"
#include "src/core/widest_vectors.h"

namespace convpass::kernels {
namespace {

/// Of kTokens tokens from `t` and kCount hidden values from `j` on.
template <int kTokens, int kCount, class Element>
CONVPASS_INLINE void dots(const BypassPlan& plan, const Element* rows, const float* weight,
                          float* planes, int64_t t, int64_t j) {
  const int64_t dim = plan.shape.dim;
  rows += t * dim;
  weight += j * dim;
  Vector sums[kTokens][kCount] = {};
  for (int64_t d = 0; d < dim; d += kLanes) {
    Vector x[kTokens];
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r) x[r] = load(rows + r * dim + d);
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      const Vector w = load(weight + c * dim + d);
#pragma GCC unroll 8
      for (int r = 0; r < kTokens; ++r) sums[r][c] += x[r] * w;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTokens; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c)
      planes[(j + c) * plan.shape.plane() + plan.slots[t + r]] = total(sums[r][c]);
}

template <class Element>
CONVPASS_INLINE void all_dots(const BypassPlan& plan, const Element* rows, const float* weight,
                              float* planes) {
  in_chunks<2>(
      plan.shape.tokens(), [&](auto tokens, int64_t t) __attribute__((always_inline)) {
        in_chunks<4>(
            plan.shape.hidden, [&](auto count, int64_t j) __attribute__((always_inline)) {
              dots<decltype(tokens)::value, decltype(count)::value>(plan, rows, weight, planes, t,
                                                                    j);
            });
      });
}

/// To kTokens tokens from `t` and two vectors from `d` on.
template <int kTokens, bool kBranch, class Element>
CONVPASS_INLINE void combined(const BypassPlan& plan, const float* planes, const Projection& weight,
                              float factor, const ResidualSum<Element>& sum, int64_t t, int64_t d) {
  const int64_t dim = plan.shape.dim, plane = plan.shape.plane();
  const float* hidden[kTokens];
  Vector added[kTokens][2] = {};
#pragma GCC unroll 8
  for (int r = 0; r < kTokens; ++r) {
    hidden[r] = planes + plan.slots[t + r];
    if (weight.bias != nullptr)
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) added[r][c] = load(weight.bias + d + c * kLanes);
  }
  for (int64_t j = 0; j < plan.shape.hidden; ++j) {
    const float* row = weight.rows + j * dim + d;
    const Vector w[2] = {load(row), load(row + kLanes)};
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) added[r][c] += hidden[r][j * plane] * w[c];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTokens; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const int64_t at = (t + r) * dim + d + c * kLanes;
      Vector base = load(sum.stream + at);
      if constexpr (kBranch) base += load(sum.branch + at);
      store(sum.sum + at, base + factor * added[r][c]);
    }
}

template <bool kBranch, class Element>
CONVPASS_INLINE void add_all(const BypassPlan& plan, const float* planes, const Projection& weight,
                             float factor, const ResidualSum<Element>& sum) {
  in_chunks<4>(
      plan.shape.tokens(), [&](auto tokens, int64_t t) __attribute__((always_inline)) {
        for (int64_t d = 0; d < plan.shape.dim; d += 2 * kLanes)
          combined<decltype(tokens)::value, kBranch>(plan, planes, weight, factor, sum, t, d);
      });
}

/// Of kCount hidden values from `j` and two vectors from `d` on.
template <int kCount, class Element>
CONVPASS_INLINE void outer(const BypassPlan& plan, const float* planes, const Element* rows,
                           float* weight, int64_t j, int64_t d) {
  const int64_t dim = plan.shape.dim, plane = plan.shape.plane();
  planes += j * plane;
  Vector sums[kCount][2] = {};
  for (int64_t t = 0; t < plan.shape.tokens(); ++t) {
    const float* hidden = planes + plan.slots[t];
    const Vector x = load(rows + t * dim + d), y = load(rows + t * dim + d + kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      const Vector value = all(hidden[c * plane]);
      sums[c][0] += value * x;
      sums[c][1] += value * y;
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kCount; ++c) {
    store(weight + (j + c) * dim + d, sums[c][0]);
    store(weight + (j + c) * dim + d + kLanes, sums[c][1]);
  }
}

template <class Element>
CONVPASS_INLINE void all_outer(const BypassPlan& plan, const float* planes, const Element* rows,
                               float* weight, float* total) {
  const int64_t dim = plan.shape.dim;
  for (int64_t d = 0; d < dim; d += 2 * kLanes) {
    in_chunks<4>(
        plan.shape.hidden, [&](auto count, int64_t j) __attribute__((always_inline)) {
          outer<decltype(count)::value>(plan, planes, rows, weight, j, d);
        });
    if (total == nullptr) continue;
    Vector first = {}, second = {};
    for (int64_t t = 0; t < plan.shape.tokens(); ++t) {
      first += load(rows + t * dim + d);
      second += load(rows + t * dim + d + kLanes);
    }
    store(total + d, first);
    store(total + d + kLanes, second);
  }
}

}  // namespace

CONVPASS_WIDEST_FUSED_VECTORS void token_dots(const BypassPlan& plan, const float* rows,
                                              const Projection& weight, float* planes) {
  all_dots(plan, rows, weight.rows, planes);
}
CONVPASS_WIDEST_FUSED_VECTORS void token_dots(const BypassPlan& plan, const uint16_t* rows,
                                              const Projection& weight, float* planes) {
  all_dots(plan, rows, weight.rows, planes);
}

CONVPASS_WIDEST_FUSED_VECTORS void add_combined(const BypassPlan& plan, const float* planes,
                                                const Projection& weight, float factor,
                                                const ResidualSum<float>& sum) {
  if (sum.branch == nullptr)
    add_all<false>(plan, planes, weight, factor, sum);
  else
    add_all<true>(plan, planes, weight, factor, sum);
}
CONVPASS_WIDEST_FUSED_VECTORS void add_combined(const BypassPlan& plan, const float* planes,
                                                const Projection& weight, float factor,
                                                const ResidualSum<uint16_t>& sum) {
  if (sum.branch == nullptr)
    add_all<false>(plan, planes, weight, factor, sum);
  else
    add_all<true>(plan, planes, weight, factor, sum);
}

CONVPASS_WIDEST_FUSED_VECTORS void token_outer(const BypassPlan& plan, const float* planes,
                                               const float* rows, float* weight, float* total) {
  all_outer(plan, planes, rows, weight, total);
}
CONVPASS_WIDEST_FUSED_VECTORS void token_outer(const BypassPlan& plan, const float* planes,
                                               const uint16_t* rows, float* weight, float* total) {
  all_outer(plan, planes, rows, weight, total);
}

}  // namespace convpass::kernels
