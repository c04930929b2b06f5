#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "convpass/core/rng.h"
#include "convpass/data/image.h"

namespace convpass {

class FieldVisitor;

enum class ResizeMode {
  stretch,     ///< to floor(size / crop_fraction), aspect ratio not kept, then centre crop (VTAB,
               ///< Convpass)
  short_side,  ///< short side to floor(size / crop_fraction), then centre crop (torchvision, timm)
};

/// From a decoded image to the network's input at evaluation (and at training without
/// augmentation).
struct InputConfig {
  std::array<int64_t, 2> size{0, 0};  ///< height, width; 0 = the backbone's image size
  ResizeMode resize = ResizeMode::stretch;
  double crop_fraction = 1.0;
  Interpolation interpolation = Interpolation::bicubic;
  std::vector<double> mean, std;  ///< per channel of [0, 1] pixels; empty = the backbone's own
  bool exif_orientation = false;  ///< turn images as their EXIF tag says
};

enum class CropMode {
  none,            ///< the evaluation view
  random_resized,  ///< a part of random area and ratio, resized to the input size (timm, Inception)
  random,          ///< the evaluation's resize, then the input size cut out anywhere (BiT, mild)
};

struct AugmentConfig {
  CropMode crop = CropMode::none;
  std::vector<double> crop_area{0.08, 1.0};              ///< random_resized: fraction of the area
  std::vector<double> crop_ratio{3.0 / 4.0, 4.0 / 3.0};  ///< random_resized: width / height
  double flip = 0.0;                                     ///< probability of a horizontal flip
  bool any() const { return crop != CropMode::none || flip > 0; }
};

void fields(FieldVisitor& visitor, InputConfig& config);
void fields(FieldVisitor& visitor, AugmentConfig& config);

/// Decode, crop, augment, normalise: a pure function of the image and a random key.
class ImagePipeline {
 public:
  /// `input` is resolved: size, mean and std are set.
  /// Errors: Error that names the field ("input.mean: ...").
  ImagePipeline(const InputConfig& input, const AugmentConfig& augment);

  /// 8-bit image of the input size, evaluation view: what a cache keeps when nothing is random.
  Image evaluation_view(const Image& image) const;
  /// 8-bit image of the input size, training view drawn from `rng`; equals evaluation_view when
  /// nothing random is configured.
  Image training_view(const Image& image, Rng rng) const;
  bool random() const { return augment_.any(); }
  /// (pixel / 255 - mean) / std into `out`, `[3, H, W]` float32.
  void normalise(const Image& image, float* out) const;

  int64_t height() const { return input_.size[0]; }
  int64_t width() const { return input_.size[1]; }
  const InputConfig& input() const { return input_; }

 private:
  Image resized(const Image& image) const;

  InputConfig input_;
  AugmentConfig augment_;
  std::array<float, 768> levels_;  // normalised value of each of the 256 levels of each channel
};

}  // namespace convpass
