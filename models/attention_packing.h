#pragma once

#include <algorithm>

#include "models/attention_kernels.h"
#include "models/avx512.h"

/// Rows of bfloat16 as the inputs and the panels of products; local to its source like avx512.h.
namespace convpass::kernels {
namespace {

inline int64_t up_to(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

/// Transposes a 16 x 16 matrix of 32-bit lanes.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/// rows `[count, dim]` as the panels of a product over dim: [ceil(count / 64), dim / 2, 64, 2].
inline void pack_transposed(Rows rows, int64_t count, int64_t dim, uint32_t* to) {
  const int64_t pairs = dim / 2;
  for (int64_t n = 0; n < up_to(count, kPanel); n += 16) {
    uint32_t* panel = to + n / kPanel * pairs * kPanel + n % kPanel;
    for (int64_t p = 0; p < pairs; p += 16) {
      const __mmask16 mask = lanes(pairs - p);
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        r[i] = n + i < count
                   ? _mm512_maskz_loadu_epi32(mask, rows.data + (n + i) * rows.stride + 2 * p)
                   : _mm512_setzero_si512();
      transpose(r);
      for (int64_t i = 0; i < std::min<int64_t>(16, pairs - p); ++i)
        _mm512_storeu_si512(panel + (p + i) * kPanel, r[i]);
    }
  }
}

inline __m512i interleaved(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

/// rows `[count, dim]`, and zeros up to twice `pairs`, as the panels of a product over the rows:
/// [ceil(dim / 64), pairs, 64, 2].
inline void pack_interleaved(Rows rows, int64_t count, int64_t dim, int64_t pairs, uint32_t* to) {
  for (int64_t p = 0; p < pairs; ++p) {
    if (2 * p >= count) {
      for (int64_t d = 0; d < up_to(dim, kPanel); d += kPanel)
        std::memset(to + (d / kPanel * pairs + p) * kPanel, 0, kPanel * 4);
      continue;
    }
    const uint16_t* even = rows.data + 2 * p * rows.stride;
    const bool both = 2 * p + 1 < count;
    for (int64_t d = 0; d < up_to(dim, kPanel); d += 16) {
      const __mmask16 mask = d < dim ? lanes(dim - d) : static_cast<__mmask16>(0);
      const __m256i first = _mm256_maskz_loadu_epi16(mask, even + d);
      const __m256i second = _mm256_maskz_loadu_epi16(both ? mask : static_cast<__mmask16>(0),
                                                      even + d + (both ? rows.stride : 0));
      _mm512_storeu_si512(to + (d / kPanel * pairs + p) * kPanel + d % kPanel,
                          interleaved(first, second));
    }
  }
}

/// from `[rows, columns]` (dense rows of `stride` values; `rows` even, `columns` a multiple of
/// 16) to its transpose in pairs: to `[columns, rows / 2]` lanes, each of two rows.
inline void transpose_pairs(const uint16_t* from, int64_t rows, int64_t columns, int64_t stride,
                            uint32_t* to) {
  for (int64_t c = 0; c < columns; c += 16)
    for (int64_t p = 0; p < rows / 2; p += 16) {
      const int64_t left = std::min<int64_t>(16, rows / 2 - p);
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const uint16_t* even = from + 2 * (p + i) * stride + c;
        r[i] = i < left ? interleaved(
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even)),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + stride)))
                        : _mm512_setzero_si512();
      }
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        _mm512_mask_storeu_epi32(to + (c + i) * (rows / 2) + p, lanes(left), r[i]);
    }
}

}  // namespace
}  // namespace convpass::kernels
