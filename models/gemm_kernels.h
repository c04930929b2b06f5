#pragma once

#include <cstdint>

/// Matrix products of a batch of tokens with a frozen weight, on one thread, for CPUs with
/// AVX512-VNNI and AVX512-BF16, and with AMX where there is that, too. Plain memory, no LibTorch:
/// models/packed_linear.cpp calls these from its threads.
namespace convpass::kernels {

/// Rows that the vectors' micro-kernel computes at once, and columns of a panel of the packed
/// weight.
constexpr int64_t kVectorRows = 6;
constexpr int64_t kPanel = 64;

/// Whether this CPU has what the kernels need.
bool supported();

/// What multiplies: the vectors of AVX512, or the tiles of AMX, several times as fast. An int8
/// product is the same to the bit; one of bfloat16 adds up in another order.
enum class Unit : uint8_t { vectors, tiles };
/// The one in use: tiles where the CPU has them and the operating system grants them.
Unit unit();
/// Another one from now on, to compare them; false if this machine does not have it.
bool use(Unit unit);
/// A thread's rows are best a multiple of this.
int64_t rows_at_once();

enum class Element : uint8_t {
  s8,    ///< weights int8, inputs uint8 (int8 + 128); groups of 4 along K
  bf16,  ///< both bfloat16; groups of 2 along K
};
/// Values along K that one 32-bit lane holds.
constexpr int64_t group_of(Element element) { return element == Element::s8 ? 4 : 2; }

/// What is done with a product before it is stored.
enum class Finish : uint8_t {
  none,
  gelu,        ///< x Phi(x)
  gelu_tanh,   ///< its tanh form
  quick_gelu,  ///< x sigmoid(1.702 x)
  slope,       ///< times the stored slope: the backward pass through an activation
};

/// out[m, n] = finish(row_scale[m] column_scale[n] sum_k input[m, k] weight[k, n] + bias[n])
struct Product {
  Element element = Element::bf16;
  int64_t rows = 0, columns = 0, depth = 0;  ///< M, N, K; K a multiple of group_of(element)
  const void* input = nullptr;               ///< [M, K], rows `input_stride` bytes apart
  int64_t input_stride = 0;
  const void* weight = nullptr;            ///< panels: [ceil(N / 64), K / group, 64, group]
  int64_t weight_stride = 0;               ///< bytes from panel to panel
  const float* bias = nullptr;             ///< [N] or null
  const float* row_scale = nullptr;        ///< [M], s8 alone
  const float* column_scale = nullptr;     ///< [N] or null, s8 alone
  const int32_t* column_offset = nullptr;  ///< [N], s8 alone: 128 * sum_k weight[k, n]
  uint16_t* out = nullptr;                 ///< [M, N] bfloat16
  int64_t out_stride = 0;                  ///< values
  Finish finish = Finish::none;
  /// [M, N], rows `out_stride` values apart: where an activation's slope is written (may be null),
  /// or what Finish::slope reads. Slopes lie between -0.13 and 1.13 and are held in 256 steps.
  uint8_t* slope = nullptr;
};

/// Computes the rows [first_row, last_row) of one panel of columns.
void multiply(const Product& product, int64_t panel, int64_t first_row, int64_t last_row);

/// Quantises rows [rows, depth] of bfloat16, `input_stride` values apart and times factor[k] where
/// there is one, to uint8 around 128, each row with the scale max|x| / 127 of its own.
void quantise_rows(const uint16_t* input, int64_t rows, int64_t depth, int64_t input_stride,
                   const float* factor, uint8_t* out, float* scale);

namespace tiles {
/// Asks the operating system for the tiles once.
bool supported();
void multiply(const Product& product, int64_t panel, int64_t first_row, int64_t last_row);
}  // namespace tiles

}  // namespace convpass::kernels
