#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/rng.h"
#include "convpass/data/image.h"
#include "convpass/data/mixing.h"

namespace convpass {

class FieldVisitor;
struct RandAugment;

enum class ResizeMode {
  stretch,     ///< both sides, aspect ratio not kept, then centre crop (VTAB, Convpass, BiT)
  short_side,  ///< the short side, then centre crop (torchvision, timm, big_vision)
};

/// From a decoded image to the network's input at evaluation (and at training without
/// augmentation).
struct InputConfig {
  std::array<int64_t, 2> size{0, 0};  ///< height, width; 0 = the backbone's image size
  ResizeMode resize = ResizeMode::stretch;
  double crop_fraction = 1.0;
  std::vector<int64_t> resize_to{};  ///< height and width (or one number) before the centre crop;
                                     ///< empty = floor(size / crop_fraction)
  Interpolation interpolation = Interpolation::bicubic;
  std::vector<double> mean, std;  ///< per channel of [0, 1] pixels; empty = the backbone's own
  bool exif_orientation = false;  ///< turn images as their EXIF tag says
};

enum class CropMode {
  none,            ///< the evaluation view
  random_resized,  ///< a part of random area and ratio, resized to the input size (timm, Inception)
  random,          ///< the evaluation's resize, then the input size cut out anywhere (BiT, mild)
  inception,       ///< a random part as TensorFlow draws it, resized by tf_bilinear (big_vision,
                   ///< FunMatch)
};

enum class ErasingMode {
  constant,  ///< 0 of the normalised image, its mean colour
  rand,      ///< one normally distributed colour for each box
  pixel,     ///< a normally distributed number for each value
};

/// timm's random erasing of boxes of the normalised image.
struct ErasingConfig {
  double probability = 0.0;  ///< 0 = off
  ErasingMode mode = ErasingMode::constant;
  int64_t count = 1;  ///< boxes at most; they share the area
  bool operator==(const ErasingConfig&) const = default;
};
/// In the object of `augment`: random_erasing, erasing_mode, erasing_count.
void fields(FieldVisitor& visitor, ErasingConfig& config);

struct AugmentConfig {
  CropMode crop = CropMode::none;
  std::vector<int64_t> resize_to{};  ///< random: pixels before the crop, like InputConfig's; empty
                                     ///< = as in evaluation
  std::vector<double> crop_area{};   ///< fraction of the area; empty = of the kind: [0.08, 1],
                                     ///< inception [0.05, 1]
  std::vector<double> crop_ratio{};  ///< width / height; empty = of the kind: [3/4, 4/3], inception
                                     ///< [0.75, 1.33]
  double flip = 0.0;                 ///< probability of a horizontal flip
  std::string rand_augment;          ///< timm's "rand-m7-mstd0.5-inc1"; "" = off
  std::vector<double> color_jitter;  ///< torchvision's strengths of brightness, contrast,
                                     ///< saturation and, if given, hue; one number = the first
                                     ///< three; empty = off
  ErasingConfig erasing;
  MixConfig mix;         ///< of whole batches: no part of a view
  int64_t repeated = 1;  ///< copies of each drawn image in an epoch: no part of a view

  /// Whether the view of one image is random.
  bool any() const;
  /// Whether two views that draw from the same key see the same part of the image, the same flip,
  /// the same changes and the same boxes erased.
  bool same_draw(const AugmentConfig& other) const;
};

void fields(FieldVisitor& visitor, InputConfig& config);
void fields(FieldVisitor& visitor, AugmentConfig& config);

/// Decode, crop, augment, normalise, erase: a pure function of the image and random keys.
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
  /// Whether both make the same 8-bit evaluation views (and, if asked, training views from the same
  /// key): they may differ in how these are normalised.
  bool same_pixels(const ImagePipeline& other, bool training) const;
  /// (pixel / 255 - mean) / std into `out`, `[3, H, W]` float32.
  void normalise(const Image& image, float* out) const;
  /// Random erasing of a normalised training view, in place, drawn from `rng`; nothing when it is
  /// off.
  void erase(float* image, Rng rng) const;

  int64_t height() const { return input_.size[0]; }
  int64_t width() const { return input_.size[1]; }
  const InputConfig& input() const { return input_; }
  const AugmentConfig& augment() const { return augment_; }

 private:
  Image resized(const Image& image, const std::vector<int64_t>& to) const;
  std::array<int64_t, 2> before_crop(const std::vector<int64_t>& to) const;
  void change(Image& view, Rng& rng) const;

  InputConfig input_;
  AugmentConfig augment_;
  std::shared_ptr<const RandAugment> rand_augment_;  // none where it is off
  std::array<float, 768> levels_;  // normalised value of each of the 256 levels of each channel
};

}  // namespace convpass
