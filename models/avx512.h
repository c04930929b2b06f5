#pragma once

#include <immintrin.h>

#include <algorithm>
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

/// 2^x to 3e-6 for x from -100; what is less counts as that. A denormal result, and what is then
/// computed with it, takes a hundred times as long.
inline __m512 exp2_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, whole);  // in [-0.5, 0.5]
  __m512 p = _mm512_set1_ps(9.5701003e-3f);  // the polynomial with the least relative error
  for (float c : {5.5917863e-2f, 0.24024745f, 0.69312181f, 0.99999926f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, whole);
}

/// 1 / x to 2e-7 for a normal x whose inverse is normal: an estimate and a step of Newton's, four
/// times as fast as a division.
inline __m512 inverse(__m512 x) {
  const __m512 y = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.0f)));
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 e = exp2_ps(
      _mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)), _mm512_set1_ps(100.0f)));
  return inverse(_mm512_add_ps(one, e));
}

struct Activated {
  __m512 value, slope;
};

/// x Phi(x) and its derivative, to a tenth of what rounding to bfloat16 costs. Phi(-|x|) is
/// exp(-x^2 / 2), which the density is made of, too, times a polynomial in 1 / (1 + 0.29 |x|) with
/// the least relative error: 9e-5 up to |x| = 7.
inline Activated gelu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.29f), one));
  const __m512 bell = exp2_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)));
  __m512 p = _mm512_set1_ps(0.25944422f);
  for (float c : {-3.0378479e-2f, 0.16067823f, 0.1102998f})
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), bell);  // Phi(-|x|)
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
  const __m512 phi = _mm512_mask_sub_ps(tail, positive, one, tail);
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

/// The first `left` lanes of a vector: all where there are more, none where there are none.
inline __mmask16 lanes(int64_t left) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(left, 0, 16)) - 1);
}
inline __m512 load_bf16(const uint16_t* from, __mmask16 mask) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}
inline void store_bf16(uint16_t* to, __mmask16 mask, __m512 value) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

}  // namespace
}  // namespace convpass::kernels
