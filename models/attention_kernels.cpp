// Compiled for AVX512 with VNNI and BF16 and for AMX on x86-64 (see CMakeLists.txt), called only
// where supported() says so.
#include "models/attention_kernels.h"

#include <algorithm>
#include <cstring>
#include <utility>

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__) && defined(__AMX_BF16__)
#include "models/amx.h"
#include "models/attention_packing.h"

namespace convpass::kernels {
namespace {

constexpr int64_t kBlockQueries = 192;  ///< whose scores the backward pass holds at once

/// Rows of groups, `stride` bytes apart, times panels: out[r, n] over `groups` groups.
struct Factors {
  const void* rows = nullptr;
  int64_t stride = 0;
  const uint32_t* panels = nullptr;
  int64_t groups = 0, columns = 0;
};

/// Multiplies up to kRows rows and hands each 16 values to store(r, column, vector). Depths are
/// multiples of kPairs groups.
class VectorProduct {
 public:
  static constexpr int64_t kRows = kVectorRows, kPairs = 1;

  template <class Store>
  void operator()(int64_t rows, const Factors& of, const Store& store) const {
    switch (rows) {
      case 6:
        return all_columns<6>(of, store);
      case 5:
        return all_columns<5>(of, store);
      case 4:
        return all_columns<4>(of, store);
      case 3:
        return all_columns<3>(of, store);
      case 2:
        return all_columns<2>(of, store);
      default:
        return all_columns<1>(of, store);
    }
  }

 private:
  template <int kCount, class Store>
  static void all_columns(const Factors& of, const Store& store) {
    const uint32_t* panel = of.panels;
    for (int64_t column = 0; column < of.columns; column += kPanel, panel += of.groups * kPanel) {
      switch (std::min<int64_t>(4, (of.columns - column + 15) / 16)) {
        case 4:
          block<kCount, 4>(of, panel, column, store);
          break;
        case 3:
          block<kCount, 3>(of, panel, column, store);
          break;
        case 2:
          block<kCount, 2>(of, panel, column, store);
          break;
        default:
          block<kCount, 1>(of, panel, column, store);
      }
    }
  }

  template <int kCount, int kColumns, class Store>
  static void block(const Factors& of, const uint32_t* panel, int64_t column, const Store& store) {
    __m512 sums[kCount][kColumns];
    clear<Element::bf16>(sums);
    accumulate<Element::bf16>(of.rows, of.stride, panel, of.groups, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) store(r, column + v * 16, sums[r][v]);
  }
};

class TileProduct {
 public:
  static constexpr int64_t kRows = kBlock, kPairs = kStep;

  template <class Store>
  void operator()(int64_t rows, const Factors& of, const Store& store) {
    tiles_.set(rows);
    for (int64_t column = 0; column < of.columns; column += kBlock) {
      const uint32_t* panel = of.panels + column / kPanel * of.groups * kPanel + column % kPanel;
      if (rows > kSide)
        block<true>(of, panel);
      else
        block<false>(of, panel);
      const int64_t columns = std::min<int64_t>(kBlock, of.columns - column);
      for (int r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += kSide) store(r, column + c, sums_.real(r, c));
    }
  }

 private:
  template <bool kBoth>
  void block(const Factors& of, const uint32_t* panel) {
    clear_tiles<kBoth>();
    const auto* rows = static_cast<const uint8_t*>(of.rows);
    for (int64_t group = 0; group < of.groups; group += kStep)
      multiply_step<Element::bf16, kBoth>(rows + group * 4, of.stride, panel + group * kPanel);
    store_tiles<kBoth>(sums_, 0);
  }

  Tiles tiles_;
  PanelSums sums_;
};

/// Calls `work(rows, first row)` for up to `at_once` rows at a time.
template <class Work>
inline void in_blocks(int64_t rows, int64_t at_once, const Work& work) {
  for (int64_t row = 0; row < rows; row += at_once) work(std::min(at_once, rows - row), row);
}

/// exp(scale (s - max)) of a row in place, zeros from `keys` up to `padded`; returns its sum.
inline float exponentials(float* scores, int64_t keys, int64_t padded, float scale) {
  __m512 most = _mm512_set1_ps(-__builtin_inff());
  for (int64_t n = 0; n < keys; n += 16) {
    const __mmask16 mask = lanes(keys - n);
    most = _mm512_mask_max_ps(most, mask, most, _mm512_loadu_ps(scores + n));
  }
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
  const __m512 shift = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), factor);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < padded; n += 16) {
    const __m512 e = _mm512_maskz_mov_ps(
        lanes(keys - n), exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(scores + n), factor, shift)));
    sum = _mm512_add_ps(sum, e);
    _mm512_storeu_ps(scores + n, e);
  }
  return _mm512_reduce_add_ps(sum);
}

/// Cuts a thread's memory into arrays, which begin where a line of the cache does as long as all
/// sizes are multiples of it: a tile is read twice as fast then.
class Cutter {
 public:
  Cutter(Scratch& scratch, int64_t lanes) {
    const auto wanted = static_cast<size_t>(lanes + kLineLanes);
    if (scratch.size() < wanted) scratch.resize(wanted);
    const auto past = reinterpret_cast<uintptr_t>(scratch.data()) / 4 % kLineLanes;
    next_ = scratch.data() + (kLineLanes - past) % kLineLanes;
  }
  uint32_t* take(int64_t lanes) { return std::exchange(next_, next_ + lanes); }

 private:
  static constexpr int64_t kLineLanes = 16;
  uint32_t* next_;
};

/// Rows and depths of a head as Multiply wants them: what is added is zero.
template <class Multiply>
struct Sizes {
  static constexpr int64_t kDepth = 2 * Multiply::kPairs;  ///< values of a step
  int64_t keys, keys64, dim64, key_pairs, dim_pairs;
  explicit Sizes(const AttentionHead& head)
      : keys(up_to(head.keys, std::max<int64_t>(16, kDepth))),
        keys64(up_to(head.keys, kPanel)),
        dim64(up_to(head.dim, kPanel)),
        key_pairs(up_to(head.keys, kDepth) / 2),
        dim_pairs(head.dim / 2) {}
};

template <class Multiply>
void attend_with(const AttentionHead& head, Rows out, Scratch& scratch) {
  const Sizes<Multiply> size(head);
  constexpr int64_t kRows = Multiply::kRows;
  Multiply multiply;
  Cutter cut(scratch, size.keys64 * size.dim_pairs + size.dim64 * size.key_pairs +
                          kRows * (size.keys64 + size.keys64 / 2));
  uint32_t* keys = cut.take(size.keys64 * size.dim_pairs);
  uint32_t* values = cut.take(size.dim64 * size.key_pairs);
  auto* scores = reinterpret_cast<float*>(cut.take(kRows * size.keys64));
  auto* weights = reinterpret_cast<uint16_t*>(cut.take(kRows * size.keys64 / 2));
  pack_transposed(head.k, head.keys, head.dim, keys);
  pack_interleaved(head.v, head.keys, head.dim, size.key_pairs, values);

  in_blocks(head.queries, kRows, [&](int64_t rows, int64_t first) {
    multiply(
        rows,
        {head.q.data + first * head.q.stride, head.q.stride * 2, keys, size.dim_pairs, head.keys},
        [&](int r, int64_t column, __m512 sum) {
          _mm512_storeu_ps(scores + r * size.keys64 + column, sum);
        });
    float inverse[kRows];
    for (int64_t r = 0; r < rows; ++r) {
      float* row = scores + r * size.keys64;
      inverse[r] = 1 / exponentials(row, head.keys, size.keys, head.scale);
      for (int64_t n = 0; n < size.keys; n += 16)
        store_bf16(weights + r * size.keys64 + n, lanes(16), _mm512_loadu_ps(row + n));
    }
    multiply(rows, {weights, size.keys64 * 2, values, size.key_pairs, head.dim},
             [&](int r, int64_t column, __m512 sum) {
               store_bf16(out.data + (first + r) * out.stride + column, lanes(head.dim - column),
                          _mm512_mul_ps(sum, _mm512_set1_ps(inverse[r])));
             });
  });
}

template <class Multiply>
void attend_back_with(const AttentionHead& head, const AttentionGradient& grad, Scratch& scratch) {
  const Sizes<Multiply> size(head);
  constexpr int64_t kRows = Multiply::kRows;
  Multiply multiply;
  const int64_t block = std::min(kBlockQueries, up_to(head.queries, 32));
  const int64_t block_pairs = block / 2;
  Cutter cut(scratch, 2 * size.keys64 * size.dim_pairs + size.dim64 * size.key_pairs +
                          2 * size.dim64 * block_pairs + 2 * kRows * size.keys64 +
                          block * size.keys + 2 * size.keys * block_pairs +
                          2 * head.keys * size.dim64);
  uint32_t* keys = cut.take(size.keys64 * size.dim_pairs);
  uint32_t* values = cut.take(size.keys64 * size.dim_pairs);
  uint32_t* keys_by_row = cut.take(size.dim64 * size.key_pairs);
  uint32_t* queries_by_row = cut.take(size.dim64 * block_pairs);
  uint32_t* outs_by_row = cut.take(size.dim64 * block_pairs);
  auto* scores = reinterpret_cast<float*>(cut.take(kRows * size.keys64));
  auto* changes = reinterpret_cast<float*>(cut.take(kRows * size.keys64));
  auto* weights = reinterpret_cast<uint16_t*>(cut.take(block * size.keys / 2));
  auto* slopes = reinterpret_cast<uint16_t*>(cut.take(block * size.keys / 2));
  uint32_t* weights_by_key = cut.take(size.keys * block_pairs);
  uint32_t* slopes_by_key = cut.take(size.keys * block_pairs);
  auto* key_sums = reinterpret_cast<float*>(cut.take(head.keys * size.dim64));
  auto* value_sums = reinterpret_cast<float*>(cut.take(head.keys * size.dim64));
  pack_transposed(head.k, head.keys, head.dim, keys);
  pack_transposed(head.v, head.keys, head.dim, values);
  pack_interleaved(head.k, head.keys, head.dim, size.key_pairs, keys_by_row);

  for (int64_t start = 0; start < head.queries; start += block) {
    const int64_t queries = std::min(block, head.queries - start);
    const int64_t padded = up_to(queries, size.kDepth);  // an absent query weighs nothing
    const Rows q{head.q.data + start * head.q.stride, head.q.stride};
    const Rows out{grad.out.data + start * grad.out.stride, grad.out.stride};
    pack_interleaved(q, queries, head.dim, padded / 2, queries_by_row);
    pack_interleaved(out, queries, head.dim, padded / 2, outs_by_row);
    for (uint16_t* rows : {weights, slopes})
      std::memset(rows + queries * size.keys, 0,
                  static_cast<size_t>((padded - queries) * size.keys) * 2);

    in_blocks(queries, kRows, [&](int64_t rows, int64_t first) {
      multiply(rows, {q.data + first * q.stride, q.stride * 2, keys, size.dim_pairs, head.keys},
               [&](int r, int64_t column, __m512 sum) {
                 _mm512_storeu_ps(scores + r * size.keys64 + column, sum);
               });
      multiply(rows,
               {out.data + first * out.stride, out.stride * 2, values, size.dim_pairs, head.keys},
               [&](int r, int64_t column, __m512 sum) {
                 _mm512_storeu_ps(changes + r * size.keys64 + column, sum);
               });
      for (int64_t r = 0; r < rows; ++r) {
        float* row = scores + r * size.keys64;
        const float* change = changes + r * size.keys64;
        const __m512 inverse =
            _mm512_set1_ps(1 / exponentials(row, head.keys, size.keys, head.scale));
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
      multiply(rows,
               {slopes + first * size.keys, size.keys * 2, keys_by_row, size.key_pairs, head.dim},
               [&](int r, int64_t column, __m512 sum) {
                 store_bf16(grad.q.data + (start + first + r) * grad.q.stride + column,
                            lanes(head.dim - column), sum);
               });
    });

    transpose_pairs(weights, padded, size.keys, size.keys, weights_by_key);
    transpose_pairs(slopes, padded, size.keys, size.keys, slopes_by_key);
    const bool last = start + block >= head.queries;
    auto add_up = [&](const uint32_t* by_key, const uint32_t* by_row, float* sums, Rows to) {
      in_blocks(head.keys, kRows, [&](int64_t rows, int64_t first) {
        multiply(rows, {by_key + first * (padded / 2), padded * 2, by_row, padded / 2, head.dim},
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

/// Tiles read the tokens' rows in whole steps.
bool in_tiles(const AttentionHead& head) {
  return unit() == Unit::tiles && head.dim % (2 * kStep) == 0;
}

}  // namespace

void attend(const AttentionHead& head, Rows out, Scratch& scratch) {
  if (in_tiles(head))
    attend_with<TileProduct>(head, out, scratch);
  else
    attend_with<VectorProduct>(head, out, scratch);
}

void attend_back(const AttentionHead& head, const AttentionGradient& grad, Scratch& scratch) {
  if (in_tiles(head))
    attend_back_with<TileProduct>(head, grad, scratch);
  else
    attend_back_with<VectorProduct>(head, grad, scratch);
}

}  // namespace convpass::kernels

#else

namespace convpass::kernels {
void attend(const AttentionHead&, Rows, Scratch&) {}
void attend_back(const AttentionHead&, const AttentionGradient&, Scratch&) {}
}  // namespace convpass::kernels

#endif
