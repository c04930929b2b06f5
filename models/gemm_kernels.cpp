// Compiled for AVX512 with VNNI and BF16 on x86-64 (see CMakeLists.txt), called only where
// supported() says so.
#include "models/gemm_kernels.h"

#include <algorithm>
#include <atomic>

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include "models/product_finish.h"

namespace convpass::kernels {
namespace {

template <Element kElement, int kRows>
void tile(const Product& product, int64_t panel, int64_t row) {
  typename Sum<kElement>::Vector sums[kRows][kVectors];
  clear<kElement>(sums);
  accumulate<kElement>(static_cast<const uint8_t*>(product.input) + row * product.input_stride,
                       product.input_stride,
                       static_cast<const uint8_t*>(product.weight) + panel * product.weight_stride,
                       product.depth / group_of(kElement), sums);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; v += 2) {
    const int64_t column = panel * kPanel + v * 16;
    if (column >= product.columns) break;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) finish(product, row + r, column, sums[r][v], sums[r][v + 1]);
  }
}

template <Element kElement>
void rows_of(const Product& product, int64_t panel, int64_t first, int64_t last) {
  int64_t row = first;
  for (; row + kVectorRows <= last; row += kVectorRows)
    tile<kElement, kVectorRows>(product, panel, row);
  switch (last - row) {
    case 5:
      return tile<kElement, 5>(product, panel, row);
    case 4:
      return tile<kElement, 4>(product, panel, row);
    case 3:
      return tile<kElement, 3>(product, panel, row);
    case 2:
      return tile<kElement, 2>(product, panel, row);
    case 1:
      return tile<kElement, 1>(product, panel, row);
    default:
      return;
  }
}

}  // namespace

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

void multiply(const Product& product, int64_t panel, int64_t first_row, int64_t last_row) {
  if (unit() == Unit::tiles)
    tiles::multiply(product, panel, first_row, last_row);
  else if (product.element == Element::s8)
    rows_of<Element::s8>(product, panel, first_row, last_row);
  else
    rows_of<Element::bf16>(product, panel, first_row, last_row);
}

void quantise_rows(const uint16_t* input, int64_t rows, int64_t depth, int64_t input_stride,
                   const float* factor, uint8_t* out, float* scale) {
  for (int64_t m = 0; m < rows; ++m, input += input_stride, out += depth) {
    auto values = [&](int64_t k, __mmask16 mask) {
      const __m512 x = load_bf16(input + k, mask);
      return factor == nullptr ? x : _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, factor + k));
    };
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 16)
      largest = _mm512_max_ps(largest, _mm512_abs_ps(values(k, lanes(depth - k))));
    const float most = _mm512_reduce_max_ps(largest);
    scale[m] = most / 127.0f;
    const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
    for (int64_t k = 0; k < depth; k += 16) {
      const __mmask16 mask = lanes(depth - k);
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values(k, mask), inverse));
      _mm_mask_storeu_epi8(out + k, mask,
                           _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128))));
    }
  }
}

}  // namespace convpass::kernels

#else

namespace convpass::kernels {
bool supported() { return false; }
void multiply(const Product&, int64_t, int64_t, int64_t) {}
void quantise_rows(const uint16_t*, int64_t, int64_t, int64_t, const float*, uint8_t*, float*) {}
}  // namespace convpass::kernels

#endif

namespace convpass::kernels {
namespace {
std::atomic<Unit>& chosen_unit() {
  static std::atomic<Unit> unit = tiles::supported() ? Unit::tiles : Unit::vectors;
  return unit;
}
}  // namespace

Unit unit() { return chosen_unit().load(std::memory_order_relaxed); }

bool use(Unit unit) {
  if (unit == Unit::tiles && !tiles::supported()) return false;
  chosen_unit() = unit;
  return true;
}

int64_t rows_at_once() { return unit() == Unit::tiles ? 32 : kVectorRows; }

}  // namespace convpass::kernels
