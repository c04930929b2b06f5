#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "models/gemm_kernels.h"

/// Products of AMX's tiles. For sources compiled for AMX alone, local to them as models/avx512.h
/// is, and run only after Unit::tiles is granted.
namespace convpass::kernels {
namespace {

constexpr int kSide = 16;           ///< rows of a tile, and 32-bit lanes in a row
constexpr int kBlock = 2 * kSide;   ///< rows and columns of the block that four tiles sum up
constexpr int64_t kLineBytes = 64;  ///< of a tile's row; along K: 32 bfloat16 or 64 int8
constexpr int64_t kStep = 16;       ///< groups along K that one instruction multiplies

/// What LDTILECFG reads (Intel SDM, volume 1, 18.2).
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

/// Tiles 0 to 3 sum up a block (0 and 1 its first 16 rows), 4 and 5 hold the inputs' rows, 6 and 7
/// the weights' columns. For each number of rows from 1 to kBlock.
constexpr std::array<TileConfig, kBlock + 1> make_tile_configs() {
  std::array<TileConfig, kBlock + 1> all{};
  for (int rows = 1; rows <= kBlock; ++rows) {
    const int first = std::min(rows, kSide), second = rows > kSide ? rows - kSide : kSide;
    TileConfig& config = all[static_cast<size_t>(rows)];
    for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = kLineBytes;
    const int of_tile[] = {first, first, second, second, first, second, kSide, kSide};
    for (int tile = 0; tile < 8; ++tile) config.rows[tile] = static_cast<uint8_t>(of_tile[tile]);
  }
  return all;
}
/// Constants: the compiler may not see that the instruction reads all of one.
constexpr std::array<TileConfig, kBlock + 1> kTileConfigs = make_tile_configs();

/// The tiles of one thread, given back at the end.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }

  /// For blocks of `rows` rows, 1 to kBlock.
  void set(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    _tile_loadconfig(&kTileConfigs[static_cast<size_t>(rows)]);
  }

 private:
  int64_t rows_ = 0;
};

/// Sums over the depth of kBlock rows and a panel's columns, float or int32.
struct alignas(64) PanelSums {
  uint32_t values[kBlock][kPanel];

  __m512i whole(int row, int64_t column) const { return _mm512_load_si512(&values[row][column]); }
  __m512 real(int row, int64_t column) const { return _mm512_castsi512_ps(whole(row, column)); }
};

/// To be called between writing memory and reading it as a tile: the compiler does not know that
/// the instruction reads what is behind its pointer.
inline void finish_stores() { std::atomic_signal_fence(std::memory_order_seq_cst); }

/// tiles += rows times 32 columns of a panel, over kStep groups.
template <Element kElement, bool kBoth>
inline void multiply_step(const uint8_t* rows, int64_t stride, const uint32_t* panel) {
  _tile_loadd(4, rows, stride);
  _tile_loadd(6, panel, kPanel * 4);
  _tile_loadd(7, panel + kSide, kPanel * 4);
  if constexpr (kBoth) _tile_loadd(5, rows + kSide * stride, stride);
  if constexpr (kElement == Element::s8) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if constexpr (kBoth) {
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kBoth) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

template <bool kBoth>
inline void clear_tiles() {
  finish_stores();
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kBoth) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

/// Stores a block of sums at the columns from `column` on.
template <bool kBoth>
inline void store_tiles(PanelSums& sums, int64_t column) {
  constexpr int64_t kStride = kPanel * 4;
  _tile_stored(0, &sums.values[0][column], kStride);
  _tile_stored(1, &sums.values[0][column + kSide], kStride);
  if constexpr (kBoth) {
    _tile_stored(2, &sums.values[kSide][column], kStride);
    _tile_stored(3, &sums.values[kSide][column + kSide], kStride);
  }
  finish_stores();
}

}  // namespace
}  // namespace convpass::kernels
