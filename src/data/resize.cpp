#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/data/image.h"
#include "src/core/widest_vectors.h"
#include "src/data/resize_tensorflow.h"

namespace convpass {
namespace {

// Pillow's fixed point: 22 bits after the point leave room for 8-bit pixels and overshoot.
constexpr int kPrecision = 22;
constexpr int64_t kMaxSide = 1 << 20;

// The weights of one axis: output i is the sum of `weights[i * stride + k] * input[first[i] + k]`.
struct Taps {
  std::vector<int64_t> first, count;
  std::vector<int32_t> weights;
  int64_t stride = 0;

  const int32_t* of(int64_t i) const { return weights.data() + i * stride; }
};

double kernel(double x, Interpolation interpolation) {
  x = std::abs(x);
  if (interpolation == Interpolation::bilinear) return x < 1.0 ? 1.0 - x : 0.0;
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

Taps make_taps(int64_t in, int64_t out, Interpolation interpolation) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = (interpolation == Interpolation::bicubic ? 2.0 : 1.0) * stretch;
  Taps taps;
  taps.stride = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  taps.weights.assign(static_cast<size_t>(out * taps.stride), 0);
  std::vector<double> weight(static_cast<size_t>(taps.stride));
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
    const int64_t count =
        std::min<int64_t>(static_cast<int64_t>(centre + support + 0.5), in) - first;
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      const double x = (static_cast<double>(k + first) - centre + 0.5) * (1.0 / stretch);
      weight[static_cast<size_t>(k)] = kernel(x, interpolation);
      sum += weight[static_cast<size_t>(k)];
    }
    for (int64_t k = 0; k < count; ++k) {
      double w = weight[static_cast<size_t>(k)];
      if (sum != 0.0) w /= sum;
      const double fixed = w * (1 << kPrecision);
      taps.weights[static_cast<size_t>(i * taps.stride + k)] =
          static_cast<int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
    taps.first.push_back(first);
    taps.count.push_back(count);
  }
  return taps;
}

// Bytes that are weighted together: 16 rows of RGB in the horizontal pass, 48 bytes of a row in the
// vertical one.
constexpr int64_t kLanes = 48;
constexpr int64_t kRows = kLanes / 3;

// out[s * kLanes + j] = sum over k of weights[k] * in[s * kLanes + k * step + j], for `spans`
// spans. Four taps at a time halve the traffic of the sums, which the compiler keeps in memory.
CONVPASS_WIDEST_VECTORS
void weigh(const uint8_t* __restrict in, int64_t step, const int32_t* __restrict weights,
           int64_t count, uint8_t* __restrict out, int64_t spans) {
  for (int64_t s = 0; s < spans; ++s, in += kLanes, out += kLanes) {
    int32_t sum[kLanes];
    for (int32_t& lane : sum) lane = 1 << (kPrecision - 1);
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
      const uint8_t* a = in + k * step;
      const uint8_t *b = a + step, *c = b + step, *d = c + step;
      const int32_t wa = weights[k], wb = weights[k + 1], wc = weights[k + 2], wd = weights[k + 3];
      for (int64_t j = 0; j < kLanes; ++j) {
        sum[j] += a[j] * wa + b[j] * wb + c[j] * wc + d[j] * wd;
      }
    }
    for (; k < count; ++k) {
      const uint8_t* a = in + k * step;
      for (int64_t j = 0; j < kLanes; ++j) sum[j] += a[j] * weights[k];
    }
    for (int64_t j = 0; j < kLanes; ++j) {
      out[j] = static_cast<uint8_t>(std::clamp(sum[j] >> kPrecision, 0, 255));
    }
  }
}

uint8_t weigh_one(const uint8_t* in, int64_t step, const int32_t* weights, int64_t count) {
  int32_t sum = 1 << (kPrecision - 1);
  for (int64_t k = 0; k < count; ++k) sum += in[k * step] * weights[k];
  return static_cast<uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
}

// A tile of 16x16 bytes: four perfect shuffles of sixteen vectors turn it.
void transpose_tile(const uint8_t* from, int64_t from_step, uint8_t* to, int64_t to_step) {
  using Vector = uint8_t __attribute__((vector_size(16)));
  Vector a[16], b[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&a[i], from + i * from_step, 16);
  for (int stage = 0; stage < 4; ++stage) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                         6, 22, 7, 23);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                             13, 29, 14, 30, 15, 31);
    }
    std::copy_n(b, 16, a);
  }
  for (int i = 0; i < 16; ++i) std::memcpy(to + i * to_step, &a[i], 16);
}

// to[column * to_step + row] = from[row * from_step + column].
void transpose(const uint8_t* from, int64_t from_step, int64_t rows, int64_t columns, uint8_t* to,
               int64_t to_step) {
  const int64_t even_rows = rows / 16 * 16, even_columns = columns / 16 * 16;
  for (int64_t r = 0; r < even_rows; r += 16) {
    for (int64_t c = 0; c < even_columns; c += 16) {
      transpose_tile(from + r * from_step + c, from_step, to + c * to_step + r, to_step);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < even_rows ? even_columns : 0; c < columns; ++c) {
      to[c * to_step + r] = from[r * from_step + c];
    }
  }
}

// Rows `top` to `bottom` of the image, each resized to `width`. Sixteen at a time are turned, so
// that what is weighted alike lies side by side.
Image horizontal(const Image& image, int64_t top, int64_t bottom, const Taps& taps, int64_t width) {
  Image result{bottom - top, width, {}};
  result.pixels.resize(static_cast<size_t>(result.height * width * 3));
  std::vector<uint8_t> turned(static_cast<size_t>(image.width * kLanes));
  std::vector<uint8_t> weighed(static_cast<size_t>(width * kLanes));
  const int64_t in_row = image.width * 3, out_row = width * 3;
  for (int64_t y = top; y < bottom; y += kRows) {
    const int64_t rows = std::min(kRows, bottom - y);
    transpose(image.pixels.data() + y * in_row, in_row, rows, in_row, turned.data(), kRows);
    for (int64_t x = 0; x < width; ++x) {
      const auto i = static_cast<size_t>(x);
      weigh(turned.data() + taps.first[i] * kLanes, kLanes, taps.of(x), taps.count[i],
            weighed.data() + x * kLanes, 1);
    }
    transpose(weighed.data(), kRows, out_row, rows, result.pixels.data() + (y - top) * out_row,
              out_row);
  }
  return result;
}

// `image` holds the rows from `top` on.
Image vertical(const Image& image, int64_t top, const Taps& taps, int64_t height) {
  Image result{height, image.width, {}};
  const int64_t row = image.width * 3;
  const int64_t spans = row / kLanes;
  result.pixels.resize(static_cast<size_t>(height * row));
  for (int64_t y = 0; y < height; ++y) {
    const auto i = static_cast<size_t>(y);
    const uint8_t* from = image.pixels.data() + (taps.first[i] - top) * row;
    uint8_t* to = result.pixels.data() + y * row;
    weigh(from, row, taps.of(y), taps.count[i], to, spans);
    for (int64_t x = spans * kLanes; x < row; ++x) {
      to[x] = weigh_one(from + x, row, taps.of(y), taps.count[i]);
    }
  }
  return result;
}

}  // namespace

Image resize(const Image& image, int64_t height, int64_t width, Interpolation interpolation) {
  if (height <= 0 || width <= 0 || height > kMaxSide || width > kMaxSide || image.height <= 0 ||
      image.width <= 0) {
    throw Error("resize: from " + std::to_string(image.width) + "x" + std::to_string(image.height) +
                " to " + std::to_string(width) + "x" + std::to_string(height) +
                " pixels, wanted sides from 1 to " + std::to_string(kMaxSide));
  }
  if (height == image.height && width == image.width) return image;
  if (interpolation == Interpolation::tf_bilinear) return tf_bilinear(image, height, width);
  if (interpolation == Interpolation::tf_area) return tf_area(image, height, width);
  const Taps across = make_taps(image.width, width, interpolation);
  const Taps down = make_taps(image.height, height, interpolation);
  if (height == image.height) return horizontal(image, 0, image.height, across, width);
  if (width == image.width) return vertical(image, 0, down, height);
  // Pillow 13 goes down first where that saves more rows than twice the columns it costs. (Up to
  // Pillow 12 it always went across first; the rounding between the passes then differs.)
  if (height < image.height && image.height - height > 2 * (image.width - width)) {
    return horizontal(vertical(image, 0, down, height), 0, height, across, width);
  }
  const int64_t top = down.first[0], bottom = down.first.back() + down.count.back();
  return vertical(horizontal(image, top, bottom, across, width), top, down, height);
}

Image crop(const Image& image, int64_t top, int64_t left, int64_t height, int64_t width) {
  Image result{height, width, {}};
  result.pixels.resize(static_cast<size_t>(height * width * 3));
  const int64_t from_x = std::max<int64_t>(left, 0);
  const int64_t to_x = std::min(left + width, image.width);
  for (int64_t y = std::max<int64_t>(top, 0); y < std::min(top + height, image.height); ++y) {
    if (to_x <= from_x) break;
    std::copy_n(image.pixels.data() + (y * image.width + from_x) * 3, (to_x - from_x) * 3,
                result.pixels.data() + ((y - top) * width + from_x - left) * 3);
  }
  return result;
}

}  // namespace convpass
