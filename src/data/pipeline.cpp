#include "convpass/data/pipeline.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "src/data/color_jitter.h"
#include "src/data/crop_box.h"
#include "src/data/image_ops.h"
#include "src/data/rand_augment.h"
#include "src/data/random_erasing.h"

namespace convpass {
namespace {

std::string text(double value) {
  std::string result = std::to_string(value);
  result.erase(result.find_last_not_of('0') + 1);
  if (result.back() == '.') result.pop_back();
  return result;
}

void require(bool ok, const std::string& message) {
  if (!ok) throw Error(message);
}

void check_pair(const char* name, const std::vector<double>& pair, double max) {
  if (pair.empty()) return;
  require(pair.size() == 2, std::string("augment.") + name + ": got " +
                                std::to_string(pair.size()) + " numbers, wanted 2");
  require(pair[0] > 0 && pair[0] <= pair[1] && pair[1] <= max,
          std::string("augment.") + name + ": got [" + text(pair[0]) + ", " + text(pair[1]) +
              "], wanted two rising numbers above 0" +
              (std::isinf(max) ? "" : " and at most " + text(max)));
}

std::array<int64_t, 2> height_and_width(const std::vector<int64_t>& sides) {
  return {sides.front(), sides.back()};
}

void check_resize_to(const char* part, const std::vector<int64_t>& to,
                     const std::array<int64_t, 2>& size) {
  if (to.empty()) return;
  const std::string where = std::string(part) + ".resize_to: got ";
  require(to.size() <= 2, where + std::to_string(to.size()) + " numbers, wanted 1 or 2");
  const auto [height, width] = height_and_width(to);
  require(height >= size[0] && width >= size[1],
          where + std::to_string(height) + "x" + std::to_string(width) +
              ", wanted at least the input size of " + std::to_string(size[0]) + "x" +
              std::to_string(size[1]));
}

void check_changes(const InputConfig& input, const AugmentConfig& augment) {
  require(augment.rand_augment.empty() || augment.color_jitter.empty(),
          "augment.color_jitter: got it with augment.rand_augment, wanted one of them");
  require(augment.rand_augment.empty() || !is_tensorflow(input.interpolation),
          "input.interpolation: got a filter of TensorFlow with augment.rand_augment, wanted "
          "bicubic or bilinear");
  const std::vector<double>& jitter = augment.color_jitter;
  require(
      jitter.size() <= 4 && jitter.size() != 2,
      "augment.color_jitter: got " + std::to_string(jitter.size()) + " numbers, wanted 1, 3 or 4");
  for (double strength : jitter) {
    require(strength >= 0, "augment.color_jitter: got " + text(strength) + ", wanted at least 0");
  }
  require(jitter.size() < 4 || jitter[3] <= 0.5, "augment.color_jitter: got a hue of " +
                                                     text(jitter.empty() ? 0 : jitter.back()) +
                                                     ", wanted at most 0.5");
  const ErasingConfig& erasing = augment.erasing;
  require(erasing.probability >= 0 && erasing.probability <= 1,
          "augment.random_erasing: got " + text(erasing.probability) + ", wanted 0 to 1");
  require(erasing.count > 0,
          "augment.erasing_count: got " + std::to_string(erasing.count) + ", wanted at least 1");
}

void check(const InputConfig& input, const AugmentConfig& augment) {
  require(input.size[0] > 0 && input.size[1] > 0,
          "input.size: got " + std::to_string(input.size[0]) + "x" + std::to_string(input.size[1]) +
              ", wanted sides above 0");
  require(input.crop_fraction > 0 && input.crop_fraction <= 1,
          "input.crop_fraction: got " + text(input.crop_fraction) + ", wanted above 0, at most 1");
  constexpr double kMostPixels = 8192;
  const auto side = static_cast<double>(std::max(input.size[0], input.size[1]));
  require(side <= input.crop_fraction * kMostPixels,
          "input.crop_fraction: got " + std::to_string(input.crop_fraction) + ", wanted at least " +
              std::to_string(side / kMostPixels) + ": images are resized to at most 8192 pixels");
  for (const auto& [name, values] :
       {std::pair{"mean", &input.mean}, std::pair{"std", &input.std}}) {
    require(values->size() == 3, std::string("input.") + name + ": got " +
                                     std::to_string(values->size()) + " numbers, wanted 3");
  }
  for (double value : input.std) {
    require(value > 0, "input.std: got " + text(value) + ", wanted above 0");
  }
  check_resize_to("input", input.resize_to, input.size);
  require(input.resize_to.empty() || input.crop_fraction == 1,
          "input.crop_fraction: got " + text(input.crop_fraction) +
              " and input.resize_to, wanted one of them");
  check_resize_to("augment", augment.resize_to, input.size);
  require(augment.resize_to.empty() || augment.crop == CropMode::random,
          "augment.resize_to: got it without augment.crop \"random\", which alone resizes to it");
  check_pair("crop_area", augment.crop_area, 1.0);
  check_pair("crop_ratio", augment.crop_ratio, INFINITY);
  require(augment.flip >= 0 && augment.flip <= 1,
          "augment.flip: got " + text(augment.flip) + ", wanted 0 to 1");
  check_changes(input, augment);
}

std::shared_ptr<const RandAugment> parsed(const std::string& rand_augment) {
  if (rand_augment.empty()) return nullptr;
  try {
    return std::make_shared<const RandAugment>(parse_rand_augment(rand_augment));
  } catch (const Error& error) {
    throw Error(std::string("augment.rand_augment: ") + error.what());
  }
}

// Python's round: halves to the even neighbour.
int64_t round_half_even(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

Image centre_crop(const Image& image, int64_t height, int64_t width, bool tensorflow) {
  if (image.height == height && image.width == width) return image;
  if (tensorflow) {
    return crop(image, (image.height - height) / 2, (image.width - width) / 2, height, width);
  }
  return crop(image, round_half_even(static_cast<double>(image.height - height) / 2.0),
              round_half_even(static_cast<double>(image.width - width) / 2.0), height, width);
}

// big_vision's resize_small: sides from a float32 factor, halves to the even neighbour.
std::array<int64_t, 2> tensorflow_short_side(const Image& image, int64_t side) {
  const float factor =
      static_cast<float>(side) / static_cast<float>(std::min(image.height, image.width));
  auto rounded = [factor](int64_t in) {
    return static_cast<int64_t>(std::lrint(static_cast<float>(in) * factor));
  };
  return {rounded(image.height), rounded(image.width)};
}

constexpr double kTimmArea[] = {0.08, 1.0}, kTimmRatio[] = {3.0 / 4.0, 4.0 / 3.0};
constexpr double kInceptionArea[] = {0.05, 1.0}, kInceptionRatio[] = {0.75, 1.33};

CropRange range_of(const AugmentConfig& augment) {
  auto chosen = [](const std::vector<double>& given, std::span<const double, 2> usual) {
    return given.empty() ? usual : std::span<const double, 2>(given.data(), 2);
  };
  const bool inception = augment.crop == CropMode::inception;
  return {chosen(augment.crop_area, inception ? kInceptionArea : kTimmArea),
          chosen(augment.crop_ratio, inception ? kInceptionRatio : kTimmRatio)};
}

// timm fills with the mean colour.
std::array<uint8_t, 3> fill_of(const InputConfig& input) {
  std::array<uint8_t, 3> fill{};
  for (size_t channel = 0; channel < 3; ++channel) {
    fill[channel] = static_cast<uint8_t>(
        std::clamp<int64_t>(round_half_even(255 * input.mean[channel]), 0, 255));
  }
  return fill;
}

void flip(Image& image) {
  for (int64_t y = 0; y < image.height; ++y) {
    uint8_t* row = image.pixels.data() + y * image.width * 3;
    for (int64_t left = 0, right = image.width - 1; left < right; ++left, --right) {
      std::swap_ranges(row + left * 3, row + left * 3 + 3, row + right * 3);
    }
  }
}

}  // namespace

void fields(FieldVisitor& visitor, InputConfig& config) {
  std::vector<int64_t> size;
  if (config.size[0] > 0) size.assign(config.size.begin(), config.size.end());
  visitor.list_or_word("size", size, "auto",
                       "height and width of the network's input in pixels; one number = a square; "
                       "auto = the backbone's image size",
                       between(1, 8192));
  require(size.size() <= 2,
          "input.size: got " + std::to_string(size.size()) + " numbers, wanted 1 or 2");
  config.size = size.empty() ? std::array<int64_t, 2>{0, 0}
                             : std::array<int64_t, 2>{size.front(), size.back()};
  visitor.choice("resize", config.resize, {"stretch", "short_side"},
                 "stretch: both sides, whatever the aspect ratio; short_side: keep the ratio, then "
                 "cut the centre");
  visitor.field("crop_fraction", config.crop_fraction,
                "images are resized to floor(size / crop_fraction), then the centre is cut",
                {.min = 0, .max = 1, .above_min = true});
  visitor.list_or_word("resize_to", config.resize_to, "auto",
                       "pixels before the centre crop: height and width, or one number for both "
                       "(for the short side); auto = floor(size / crop_fraction)",
                       between(1, 8192));
  visitor.choice(
      "interpolation", config.interpolation, {"bicubic", "bilinear", "tf_bilinear", "tf_area"},
      "filter of every resize: bicubic and bilinear antialiased as Pillow does it; "
      "tf_bilinear and tf_area as TensorFlow and big_vision do it, rounding of sides and "
      "place of the crop included");
  visitor.field("mean", config.mean,
                "mean of each channel of [0, 1] pixels; empty = the backbone's own");
  visitor.field("std", config.std,
                "standard deviation of each channel of [0, 1] pixels; empty = the backbone's own",
                above(0));
  visitor.field("exif_orientation", config.exif_orientation,
                "turn images as their EXIF tag says (timm and torchvision do not)");
}

void fields(FieldVisitor& visitor, AugmentConfig& config) {
  visitor.choice(
      "crop", config.crop, {"none", "random_resized", "random", "inception"},
      "none: the evaluation view; random_resized: a random part, resized (timm); random: "
      "resized as in evaluation, then cut anywhere; inception: a random part as "
      "TensorFlow draws and resizes it (big_vision)");
  visitor.list_or_word("resize_to", config.resize_to, "auto",
                       "random: pixels before the crop, like input.resize_to; auto = as in "
                       "evaluation",
                       between(1, 8192));
  visitor.field("crop_area", config.crop_area,
                "least and largest fraction of the image's area; empty: [0.08, 1] of "
                "random_resized, [0.05, 1] of inception",
                {.min = 0, .max = 1, .above_min = true});
  visitor.field("crop_ratio", config.crop_ratio,
                "least and largest width / height of the part; empty: [3/4, 4/3] of "
                "random_resized, [0.75, 1.33] of inception",
                above(0));
  visitor.field("flip", config.flip, "probability of a left-right flip", between(0, 1));
  visitor.field("rand_augment", config.rand_augment,
                "timm's RandAugment, \"rand-m7-mstd0.5-inc1\": magnitude m (10), n operations (2), "
                "deviation mstd (0), upper bound mmax (10), inc1 the increasing set, probability p "
                "(0.5); \"\" = off");
  visitor.field("color_jitter", config.color_jitter,
                "strengths of brightness, contrast, saturation and, if there are four, hue (at "
                "most 0.5); one number = the first three; factors from 1 - strength to 1 + "
                "strength; empty = off; not with rand_augment",
                at_least(0));
  fields(visitor, config.erasing);
  fields(visitor, config.mix);
  visitor.field(
      "repeated", config.repeated,
      "repeated augmentation: each drawn image stands so many times in an epoch, each copy "
      "augmented by itself; the epoch keeps its length",
      between(1, 64));
}

void fields(FieldVisitor& visitor, ErasingConfig& config) {
  visitor.field("random_erasing", config.probability,
                "probability of erasing boxes of the normalised image (timm); 0 = off",
                between(0, 1));
  visitor.choice("erasing_mode", config.mode, {"const", "rand", "pixel"},
                 "what boxes are filled with: 0, a normally distributed colour for each box, or "
                 "such a number for each value");
  visitor.field("erasing_count", config.count,
                "boxes at most, drawn from 1 to this many, which share the area", between(1, 1000));
}

bool AugmentConfig::any() const {
  const bool jitters = std::any_of(color_jitter.begin(), color_jitter.end(),
                                   [](double strength) { return strength > 0; });
  return crop != CropMode::none || flip > 0 || !rand_augment.empty() || jitters ||
         erasing.probability > 0;
}

bool AugmentConfig::same_draw(const AugmentConfig& other) const {
  return crop == other.crop && crop_area == other.crop_area && crop_ratio == other.crop_ratio &&
         flip == other.flip && rand_augment == other.rand_augment &&
         color_jitter == other.color_jitter && erasing == other.erasing;
}

ImagePipeline::ImagePipeline(const InputConfig& input, const AugmentConfig& augment)
    : input_(input), augment_(augment), rand_augment_(parsed(augment.rand_augment)) {
  check(input, augment);
  for (size_t channel = 0; channel < 3; ++channel) {
    const auto mean = static_cast<float>(input.mean[channel]);
    const auto std = static_cast<float>(input.std[channel]);
    for (size_t level = 0; level < 256; ++level) {
      levels_[channel * 256 + level] = (static_cast<float>(level) / 255.0f - mean) / std;
    }
  }
}

bool ImagePipeline::same_pixels(const ImagePipeline& other, bool training) const {
  const InputConfig &a = input_, &b = other.input_;
  return a.size == b.size && a.resize == b.resize && a.crop_fraction == b.crop_fraction &&
         a.resize_to == b.resize_to && a.interpolation == b.interpolation &&
         (!training ||
          (augment_.same_draw(other.augment_) && augment_.resize_to == other.augment_.resize_to &&
           (!rand_augment_ || fill_of(a) == fill_of(b))));
}

std::array<int64_t, 2> ImagePipeline::before_crop(const std::vector<int64_t>& to) const {
  if (!to.empty()) return height_and_width(to);
  auto enlarged = [&](int64_t side) {
    return static_cast<int64_t>(std::floor(static_cast<double>(side) / input_.crop_fraction));
  };
  return {enlarged(height()), enlarged(width())};
}

// Resized, before the crop.
Image ImagePipeline::resized(const Image& image, const std::vector<int64_t>& to) const {
  auto [h, w] = before_crop(to);
  if (input_.resize == ResizeMode::short_side) {
    if (h != w) {
      // timm's ResizeKeepRatio: the smallest that covers both sides.
      const double ratio = std::min(static_cast<double>(image.height) / static_cast<double>(h),
                                    static_cast<double>(image.width) / static_cast<double>(w));
      h = round_half_even(static_cast<double>(image.height) / ratio);
      w = round_half_even(static_cast<double>(image.width) / ratio);
    } else if (is_tensorflow(input_.interpolation)) {
      const auto sides = tensorflow_short_side(image, h);
      h = sides[0], w = sides[1];
    } else if (image.height < image.width) {
      // torchvision's Resize(int): the long side is truncated.
      w = h * image.width / image.height;
    } else {
      h = w * image.height / image.width;
    }
  }
  return resize(image, h, w, input_.interpolation);
}

Image ImagePipeline::evaluation_view(const Image& image) const {
  return centre_crop(resized(image, input_.resize_to), height(), width(),
                     is_tensorflow(input_.interpolation));
}

Image ImagePipeline::training_view(const Image& image, Rng rng) const {
  Image view;
  auto part = [&](const Box& box, Interpolation interpolation) {
    return resize(crop(image, box.top, box.left, box.height, box.width), height(), width(),
                  interpolation);
  };
  switch (augment_.crop) {
    case CropMode::none:
      view = evaluation_view(image);
      break;
    case CropMode::random_resized:
      view = part(random_resized_box(image.height, image.width, range_of(augment_), rng),
                  input_.interpolation);
      break;
    case CropMode::inception:
      view = part(inception_box(image.height, image.width, range_of(augment_), rng),
                  Interpolation::tf_bilinear);
      break;
    case CropMode::random: {
      const Image whole =
          resized(image, augment_.resize_to.empty() ? input_.resize_to : augment_.resize_to);
      const int64_t top = rng.below(whole.height - height() + 1);
      const int64_t left = rng.below(whole.width - width() + 1);
      view = crop(whole, top, left, height(), width());
      break;
    }
  }
  if (augment_.flip > 0 && rng.coin(augment_.flip)) flip(view);
  change(view, rng);
  return view;
}

void ImagePipeline::change(Image& view, Rng& rng) const {
  const std::vector<Change> changes =
      rand_augment_ ? rand_augment_->draw(rng) : draw_color_jitter(augment_.color_jitter, rng);
  apply(view, changes, {.interpolation = input_.interpolation, .fill = fill_of(input_)});
}

void ImagePipeline::normalise(const Image& image, float* out) const {
  const int64_t pixels = image.height * image.width;
  for (int64_t channel = 0; channel < 3; ++channel) {
    const float* levels = levels_.data() + channel * 256;
    const uint8_t* from = image.pixels.data() + channel;
    float* to = out + channel * pixels;
    for (int64_t i = 0; i < pixels; ++i) to[i] = levels[from[i * 3]];
  }
}

void ImagePipeline::erase(float* image, Rng rng) const {
  if (augment_.erasing.probability > 0) {
    convpass::erase(image, height(), width(), augment_.erasing, rng);
  }
}

}  // namespace convpass
