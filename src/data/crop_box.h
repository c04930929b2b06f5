#pragma once

#include <cstdint>
#include <span>

#include "convpass/core/rng.h"

namespace convpass {

struct Box {
  int64_t top, left, height, width;
};

/// Least and largest fraction of the image's area, and width / height, of a random part of it.
struct CropRange {
  std::span<const double, 2> area, ratio;
};

/// timm's RandomResizedCropAndInterpolation: ten tries, then the largest centred part whose ratio
/// is in range.
Box random_resized_box(int64_t height, int64_t width, const CropRange& range, Rng& rng);

/// TensorFlow's sample_distorted_bounding_box without boxes: the height uniform over the whole
/// numbers that fit, offsets that never reach the far border, a hundred tries, then the whole
/// image.
Box inception_box(int64_t height, int64_t width, const CropRange& range, Rng& rng);

}  // namespace convpass
