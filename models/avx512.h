#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "models/gemm_kernels.h"

/// What the kernels share. For sources compiled for AVX512 with VNNI and BF16 alone; all of it is
/// local to them, so that no other source is linked to code that its CPU may not have.
namespace convpass::kernels {
namespace {

constexpr int kVectors = kPanel / 16;

template <Element kElement>
struct Sum;
template <>
struct Sum<Element::s8> {
  using Vector = __m512i;
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector add(Vector sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, a, b); }
};
template <>
struct Sum<Element::bf16> {
  using Vector = __m512;
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector add(Vector sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

/// sums += input rows times one panel: `input` rows of groups `stride` bytes apart, `panel`
/// [groups, 64 lanes]. The sums stay in registers over the whole depth.
template <Element kElement, int kRows, int kColumns>
inline void accumulate(const void* input, int64_t stride, const void* panel, int64_t groups,
                       typename Sum<kElement>::Vector (&sums)[kRows][kColumns]) {
  const auto* a = static_cast<const uint8_t*>(input);
  const auto* b = static_cast<const uint8_t*>(panel);
  for (int64_t g = 0; g < groups; ++g) {
    __m512i weight[kColumns];
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v)
      weight[v] = _mm512_loadu_si512(b + (g * kPanel + v * 16) * 4);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      int32_t lane;
      std::memcpy(&lane, a + r * stride + g * 4, 4);
      const __m512i value = _mm512_set1_epi32(lane);
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v)
        sums[r][v] = Sum<kElement>::add(sums[r][v], value, weight[v]);
    }
  }
}

template <Element kElement, int kRows, int kColumns>
inline void clear(typename Sum<kElement>::Vector (&sums)[kRows][kColumns]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) sums[r][v] = Sum<kElement>::zero();
}

/// 2^x for any x a float can hold, to 2e-7.
inline __m512 exp2_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-150.0f));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);  // in [-0.5, 0.5]
  __m512 p = _mm512_set1_ps(1.5403530e-4f);  // Taylor series of 2^f
  for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, whole);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 e = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
  return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

struct Activated {
  __m512 value, slope;
};

/// x Phi(x) and its derivative; erf by formula 7.1.26 of Abramowitz and Stegun (error
/// below 1.5e-7), whose exponential is the density's, too.
inline Activated gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), half = _mm512_set1_ps(0.5f);
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  const __m512 bell =
      exp2_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)));  // exp(-x^2 / 2)
  __m512 p = _mm512_set1_ps(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(p, t), bell), half);  // Phi(-|x|)
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 phi = _mm512_mask_blend_ps(negative, _mm512_sub_ps(one, tail), tail);
  const __m512 density = _mm512_mul_ps(bell, _mm512_set1_ps(0.39894228f));
  return {_mm512_mul_ps(x, phi), _mm512_fmadd_ps(x, density, phi)};
}

/// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline Activated gelu_tanh(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 twice =  // 2 u
      _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.59576912f)),
                    _mm512_fmadd_ps(square, _mm512_set1_ps(0.044715f), one));
  const __m512 s = sigmoid(twice);
  const __m512 twice_slope = _mm512_mul_ps(_mm512_set1_ps(1.59576912f),
                                           _mm512_fmadd_ps(square, _mm512_set1_ps(0.134145f), one));
  const __m512 change =
      _mm512_mul_ps(_mm512_mul_ps(x, twice_slope), _mm512_mul_ps(s, _mm512_sub_ps(one, s)));
  return {_mm512_mul_ps(x, s), _mm512_add_ps(s, change)};
}

inline Activated quick_gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), factor = _mm512_set1_ps(1.702f);
  const __m512 scaled = _mm512_mul_ps(x, factor);
  const __m512 s = sigmoid(scaled);
  return {_mm512_mul_ps(x, s), _mm512_fmadd_ps(scaled, _mm512_mul_ps(s, _mm512_sub_ps(one, s)), s)};
}

/// The first `left` lanes of a vector, all where there are more.
inline __mmask16 lanes(int64_t left) {
  return left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1);
}
inline __m512 load_bf16(const uint16_t* from, __mmask16 mask) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
constexpr float kSlopeStep = 1.0f / 196, kLeastSlope = -0.15f;
inline void store_slope(uint8_t* to, __mmask16 mask, __m512 slope) {
  const __m512i step = _mm512_cvtps_epi32(_mm512_mul_ps(
      _mm512_sub_ps(slope, _mm512_set1_ps(kLeastSlope)), _mm512_set1_ps(1 / kSlopeStep)));
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtusepi32_epi8(step));
}
inline __m512 load_slope(const uint8_t* from, __mmask16 mask) {
  const __m512 step = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from)));
  return _mm512_fmadd_ps(step, _mm512_set1_ps(kSlopeStep), _mm512_set1_ps(kLeastSlope));
}
inline void store_bf16(uint16_t* to, __mmask16 mask, __m512 value) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

}  // namespace
}  // namespace convpass::kernels
