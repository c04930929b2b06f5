#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "convpass/data/image.h"

namespace convpass {

// Changes of an 8-bit image in place, equal to Pillow 13 to the last bit. Sources: Pillow's
// documentation of ImageOps, ImageEnhance and Image.transform; its arithmetic, checked by
// tests/reference/image_ops.py.

/// Each channel by itself: its least level becomes 0, its greatest 255 (ImageOps.autocontrast).
void autocontrast(Image& image);
/// Each channel by itself: levels spread as evenly as their counts allow (ImageOps.equalize).
void equalize(Image& image);
void invert(Image& image);
/// Keeps the `bits` highest of 8 bits; 0 or less = black, 8 or more = unchanged. (Pillow 13 refuses
/// 0 bits, which made a black image up to Pillow 12.)
void posterize(Image& image, int64_t bits);
/// Inverts levels of at least `threshold`, 0 to 256.
void solarize(Image& image, int64_t threshold);
/// Adds `amount`, 0 to 255, to levels below 128; at most 255 (timm).
void solarize_add(Image& image, int64_t amount);

// ImageEnhance: degenerate + factor (image - degenerate) in float32, truncated to 8 bits; a factor
// of 1 changes nothing.

/// From the grey image.
void color(Image& image, double factor);
/// From the rounded mean of the grey image.
void contrast(Image& image, double factor);
/// From black.
void brightness(Image& image, double factor);
/// From the image smoothed by 3x3 weights, 5 in the centre and 1 around it; the outermost pixels
/// stay.
void sharpness(Image& image, double factor);

/// Turns the hue by trunc(255 `turn`) 255ths of a circle, by way of 8-bit HSV (torchvision's
/// adjust_hue of PIL images). `turn` -0.5 to 0.5.
void shift_hue(Image& image, double turn);

/// How geometric operations read between the pixels and outside of them.
struct Sampling {
  Interpolation interpolation = Interpolation::bicubic;  ///< or bilinear
  std::array<uint8_t, 3> fill{};                         ///< colour outside the image
};

/// Output (x, y) shows the image at (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]), pixel centres
/// at + 0.5 (Image.transform with AFFINE). Not the filters of `resize`: never antialiased, bicubic
/// a = -1, in double precision, truncated to 8 bits, the outermost pixels repeated.
void affine(Image& image, const std::array<double, 6>& matrix, const Sampling& sampling);
/// Counter-clockwise about the centre; the size stays (Image.rotate).
void rotate(Image& image, double degrees, const Sampling& sampling);
/// Output (x, y) shows the image at (x + factor y, y) or (x, y + factor x).
void shear_x(Image& image, double factor, const Sampling& sampling);
void shear_y(Image& image, double factor, const Sampling& sampling);
/// Moves the image to the left (up) by that fraction of its width (height).
void translate_x(Image& image, double fraction, const Sampling& sampling);
void translate_y(Image& image, double fraction, const Sampling& sampling);

/// The functions above, in the order of timm's list for RandAugment; hue is none of those.
enum class Operation {
  autocontrast,
  equalize,
  invert,
  rotate,
  posterize,
  solarize,
  solarize_add,
  color,
  contrast,
  brightness,
  sharpness,
  shear_x,
  shear_y,
  translate_x,
  translate_y,
  shift_hue,
};

/// One operation and its argument (0 where it has none).
struct Change {
  Operation operation = Operation::autocontrast;
  double argument = 0;
  bool operator==(const Change&) const = default;
};

/// One after the other.
void apply(Image& image, const std::vector<Change>& changes, const Sampling& sampling);

}  // namespace convpass
