// Compiled for AVX512 with BF16 on x86-64 (see CMakeLists.txt), called only where supported() says
// so.
#include "adapters/token_products.h"

#if defined(__AVX512BF16__)
#include "adapters/vectors.h"
#include "models/avx512.h"

namespace convpass::kernels::avx512 {
namespace {

__m512 add_product(__m512 sum, __m512i a, __m512i b) { return Sum<Element::bf16>::add(sum, a, b); }
uint32_t to_bf16(float value) {
  const __m128bh half = _mm_cvtneps_pbh(_mm_set_ss(value));
  return static_cast<uint32_t>(_mm_extract_epi16(reinterpret_cast<__m128i>(half), 0));
}
int64_t even(int64_t count) { return (count + 1) / 2; }

/// Lane 4 q + g: the sum over the lanes of vector 4 g + q.
inline __attribute__((always_inline)) __m512 totals(const __m512 (&v)[16]) {
  __m512 four[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    auto halved = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const __m512 a = halved(v[4 * g], v[4 * g + 1]), b = halved(v[4 * g + 2], v[4 * g + 3]);
    four[g] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  auto halved = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d a = _mm512_castps_pd(halved(four[0], four[1])),
                b = _mm512_castps_pd(halved(four[2], four[3]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

/// Of kTokens tokens from `t` and kCount hidden values from `j` on, 16 sums at most.
template <int kTokens, int kCount>
void dots(const BypassPlan& plan, const uint16_t* rows, const uint16_t* weight, float* planes,
          int64_t t, int64_t j) {
  const int64_t dim = plan.shape.dim;
  rows += t * dim;
  weight += j * dim;
  __m512 sums[16] = {};
  auto add = [&](int64_t d, __mmask32 mask) __attribute__((always_inline)) {
    __m512i x[kTokens];
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r) x[r] = _mm512_maskz_loadu_epi16(mask, rows + r * dim + d);
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      const __m512i w = _mm512_maskz_loadu_epi16(mask, weight + c * dim + d);
#pragma GCC unroll 8
      for (int r = 0; r < kTokens; ++r)
        sums[r * kCount + c] = add_product(sums[r * kCount + c], x[r], w);
    }
  };
  int64_t d = 0;
  for (; d + 32 <= dim; d += 32) add(d, 0xffffffff);
  if (d < dim) add(d, 0xffff);
  float total[16];
  _mm512_storeu_ps(total, totals(sums));
#pragma GCC unroll 8
  for (int r = 0; r < kTokens; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) {
      const int v = r * kCount + c;
      planes[(j + c) * plan.shape.plane() + plan.slots[t + r]] = total[v % 4 * 4 + v / 4];
    }
}

/// To kTokens tokens and 16 kColumns columns from `at` on; `hidden`: their pairs.
template <int kTokens, int kColumns, bool kBranch>
void combined(const BypassPlan& plan, const uint32_t* hidden, const Projection& weight,
              float factor, const ResidualSum<uint16_t>& sum, int64_t at) {
  const int64_t dim = plan.shape.dim, pairs = even(plan.shape.hidden), d = at % dim;
  __m512 added[kTokens][kColumns] = {};
  for (int64_t p = 0; p < pairs; ++p) {
    __m512i w[kColumns];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c)
      w[c] = _mm512_loadu_si512(weight.pairs + p * dim + d + c * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r) {
      const __m512i value = _mm512_set1_epi32(static_cast<int32_t>(hidden[r * pairs + p]));
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) added[r][c] = add_product(added[r][c], value, w[c]);
    }
  }
  const __m512 times = _mm512_set1_ps(factor);
  constexpr auto kAll = static_cast<__mmask16>(0xffff);
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) {
    const __m512 bias =
        weight.bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(weight.bias + d + c * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kTokens; ++r) {
      const int64_t place = at + r * dim + c * 16;
      __m512 base = load_bf16(sum.stream + place, kAll);
      if constexpr (kBranch) base = _mm512_add_ps(base, load_bf16(sum.branch + place, kAll));
      store_bf16(sum.sum + place, kAll,
                 _mm512_fmadd_ps(_mm512_add_ps(added[r][c], bias), times, base));
    }
  }
}

template <int kTokens, bool kBranch>
void combined_rows(const BypassPlan& plan, const uint32_t* hidden, const Projection& weight,
                   float factor, const ResidualSum<uint16_t>& sum, int64_t t) {
  const int64_t dim = plan.shape.dim, end = (t + 1) * dim;
  hidden += t * even(plan.shape.hidden);
  int64_t at = t * dim;
  for (; at + 32 <= end; at += 32)
    combined<kTokens, 2, kBranch>(plan, hidden, weight, factor, sum, at);
  if (at < end) combined<kTokens, 1, kBranch>(plan, hidden, weight, factor, sum, at);
}

template <bool kBranch>
void add_all(const BypassPlan& plan, const uint32_t* hidden, const Projection& weight, float factor,
             const ResidualSum<uint16_t>& sum) {
  const int64_t tokens = plan.shape.tokens();
  int64_t t = 0;
  for (; t + 4 <= tokens; t += 4) combined_rows<4, kBranch>(plan, hidden, weight, factor, sum, t);
  for (; t < tokens; ++t) combined_rows<1, kBranch>(plan, hidden, weight, factor, sum, t);
}

/// What the outer product sums over, and where it goes: `hidden` [pairs of tokens, h].
struct Outer {
  const uint32_t* hidden;
  const uint16_t* rows;
  float *weight, *total;
};

/// Of kCount hidden values from `j` and 32 columns from `d` on; where kTotal, of a further value
/// that is 1 for each token.
template <int kCount, bool kTotal>
void outer(const BypassPlan& plan, const Outer& of, int64_t j, int64_t d) {
  const int64_t dim = plan.shape.dim, tokens = plan.shape.tokens(), h = plan.shape.hidden;
  constexpr int kSums = kCount + (kTotal ? 1 : 0);
  const bool whole = d + 32 <= dim;
  const __mmask32 mask = whole ? 0xffffffff : 0xffff;
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  __m512 low[kSums] = {}, high[kSums] = {};
  const uint16_t* row = of.rows + d;
  const uint32_t* hidden = of.hidden + j;
  for (int64_t t = 0; t < tokens; t += 2, row += 2 * dim, hidden += h) {
    const __m512i first = _mm512_maskz_loadu_epi16(mask, row);
    const __m512i second = _mm512_maskz_loadu_epi16(t + 1 < tokens ? mask : 0, row + dim);
    const __m512i a = _mm512_unpacklo_epi16(first, second),
                  b = _mm512_unpackhi_epi16(first, second);
#pragma GCC unroll 16
    for (int c = 0; c < kSums; ++c) {
      const __m512i value = c < kCount ? _mm512_set1_epi32(static_cast<int32_t>(hidden[c])) : ones;
      low[c] = add_product(low[c], value, a);
      high[c] = add_product(high[c], value, b);
    }
  }
  // Each four lanes of `low` stand before the same four of `high`.
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23),
                second =
                    _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 16
  for (int c = 0; c < kSums; ++c) {
    float* to = d + (c < kCount ? of.weight + (j + c) * dim : of.total);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(low[c], first, high[c]));
    if (whole) _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(low[c], second, high[c]));
  }
}

}  // namespace

bool supported() { return kernels::supported(); }

void token_dots(const BypassPlan& plan, const uint16_t* rows, const Projection& weight,
                float* planes) {
  in_chunks<2>(plan.shape.tokens(), [&](auto tokens, int64_t t) {
    in_chunks<8>(plan.shape.hidden, [&](auto count, int64_t j) {
      dots<decltype(tokens)::value, decltype(count)::value>(plan, rows, weight.halves, planes, t,
                                                            j);
    });
  });
}

void add_combined(const BypassPlan& plan, const float* planes, const Projection& weight,
                  float factor, const ResidualSum<uint16_t>& sum, std::vector<uint32_t>& scratch) {
  const int64_t h = plan.shape.hidden, plane = plan.shape.plane();
  scratch.resize(plan.slots.size() * static_cast<size_t>(even(h)));
  uint32_t* hidden = scratch.data();
  for (int32_t slot : plan.slots)
    for (int64_t j = 0; j < h; j += 2) {
      const float* of = planes + j * plane + slot;
      *hidden++ = to_bf16(of[0]) | (j + 1 < h ? to_bf16(of[plane]) << 16 : 0);
    }
  if (sum.branch == nullptr)
    add_all<false>(plan, scratch.data(), weight, factor, sum);
  else
    add_all<true>(plan, scratch.data(), weight, factor, sum);
}

void token_outer(const BypassPlan& plan, const float* planes, const uint16_t* rows, float* weight,
                 float* total, std::vector<uint32_t>& scratch) {
  const int64_t tokens = plan.shape.tokens(), h = plan.shape.hidden, plane = plan.shape.plane();
  scratch.resize(static_cast<size_t>(even(tokens) * h));
  uint32_t* hidden = scratch.data();
  for (int64_t t = 0; t < tokens; t += 2)
    for (int64_t j = 0; j < h; ++j) {
      const float* of = planes + j * plane;
      *hidden++ =
          to_bf16(of[plan.slots[t]]) | (t + 1 < tokens ? to_bf16(of[plan.slots[t + 1]]) << 16 : 0);
    }
  const Outer of{scratch.data(), rows, weight, total};
  for (int64_t d = 0; d < plan.shape.dim; d += 32)
    in_chunks<8>(h, [&](auto count, int64_t j) {
      constexpr int kCount = decltype(count)::value;
      if (total != nullptr && j == 0)
        outer<kCount, true>(plan, of, j, d);
      else
        outer<kCount, false>(plan, of, j, d);
    });
}

}  // namespace convpass::kernels::avx512

#else

namespace convpass::kernels::avx512 {
bool supported() { return false; }
void token_dots(const BypassPlan&, const uint16_t*, const Projection&, float*) {}
void add_combined(const BypassPlan&, const float*, const Projection&, float,
                  const ResidualSum<uint16_t>&, std::vector<uint32_t>&) {}
void token_outer(const BypassPlan&, const float*, const uint16_t*, float*, float*,
                 std::vector<uint32_t>&) {}
}  // namespace convpass::kernels::avx512

#endif
