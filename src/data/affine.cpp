#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <utility>
#include <vector>

#include "src/data/image_ops.h"
#include "src/data/widest_vectors.h"

namespace convpass {
namespace {

// Pixels that are computed together, four bytes each (the fourth is no colour).
constexpr int64_t kTile = 16;
constexpr int64_t kLanes = kTile * 4;
constexpr int64_t kMaxTaps = 4;

// The image with four bytes a pixel and its outermost pixels repeated, so that no tap of a filter
// needs to look where the border is.
struct Padded {
  static constexpr int64_t kBorder = 2;
  int64_t row_bytes;
  std::vector<uint8_t> bytes;

  explicit Padded(const Image& image)
      : row_bytes((image.width + 2 * kBorder) * 4),
        bytes(static_cast<size_t>(row_bytes * (image.height + 2 * kBorder))) {
    for (int64_t y = 0; y < image.height; ++y) {
      const uint8_t* from = image.pixels.data() + y * image.width * 3;
      uint8_t* to = at(0, y);
      for (int64_t x = 0; x < image.width; ++x) std::copy_n(from + x * 3, 3, to + x * 4);
      for (int64_t x = 1; x <= kBorder; ++x) {
        std::copy_n(to, 4, to - x * 4);
        std::copy_n(to + (image.width - 1) * 4, 4, to + (image.width - 1 + x) * 4);
      }
    }
    for (int64_t y = 1; y <= kBorder; ++y) {
      std::copy_n(at(-kBorder, 0), row_bytes, at(-kBorder, -y));
      std::copy_n(at(-kBorder, image.height - 1), row_bytes, at(-kBorder, image.height - 1 + y));
    }
  }
  uint8_t* at(int64_t x, int64_t y) {
    return bytes.data() + (y + kBorder) * row_bytes + (x + kBorder) * 4;
  }
};

// Where the pixels of a tile lie: the pixel at or before each, and how far beyond it, 0 to 1.
struct Places {
  const uint8_t* pixel[kTile];
  double across[kLanes], down[kLanes];
};

using TapLanes = uint8_t[kMaxTaps][kLanes];
using RowLanes = double[kMaxTaps][kLanes];

// Of whole numbers the differences are exact in any order.
CONVPASS_WIDEST_VECTORS
void cubic_between_pixels(const TapLanes& taps, const double* at, double* __restrict out) {
  for (int64_t i = 0; i < kLanes; ++i) {
    const int a = taps[0][i], b = taps[1][i], c = taps[2][i], d = taps[3][i];
    const double first = c - a, second = 2 * (a - b) + c - d, third = b - a + d - c;
    out[i] = b + at[i] * (first + at[i] * (second + at[i] * third));
  }
}

CONVPASS_WIDEST_VECTORS
void cubic_between_rows(const RowLanes& rows, const double* at, double* __restrict out) {
  for (int64_t i = 0; i < kLanes; ++i) {
    const double a = rows[0][i], b = rows[1][i], c = rows[2][i], d = rows[3][i];
    const double first = -a + c, second = 2 * (a - b) + c - d, third = -a + b - c + d;
    out[i] = b + at[i] * (first + at[i] * (second + at[i] * third));
  }
}

CONVPASS_WIDEST_VECTORS
void linear_between_pixels(const TapLanes& taps, const double* at, double* __restrict out) {
  for (int64_t i = 0; i < kLanes; ++i) {
    out[i] = taps[0][i] + (taps[1][i] - taps[0][i]) * at[i];
  }
}

CONVPASS_WIDEST_VECTORS
void linear_between_rows(const RowLanes& rows, const double* at, double* __restrict out) {
  for (int64_t i = 0; i < kLanes; ++i) out[i] = rows[0][i] + (rows[1][i] - rows[0][i]) * at[i];
}

CONVPASS_WIDEST_VECTORS
void to_bytes(const double* values, uint8_t* __restrict bytes) {
  for (int64_t i = 0; i < kLanes; ++i) {
    bytes[i] = static_cast<uint8_t>(static_cast<int>(std::clamp(values[i], 0.0, 255.0)));
  }
}

struct Filter {
  int64_t taps;
  int64_t first;  // offset of the first tap from the pixel at or before the place
  void (*between_pixels)(const TapLanes& taps, const double* at, double* out);
  void (*between_rows)(const RowLanes& rows, const double* at, double* out);
};
constexpr Filter kCubic{4, -1, cubic_between_pixels, cubic_between_rows};
constexpr Filter kLinear{2, 0, linear_between_pixels, linear_between_rows};

// Which ways a matrix moves pixels by parts of a pixel.
enum class Moves { across, down, both };

Moves moves_of(const std::array<double, 6>& m) {
  if (m[3] == 0 && m[4] == 1 && m[5] == 0) return Moves::across;
  if (m[0] == 1 && m[1] == 0 && m[2] == 0) return Moves::down;
  return Moves::both;
}

// Taps of a tile that lie `step` bytes apart, `offset` bytes from the places.
void gather(const Places& places, int64_t offset, int64_t step, int64_t count, TapLanes& taps) {
  for (int64_t i = 0; i < kTile; ++i) {
    const uint8_t* from = places.pixel[i] + offset;
    for (int64_t k = 0; k < count; ++k) std::memcpy(taps[k] + i * 4, from + k * step, 4);
  }
}

void sample(const Places& places, int64_t row_bytes, Moves moves, const Filter& filter,
            double* values) {
  TapLanes taps;
  auto line = [&](int64_t offset, int64_t step, const double* at, double* out) {
    gather(places, offset + filter.first * step, step, filter.taps, taps);
    filter.between_pixels(taps, at, out);
  };
  // The other way the distance is exactly 0, and a filter gives the pixel itself.
  if (moves == Moves::across) return line(0, 4, places.across, values);
  if (moves == Moves::down) return line(0, row_bytes, places.down, values);
  RowLanes rows;
  for (int64_t k = 0; k < filter.taps; ++k) {
    line((filter.first + k) * row_bytes, 4, places.across, rows[k]);
  }
  filter.between_rows(rows, places.down, values);
}

// Whole numbers at or below, without a call where the processor has no instruction for it.
int64_t floor_of(double value) {
  const auto whole = static_cast<int64_t>(value);
  return whole - (value < static_cast<double>(whole) ? 1 : 0);
}

struct Range {
  int64_t first, last;
};

// The columns whose place lies in [0, limit): neighbours, as places rise or fall along a row.
template <class PlaceOf>
Range inside(int64_t width, double limit, PlaceOf place_of) {
  const bool falls = place_of(width - 1) < place_of(0);
  // How many columns lie before `bound`, counted from the end where places are least.
  auto before = [&](double bound) {
    int64_t low = 0, high = width;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (place_of(falls ? width - 1 - middle : middle) < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int64_t from = before(0), to = before(limit);
  return falls ? Range{width - to, width - from} : Range{from, to};
}

// Python's round(value, 15).
double rounded_to_15_places(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.15f", value);
  return std::strtod(text, nullptr);
}

}  // namespace

void affine(Image& image, const std::array<double, 6>& m, const Sampling& sampling) {
  TORCH_CHECK(!is_tensorflow(sampling.interpolation), "affine is bicubic or bilinear");
  const Filter& filter = sampling.interpolation == Interpolation::bicubic ? kCubic : kLinear;
  const Moves moves = moves_of(m);
  Padded padded(image);
  Places places;
  double values[kLanes];
  uint8_t bytes[kLanes];
  for (int64_t y = 0; y < image.height; ++y) {
    const double row = static_cast<double>(y) + 0.5;
    auto place_x = [&](int64_t x) {
      return m[0] * (static_cast<double>(x) + 0.5) + m[1] * row + m[2];
    };
    auto place_y = [&](int64_t x) {
      return m[3] * (static_cast<double>(x) + 0.5) + m[4] * row + m[5];
    };
    const Range columns = inside(image.width, static_cast<double>(image.width), place_x);
    const Range rows = inside(image.width, static_cast<double>(image.height), place_y);
    const int64_t first = std::max(columns.first, rows.first);
    const int64_t last = std::max(first, std::min(columns.last, rows.last));
    uint8_t* out = image.pixels.data() + y * image.width * 3;
    auto fill = [&](int64_t from, int64_t to) {
      for (int64_t x = from; x < to; ++x) std::copy_n(sampling.fill.data(), 3, out + x * 3);
    };
    fill(0, first);
    fill(last, image.width);
    for (int64_t x = first; x < last; x += kTile) {
      for (int64_t i = 0; i < kTile; ++i) {
        // The last tile repeats its last pixel.
        const int64_t column = std::min(x + i, last - 1);
        const double across = place_x(column) - 0.5, down = place_y(column) - 0.5;
        const int64_t left = floor_of(across), top = floor_of(down);
        places.pixel[i] = padded.at(left, top);
        std::fill_n(places.across + i * 4, 4, across - static_cast<double>(left));
        std::fill_n(places.down + i * 4, 4, down - static_cast<double>(top));
      }
      sample(places, padded.row_bytes, moves, filter, values);
      to_bytes(values, bytes);
      const int64_t count = std::min(kTile, last - x);
      for (int64_t i = 0; i < count; ++i) std::copy_n(bytes + i * 4, 3, out + (x + i) * 3);
    }
  }
}

void rotate(Image& image, double degrees, const Sampling& sampling) {
  double turn = std::fmod(degrees, 360.0);
  if (turn < 0) turn += 360.0;
  if (turn == 0) return;
  const double angle = -(turn * (std::numbers::pi / 180.0));
  const double c = rounded_to_15_places(std::cos(angle));
  const double s = rounded_to_15_places(std::sin(angle));
  const double x = static_cast<double>(image.width) / 2, y = static_cast<double>(image.height) / 2;
  affine(image, {c, s, c * -x + s * -y + x, -s, c, -s * -x + c * -y + y}, sampling);
}

void shear_x(Image& image, double factor, const Sampling& sampling) {
  affine(image, {1, factor, 0, 0, 1, 0}, sampling);
}

void shear_y(Image& image, double factor, const Sampling& sampling) {
  affine(image, {1, 0, 0, factor, 1, 0}, sampling);
}

void translate_x(Image& image, double fraction, const Sampling& sampling) {
  affine(image, {1, 0, fraction * static_cast<double>(image.width), 0, 1, 0}, sampling);
}

void translate_y(Image& image, double fraction, const Sampling& sampling) {
  affine(image, {1, 0, 0, 0, 1, fraction * static_cast<double>(image.height)}, sampling);
}

}  // namespace convpass
