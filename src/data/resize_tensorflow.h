#pragma once

#include <cstdint>

#include "convpass/data/image.h"

namespace convpass {

// TensorFlow's ResizeBilinear (half_pixel_centers) and ResizeArea kernels, clipped and truncated to
// 8 bits. Sides are above 0 and not both the image's own.
Image tf_bilinear(const Image& image, int64_t height, int64_t width);
Image tf_area(const Image& image, int64_t height, int64_t width);

}  // namespace convpass
