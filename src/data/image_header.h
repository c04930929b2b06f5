#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace convpass {

enum class ImageKind { jpeg, png, webp, bmp, tiff };

/// What the first bytes of an image file say, before anything is decoded.
struct ImageHeader {
  ImageKind kind = ImageKind::jpeg;
  int64_t width = 0;
  int64_t height = 0;
  int orientation = 1;  ///< EXIF 1..8; 1 = as stored
  bool deep = false;    ///< 16 bits per sample
  bool grey = false;    ///< one sample per pixel, no palette
  /// TIFF: bytes to change so that libtiff neither multiplies colours by alpha nor turns the image.
  std::vector<std::pair<size_t, uint8_t>> rewrites = {};
};

const char* kind_name(ImageKind kind);

/// Reads the header and checks that the file is whole: JPEG has its end marker, PNG its IEND and
/// right checksums, WebP, TIFF and BMP all the bytes they claim. Every offset is checked against
/// `bytes`. Errors: Error (one line, without a file name).
ImageHeader read_image_header(std::span<const uint8_t> bytes);

/// The chunks of a checked PNG that make its colours, without transparency and metadata: libpng
/// writes warnings about metadata to stderr, and inflates it.
std::vector<uint8_t> essential_png(std::span<const uint8_t> bytes);

}  // namespace convpass
