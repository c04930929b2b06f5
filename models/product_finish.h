#pragma once

#include "models/avx512.h"

/// What is done with the sums of a product, whichever unit added them up: 32 columns of a row at
/// once, so that whole lines of the cache are written.
namespace convpass::kernels {
namespace {

struct Pair {
  __m512 low, high;  ///< columns 0 to 15 and 16 to 31
};
inline Pair multiply(Pair a, Pair b) {
  return {_mm512_mul_ps(a.low, b.low), _mm512_mul_ps(a.high, b.high)};
}

/// The first `left` of 32 columns, and of each half.
struct PairMask {
  __mmask32 all;
  __mmask16 low, high;
  explicit PairMask(int64_t left)
      : all(static_cast<__mmask32>((uint64_t{1} << std::clamp<int64_t>(left, 0, 32)) - 1)),
        low(lanes(left)),
        high(lanes(left - 16)) {}
};

inline Pair load(const float* from, const PairMask& mask) {
  return {_mm512_maskz_loadu_ps(mask.low, from), _mm512_maskz_loadu_ps(mask.high, from + 16)};
}
inline void store_bf16(uint16_t* to, const PairMask& mask, Pair value) {
  _mm512_mask_storeu_epi16(to, mask.all,
                           reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(value.high, value.low)));
}

/// A derivative of an activation, -0.13 to 1.13, in 256 steps of a byte.
constexpr float kSlopeStep = 1.0f / 196, kLeastSlope = -0.15f;
inline void store_slope(uint8_t* to, const PairMask& mask, Pair slope) {
  auto steps = [](__m512 x) {
    return _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_fmadd_ps(
        x, _mm512_set1_ps(1 / kSlopeStep), _mm512_set1_ps(-kLeastSlope / kSlopeStep))));
  };
  _mm256_mask_storeu_epi8(to, mask.all, _mm256_set_m128i(steps(slope.high), steps(slope.low)));
}
inline Pair load_slope(const uint8_t* from, const PairMask& mask) {
  const __m256i steps = _mm256_maskz_loadu_epi8(mask.all, from);
  auto slope = [](__m128i x) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x)), _mm512_set1_ps(kSlopeStep),
                           _mm512_set1_ps(kLeastSlope));
  };
  return {slope(_mm256_castsi256_si128(steps)), slope(_mm256_extracti128_si256(steps, 1))};
}

template <class Activation>
inline void store_activated(const Product& product, int64_t at, const PairMask& mask, Pair value,
                            const Activation& activation) {
  const Activated low = activation(value.low), high = activation(value.high);
  store_bf16(product.out + at, mask, {low.value, high.value});
  if (product.slope != nullptr) store_slope(product.slope + at, mask, {low.slope, high.slope});
}

/// Stores up to 32 values of a row, from sums that are scaled already.
inline void finish(const Product& product, int64_t row, int64_t column, Pair value) {
  const PairMask mask(product.columns - column);
  if (product.bias != nullptr) {
    const Pair bias = load(product.bias + column, mask);
    value = {_mm512_add_ps(value.low, bias.low), _mm512_add_ps(value.high, bias.high)};
  }
  const int64_t at = row * product.out_stride + column;
  switch (product.finish) {
    case Finish::none:
      return store_bf16(product.out + at, mask, value);
    case Finish::slope:
      return store_bf16(product.out + at, mask,
                        multiply(value, load_slope(product.slope + at, mask)));
    case Finish::gelu:
      return store_activated(product, at, mask, value, gelu);
    case Finish::gelu_tanh:
      return store_activated(product, at, mask, value, gelu_tanh);
    case Finish::quick_gelu:
      return store_activated(product, at, mask, value, quick_gelu);
  }
}

/// The same of sums of int8 products.
inline void finish(const Product& product, int64_t row, int64_t column, __m512i low, __m512i high) {
  const PairMask mask(product.columns - column);
  const int32_t* offset = product.column_offset + column;
  const Pair sums{
      _mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_maskz_loadu_epi32(mask.low, offset))),
      _mm512_cvtepi32_ps(_mm512_sub_epi32(high, _mm512_maskz_loadu_epi32(mask.high, offset + 16)))};
  const __m512 row_scale = _mm512_set1_ps(product.row_scale[row]);
  Pair scale{row_scale, row_scale};
  if (product.column_scale != nullptr)
    scale = multiply(scale, load(product.column_scale + column, mask));
  finish(product, row, column, multiply(sums, scale));
}
inline void finish(const Product& product, int64_t row, int64_t column, __m512 low, __m512 high) {
  finish(product, row, column, Pair{low, high});
}

}  // namespace
}  // namespace convpass::kernels
