#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace convpass {

/// 8-bit RGB, rows from the top, `[height, width, 3]`.
struct Image {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<uint8_t> pixels;
};

enum class Interpolation {
  bicubic,      ///< Pillow's
  bilinear,     ///< Pillow's
  tf_bilinear,  ///< TensorFlow's `tf.image.resize(..., "bilinear", antialias=False)`
  tf_area,      ///< TensorFlow's `tf.image.resize(..., "area")`
};
/// TensorFlow's filters round sides and place crops as big_vision does.
inline bool is_tensorflow(Interpolation interpolation) {
  return interpolation >= Interpolation::tf_bilinear;
}

struct DecodeOptions {
  bool exif_orientation = false;  ///< turn the image as its EXIF tag says
  /// More pixels than this are refused from the header, before anything is decoded (Pillow's
  /// limit).
  int64_t max_pixels = 178'956'970;
};

/// JPEG, PNG, WebP, BMP, TIFF to RGB the way Pillow's `Image.open(f).convert("RGB")` does: grey is
/// repeated, palettes are looked up, alpha is dropped, 16 bits become 8, CMYK is converted.
/// Errors: Error (one line, without a file name).
Image decode_image(std::span<const uint8_t> bytes, const DecodeOptions& options = {});
/// The same from a file. Errors: FileError.
Image read_image(const std::filesystem::path& file, const DecodeOptions& options = {});

/// bicubic, bilinear: Pillow's `Image.resize((width, height), BICUBIC | BILINEAR)`: separable,
/// antialiased when shrinking, bicubic a = -0.5, 8-bit after each pass.
/// tf_bilinear, tf_area: the kernels of TensorFlow in its float32 arithmetic (half-pixel centres,
/// not antialiased; exact box weights), clipped and truncated to 8 bits as big_vision does. So an
/// area resize can darken a constant colour by one level.
Image resize(const Image& image, int64_t height, int64_t width, Interpolation interpolation);

/// The rectangle of that size at (top, left); parts outside the image are black.
Image crop(const Image& image, int64_t top, int64_t left, int64_t height, int64_t width);

/// Version of the OpenCV that decodes: "4.6.0".
std::string opencv_version();

}  // namespace convpass
