#include "src/data/crop_box.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace convpass {
namespace {

// Python's round: halves to the even neighbour.
int64_t round_half_even(double value) { return static_cast<int64_t>(std::nearbyint(value)); }
int64_t round_half_even(float value) { return std::lrint(value); }

// One try for a part of this ratio, in the float32 arithmetic of TensorFlow's kernel.
std::optional<Box> inception_try(int64_t height, int64_t width, std::span<const double, 2> area,
                                 float ratio, Rng& rng) {
  const auto rows = static_cast<float>(height), columns = static_cast<float>(width);
  const float least = static_cast<float>(area[0]) * columns * rows;
  const float most = static_cast<float>(area[1]) * columns * rows;
  auto width_of = [&](int64_t h) { return round_half_even(static_cast<float>(h) * ratio); };
  int64_t h = round_half_even(std::sqrt(least / ratio));
  int64_t highest = round_half_even(std::sqrt(most / ratio));
  if (width_of(highest) > width) {
    constexpr double kBelowHalf = 0.5 - static_cast<double>(1e-7f);
    highest = static_cast<int64_t>((static_cast<double>(width) + kBelowHalf) / ratio);
    if (width_of(highest) > width) --highest;
  }
  highest = std::min(highest, height);
  h = h < highest ? h + rng.below(highest - h + 1) : highest;
  // Rounding can leave the bounds: one row more or less may mend it.
  auto area_of = [&] { return static_cast<float>(width_of(h) * h); };
  if (area_of() < least) ++h;
  if (area_of() > most) --h;
  const int64_t w = width_of(h);
  if (area_of() < least || area_of() > most || w > width || h > height || w <= 0 || h <= 0) {
    return std::nullopt;
  }
  const int64_t top = h < height ? rng.below(height - h) : 0;
  const int64_t left = w < width ? rng.below(width - w) : 0;
  return Box{top, left, h, w};
}

}  // namespace

Box random_resized_box(int64_t height, int64_t width, const CropRange& range, Rng& rng) {
  constexpr int kTries = 10;
  const auto rows = static_cast<double>(height), columns = static_cast<double>(width);
  const double low = std::log(range.ratio[0]), high = std::log(range.ratio[1]);
  for (int i = 0; i < kTries; ++i) {
    const double area = rows * columns * rng.uniform(range.area[0], range.area[1]);
    const double ratio = std::exp(rng.uniform(low, high));
    const int64_t w = round_half_even(std::sqrt(area * ratio));
    const int64_t h = round_half_even(std::sqrt(area / ratio));
    if (w >= 1 && h >= 1 && w <= width && h <= height) {
      const int64_t top = rng.below(height - h + 1);
      return {top, rng.below(width - w + 1), h, w};
    }
  }
  int64_t w = width, h = height;
  const double ratio = columns / rows;
  if (ratio < range.ratio[0]) {
    h = std::clamp<int64_t>(round_half_even(columns / range.ratio[0]), 1, height);
  } else if (ratio > range.ratio[1]) {
    w = std::clamp<int64_t>(round_half_even(rows * range.ratio[1]), 1, width);
  }
  return {(height - h) / 2, (width - w) / 2, h, w};
}

Box inception_box(int64_t height, int64_t width, const CropRange& range, Rng& rng) {
  constexpr int kTries = 100;
  const auto low = static_cast<float>(range.ratio[0]), high = static_cast<float>(range.ratio[1]);
  for (int i = 0; i < kTries; ++i) {
    const float ratio = static_cast<float>(rng.uniform()) * (high - low) + low;
    if (auto box = inception_try(height, width, range.area, ratio, rng)) return *box;
  }
  return {0, 0, height, width};
}

}  // namespace convpass
