// Compiled for AVX512 with VNNI and BF16 on x86-64 (see CMakeLists.txt), called only where
// supported() says so.
#include "models/attention_kernels.h"

#include <algorithm>
#include <cstring>
#include <utility>

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "models/avx512.h"

namespace convpass::kernels {
namespace {

constexpr int64_t kBlockQueries = 192;  ///< whose scores the backward pass holds at once
constexpr int64_t kRowsAtOnce = kTileRows;

int64_t up_to(int64_t count, int64_t multiple) {
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
void pack_transposed(Rows rows, int64_t count, int64_t dim, uint32_t* to) {
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

/// rows `[count, dim]` as the panels of a product over the rows: [ceil(dim / 64), ceil(count / 2),
/// 64, 2].
void pack_interleaved(Rows rows, int64_t count, int64_t dim, uint32_t* to) {
  const int64_t pairs = (count + 1) / 2;
  for (int64_t p = 0; p < pairs; ++p) {
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

/// from `[rows, columns]` (dense rows of `stride` values, both counts multiples of 16 that are
/// there) to its transpose in pairs: to `[columns, rows / 2]` lanes, each of two rows.
void transpose_pairs(const uint16_t* from, int64_t rows, int64_t columns, int64_t stride,
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

/// out[r, n] = sum over groups, for kRows rows and `columns` columns; store(r, column, vector).
template <int kRows, int kColumns, class Store>
inline void product_tile(const void* input, int64_t stride, const uint32_t* panel, int64_t groups,
                         int64_t column, const Store& store) {
  __m512 sums[kRows][kColumns];
  clear<Element::bf16>(sums);
  accumulate<Element::bf16>(input, stride, panel, groups, sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) store(r, column + v * 16, sums[r][v]);
}

template <int kRows, class Store>
inline void product_rows(const void* input, int64_t stride, const uint32_t* panels, int64_t groups,
                         int64_t columns, const Store& store) {
  for (int64_t column = 0; column < columns; column += kPanel, panels += groups * kPanel) {
    switch (std::min<int64_t>(4, (columns - column + 15) / 16)) {
      case 4:
        product_tile<kRows, 4>(input, stride, panels, groups, column, store);
        break;
      case 3:
        product_tile<kRows, 3>(input, stride, panels, groups, column, store);
        break;
      case 2:
        product_tile<kRows, 2>(input, stride, panels, groups, column, store);
        break;
      default:
        product_tile<kRows, 1>(input, stride, panels, groups, column, store);
    }
  }
}

/// Calls `work(std::integral_constant<int, rows>, first row)` for tiles of up to six rows.
template <class Work>
inline void for_tiles(int64_t rows, const Work& work) {
  int64_t row = 0;
  for (; row + kRowsAtOnce <= rows; row += kRowsAtOnce)
    work(std::integral_constant<int, kTileRows>(), row);
  switch (rows - row) {
    case 5:
      return work(std::integral_constant<int, 5>(), row);
    case 4:
      return work(std::integral_constant<int, 4>(), row);
    case 3:
      return work(std::integral_constant<int, 3>(), row);
    case 2:
      return work(std::integral_constant<int, 2>(), row);
    case 1:
      return work(std::integral_constant<int, 1>(), row);
    default:
      return;
  }
}

/// exp(scale (s - max)) of a row in place; returns its sum.
inline float exponentials(float* scores, int64_t keys, float scale) {
  __m512 most = _mm512_set1_ps(-__builtin_inff());
  for (int64_t n = 0; n < keys; n += 16) {
    const __mmask16 mask = lanes(keys - n);
    most = _mm512_mask_max_ps(most, mask, most, _mm512_loadu_ps(scores + n));
  }
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
  const __m512 shift = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), factor);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < keys; n += 16) {
    const __mmask16 mask = lanes(keys - n);
    const __m512 e = _mm512_maskz_mov_ps(
        mask, exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + n), factor, shift)));
    sum = _mm512_add_ps(sum, e);
    _mm512_storeu_ps(scores + n, e);
  }
  return _mm512_reduce_add_ps(sum);
}

/// Cuts a thread's memory into arrays.
class Cutter {
 public:
  Cutter(Scratch& scratch, int64_t lanes) {
    if (static_cast<int64_t>(scratch.size()) < lanes) scratch.resize(static_cast<size_t>(lanes));
    next_ = scratch.data();
  }
  uint32_t* take(int64_t lanes) { return std::exchange(next_, next_ + lanes); }

 private:
  uint32_t* next_;
};

struct Sizes {
  int64_t keys, keys64, dim64, key_pairs, dim_pairs;
  explicit Sizes(const AttentionHead& head)
      : keys(up_to(head.keys, 16)),
        keys64(up_to(head.keys, kPanel)),
        dim64(up_to(head.dim, kPanel)),
        key_pairs((head.keys + 1) / 2),
        dim_pairs(head.dim / 2) {}
};

}  // namespace

void attend(const AttentionHead& head, Rows out, Scratch& scratch) {
  const Sizes size(head);
  Cutter cut(scratch, size.keys64 * size.dim_pairs + size.dim64 * size.key_pairs +
                          kRowsAtOnce * (size.keys64 + size.keys64 / 2));
  uint32_t* keys = cut.take(size.keys64 * size.dim_pairs);
  uint32_t* values = cut.take(size.dim64 * size.key_pairs);
  auto* scores = reinterpret_cast<float*>(cut.take(kRowsAtOnce * size.keys64));
  auto* weights = reinterpret_cast<uint16_t*>(cut.take(kRowsAtOnce * size.keys64 / 2));
  pack_transposed(head.k, head.keys, head.dim, keys);
  pack_interleaved(head.v, head.keys, head.dim, values);

  for_tiles(head.queries, [&](auto rows, int64_t first) {
    constexpr int kRows = decltype(rows)::value;
    product_rows<kRows>(head.q.data + first * head.q.stride, head.q.stride * 2, keys,
                        size.dim_pairs, head.keys, [&](int r, int64_t column, __m512 sum) {
                          _mm512_storeu_ps(scores + r * size.keys64 + column, sum);
                        });
    __m512 inverse[kRows];
    for (int r = 0; r < kRows; ++r) {
      float* row = scores + r * size.keys64;
      inverse[r] = _mm512_set1_ps(1 / exponentials(row, head.keys, head.scale));
      for (int64_t n = 0; n < size.keys; n += 16)
        store_bf16(weights + r * size.keys64 + n, lanes(16), _mm512_loadu_ps(row + n));
    }
    product_rows<kRows>(weights, size.keys64 * 2, values, size.key_pairs, head.dim,
                        [&](int r, int64_t column, __m512 sum) {
                          store_bf16(out.data + (first + r) * out.stride + column,
                                     lanes(head.dim - column), _mm512_mul_ps(sum, inverse[r]));
                        });
  });
}

void attend_back(const AttentionHead& head, const AttentionGradient& grad, Scratch& scratch) {
  const Sizes size(head);
  const int64_t block = std::min(kBlockQueries, up_to(head.queries, 32));
  const int64_t block_pairs = block / 2;
  Cutter cut(scratch, 2 * size.keys64 * size.dim_pairs + size.dim64 * size.key_pairs +
                          2 * size.dim64 * block_pairs + 2 * kRowsAtOnce * size.keys64 +
                          block * size.keys + 2 * size.keys * block_pairs +
                          2 * head.keys * size.dim64);
  uint32_t* keys = cut.take(size.keys64 * size.dim_pairs);
  uint32_t* values = cut.take(size.keys64 * size.dim_pairs);
  uint32_t* keys_by_row = cut.take(size.dim64 * size.key_pairs);
  uint32_t* queries_by_row = cut.take(size.dim64 * block_pairs);
  uint32_t* outs_by_row = cut.take(size.dim64 * block_pairs);
  auto* scores = reinterpret_cast<float*>(cut.take(kRowsAtOnce * size.keys64));
  auto* changes = reinterpret_cast<float*>(cut.take(kRowsAtOnce * size.keys64));
  auto* weights = reinterpret_cast<uint16_t*>(cut.take(block * size.keys / 2));
  auto* slopes = reinterpret_cast<uint16_t*>(cut.take(block * size.keys / 2));
  uint32_t* weights_by_key = cut.take(size.keys * block_pairs);
  uint32_t* slopes_by_key = cut.take(size.keys * block_pairs);
  auto* key_sums = reinterpret_cast<float*>(cut.take(head.keys * size.dim64));
  auto* value_sums = reinterpret_cast<float*>(cut.take(head.keys * size.dim64));
  pack_transposed(head.k, head.keys, head.dim, keys);
  pack_transposed(head.v, head.keys, head.dim, values);
  pack_interleaved(head.k, head.keys, head.dim, keys_by_row);

  for (int64_t start = 0; start < head.queries; start += block) {
    const int64_t queries = std::min(block, head.queries - start);
    const int64_t padded = up_to(queries, 2);  // pairs of queries: an absent one weighs nothing
    const Rows q{head.q.data + start * head.q.stride, head.q.stride};
    const Rows out{grad.out.data + start * grad.out.stride, grad.out.stride};
    pack_interleaved(q, queries, head.dim, queries_by_row);
    pack_interleaved(out, queries, head.dim, outs_by_row);
    for (uint16_t* rows : {weights, slopes})
      std::memset(rows + queries * size.keys, 0,
                  static_cast<size_t>((padded - queries) * size.keys) * 2);

    for_tiles(queries, [&](auto rows, int64_t first) {
      constexpr int kRows = decltype(rows)::value;
      product_rows<kRows>(q.data + first * q.stride, q.stride * 2, keys, size.dim_pairs, head.keys,
                          [&](int r, int64_t column, __m512 sum) {
                            _mm512_storeu_ps(scores + r * size.keys64 + column, sum);
                          });
      product_rows<kRows>(out.data + first * out.stride, out.stride * 2, values, size.dim_pairs,
                          head.keys, [&](int r, int64_t column, __m512 sum) {
                            _mm512_storeu_ps(changes + r * size.keys64 + column, sum);
                          });
      for (int r = 0; r < kRows; ++r) {
        float* row = scores + r * size.keys64;
        const float* change = changes + r * size.keys64;
        const __m512 inverse = _mm512_set1_ps(1 / exponentials(row, head.keys, head.scale));
        __m512 sum = _mm512_setzero_ps();
        for (int64_t n = 0; n < size.keys; n += 16) {
          const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(row + n), inverse);
          _mm512_storeu_ps(row + n, p);
          sum = _mm512_fmadd_ps(p, _mm512_maskz_loadu_ps(lanes(head.keys - n), change + n), sum);
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        const __m512 scale = _mm512_set1_ps(head.scale);
        for (int64_t n = 0; n < size.keys; n += 16) {
          const __m512 p = _mm512_loadu_ps(row + n);
          const __m512 d =
              _mm512_maskz_sub_ps(lanes(head.keys - n), _mm512_loadu_ps(change + n), mean);
          const int64_t at = (first + r) * size.keys + n;
          store_bf16(weights + at, lanes(16), p);
          store_bf16(slopes + at, lanes(16), _mm512_mul_ps(_mm512_mul_ps(p, scale), d));
        }
      }
      product_rows<kRows>(slopes + first * size.keys, size.keys * 2, keys_by_row, size.key_pairs,
                          head.dim, [&](int r, int64_t column, __m512 sum) {
                            store_bf16(grad.q.data + (start + first + r) * grad.q.stride + column,
                                       lanes(head.dim - column), sum);
                          });
    });

    transpose_pairs(weights, padded, size.keys, size.keys, weights_by_key);
    transpose_pairs(slopes, padded, size.keys, size.keys, slopes_by_key);
    const bool last = start + block >= head.queries;
    auto add_up = [&](const uint32_t* by_key, const uint32_t* by_row, float* sums, Rows to) {
      for_tiles(head.keys, [&](auto rows, int64_t first) {
        constexpr int kRows = decltype(rows)::value;
        product_rows<kRows>(by_key + first * (padded / 2), padded * 2, by_row, padded / 2, head.dim,
                            [&](int r, int64_t column, __m512 sum) {
                              float* at = sums + (first + r) * size.dim64 + column;
                              if (start > 0) sum = _mm512_add_ps(sum, _mm512_loadu_ps(at));
                              if (last)
                                store_bf16(to.data + (first + r) * to.stride + column,
                                           lanes(head.dim - column), sum);
                              else
                                _mm512_storeu_ps(at, sum);
                            });
      });
    };
    add_up(weights_by_key, outs_by_row, value_sums, grad.v);
    add_up(slopes_by_key, queries_by_row, key_sums, grad.k);
  }
}

}  // namespace convpass::kernels

#else

namespace convpass::kernels {
void attend(const AttentionHead&, Rows, Scratch&) {}
void attend_back(const AttentionHead&, const AttentionGradient&, Scratch&) {}
}  // namespace convpass::kernels

#endif
