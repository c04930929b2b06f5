#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <vector>

#include "src/core/widest_vectors.h"
#include "src/data/image_ops.h"

namespace convpass {
namespace {

// Pixels that are computed together, four bytes each (the fourth is no colour).
constexpr int64_t kTile = 16;
constexpr int64_t kLanes = kTile * 4;
constexpr int64_t kMaxTaps = 4;

// Copies three bytes and a fourth that is of no use: one instruction instead of two.
void copy_pixel(const uint8_t* from, uint8_t* to) { std::memcpy(to, from, 4); }

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
      const int64_t end = image.width - 1;  // what follows the last pixel may not be ours to read
      for (int64_t x = 0; x < end; ++x) copy_pixel(from + x * 3, to + x * 4);
      std::copy_n(from + end * 3, 3, to + end * 4);
      for (int64_t x = 1; x <= kBorder; ++x) {
        copy_pixel(to, to - x * 4);
        copy_pixel(to + end * 4, to + (end + x) * 4);
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

// One coordinate of the places that a row of the output shows, in Pillow's order of operations.
struct Line {
  double slope, of_row, offset;
  double at(double x) const { return slope * (x + 0.5) + of_row + offset; }
};

// For each pixel of a tile the one at or before its place, and how far beyond it the place is, 0
// to 1, four times over.
struct Places {
  int32_t pixel[kTile];
  double beyond[kLanes];
};

// From column `first` on; a tile that is cut short by `last` repeats its last pixel.
CONVPASS_WIDEST_VECTORS
void find_places(const Line& line, int64_t first, int64_t last, Places& __restrict places) {
  const auto from = static_cast<double>(first), end = static_cast<double>(last - 1);
  double beyond[kTile];
  for (int i = 0; i < kTile; ++i) {
    const double place = line.at(std::min(from + i, end)) - 0.5;
    const auto whole = static_cast<int32_t>(place);
    places.pixel[i] = whole - (place < whole ? 1 : 0);
    beyond[i] = place - places.pixel[i];
  }
  for (int i = 0; i < kTile; ++i) {
    for (int lane = 0; lane < 4; ++lane) places.beyond[i * 4 + lane] = beyond[i];
  }
}

using TapLanes = uint8_t[kMaxTaps][kLanes];
using RowLanes = double[kMaxTaps][kLanes];

// At `t` from b to c, in Pillow's order of operations; of whole numbers the differences are exact.
template <class Number>
double cubic(Number a, Number b, Number c, Number d, double t) {
  const double first = c - a, second = 2 * (a - b) + c - d, third = b - a - c + d;
  return b + t * (first + t * (second + t * third));
}

CONVPASS_WIDEST_VECTORS
void cubic_between_pixels(const TapLanes& taps, const double* at, double* __restrict out) {
  for (int i = 0; i < kLanes; ++i) {
    out[i] = cubic<int>(taps[0][i], taps[1][i], taps[2][i], taps[3][i], at[i]);
  }
}

CONVPASS_WIDEST_VECTORS
void cubic_between_rows(const RowLanes& rows, const double* at, double* __restrict out) {
  for (int i = 0; i < kLanes; ++i) {
    out[i] = cubic<double>(rows[0][i], rows[1][i], rows[2][i], rows[3][i], at[i]);
  }
}

CONVPASS_WIDEST_VECTORS
void linear_between_pixels(const TapLanes& taps, const double* at, double* __restrict out) {
  for (int i = 0; i < kLanes; ++i) {
    out[i] = taps[0][i] + (taps[1][i] - taps[0][i]) * at[i];
  }
}

CONVPASS_WIDEST_VECTORS
void linear_between_rows(const RowLanes& rows, const double* at, double* __restrict out) {
  for (int i = 0; i < kLanes; ++i) out[i] = rows[0][i] + (rows[1][i] - rows[0][i]) * at[i];
}

// Taps, and the first one counted from the pixel at or before the place.
struct Cubic {
  static constexpr int64_t kTaps = 4, kFirst = -1;
  static constexpr auto between_pixels = cubic_between_pixels;
  static constexpr auto between_rows = cubic_between_rows;
};
struct Linear {
  static constexpr int64_t kTaps = 2, kFirst = 0;
  static constexpr auto between_pixels = linear_between_pixels;
  static constexpr auto between_rows = linear_between_rows;
};

CONVPASS_WIDEST_VECTORS
void to_bytes(const double* values, uint8_t* __restrict bytes) {
  for (int i = 0; i < kLanes; ++i) {
    bytes[i] = static_cast<uint8_t>(static_cast<int>(std::clamp(values[i], 0.0, 255.0)));
  }
}

// Which ways a matrix moves pixels by parts of a pixel.
enum class Moves { across, down, both };

Moves moves_of(const std::array<double, 6>& m) {
  if (m[3] == 0 && m[4] == 1 && m[5] == 0) return Moves::across;
  if (m[0] == 1 && m[1] == 0 && m[2] == 0) return Moves::down;
  return Moves::both;
}

// What a tile of the output shows. `pixels` are those at or before the places.
template <class Filter>
void sample(const uint8_t* const* pixels, int64_t row_bytes, Moves moves, const double* across,
            const double* down, double* values) {
  auto line = [&](int64_t offset, int64_t step, const double* at, double* out) {
    TapLanes taps;
    for (int64_t i = 0; i < kTile; ++i) {
      const uint8_t* from = pixels[i] + offset + Filter::kFirst * step;
      for (int64_t k = 0; k < Filter::kTaps; ++k) copy_pixel(from + k * step, taps[k] + i * 4);
    }
    Filter::between_pixels(taps, at, out);
  };
  // The other way the distance is exactly 0, and a filter gives the pixel itself.
  if (moves == Moves::across) return line(0, 4, across, values);
  if (moves == Moves::down) return line(0, row_bytes, down, values);
  RowLanes rows;
  for (int64_t k = 0; k < Filter::kTaps; ++k) {
    line((Filter::kFirst + k) * row_bytes, 4, across, rows[k]);
  }
  Filter::between_rows(rows, down, values);
}

struct Range {
  int64_t first, last;
};

// The columns whose place lies in [0, limit): neighbours, as places rise or fall along a row.
Range inside(const Line& line, int64_t width, int64_t limit) {
  auto column = [&](int64_t i) { return static_cast<double>(line.slope < 0 ? width - 1 - i : i); };
  // How many columns lie before `bound`, counted from the end where places are least.
  auto before = [&](double bound) {
    int64_t low = 0, high = width;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (line.at(column(middle)) < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int64_t from = before(0), to = before(static_cast<double>(limit));
  return line.slope < 0 ? Range{width - to, width - from} : Range{from, to};
}

// Writes columns `first` to `last` of a row of the output.
template <class Filter>
void draw_row(Padded& padded, const Line& x, const Line& y, Moves moves, const Range& columns,
              uint8_t* out) {
  Places across, down;
  const uint8_t* pixels[kTile];
  double values[kLanes];
  uint8_t bytes[kLanes];
  for (int64_t column = columns.first; column < columns.last; column += kTile) {
    find_places(x, column, columns.last, across);
    find_places(y, column, columns.last, down);
    for (int64_t i = 0; i < kTile; ++i) pixels[i] = padded.at(across.pixel[i], down.pixel[i]);
    sample<Filter>(pixels, padded.row_bytes, moves, across.beyond, down.beyond, values);
    to_bytes(values, bytes);
    const int64_t count = std::min(kTile, columns.last - column);
    // The fourth byte falls on the next pixel, which is yet to be written, and not beyond the last.
    for (int64_t i = 0; i + 1 < count; ++i) copy_pixel(bytes + i * 4, out + (column + i) * 3);
    std::copy_n(bytes + (count - 1) * 4, 3, out + (column + count - 1) * 3);
  }
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
  const auto draw =
      sampling.interpolation == Interpolation::bicubic ? draw_row<Cubic> : draw_row<Linear>;
  const Moves moves = moves_of(m);
  Padded padded(image);
  for (int64_t y = 0; y < image.height; ++y) {
    const double row = static_cast<double>(y) + 0.5;
    const Line line_x{m[0], m[1] * row, m[2]}, line_y{m[3], m[4] * row, m[5]};
    const Range columns = inside(line_x, image.width, image.width);
    const Range rows = inside(line_y, image.width, image.height);
    const int64_t first = std::max(columns.first, rows.first);
    const int64_t last = std::max(first, std::min(columns.last, rows.last));
    uint8_t* out = image.pixels.data() + y * image.width * 3;
    auto fill = [&](int64_t from, int64_t to) {
      for (int64_t x = from; x < to; ++x) std::copy_n(sampling.fill.data(), 3, out + x * 3);
    };
    fill(0, first);
    fill(last, image.width);
    draw(padded, line_x, line_y, moves, {first, last}, out);
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
