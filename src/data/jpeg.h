#pragma once

#include <cstdint>
#include <span>

#include "convpass/data/image.h"
#include "src/data/image_header.h"

namespace convpass {

/// Decodes a JPEG with libjpeg as Pillow does: accurate integer DCT, smooth chroma, grey repeated,
/// CMYK taken as Adobe's inverted and converted with Pillow's arithmetic. Data that libjpeg can go
/// on from (its warnings) is not an error, as in Pillow. The size of `header` is checked already.
/// Errors: Error.
Image decode_jpeg(std::span<const uint8_t> bytes, const ImageHeader& header);

}  // namespace convpass
