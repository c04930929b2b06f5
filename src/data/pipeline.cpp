#include "convpass/data/pipeline.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

constexpr int kTries = 10;  // of a random crop, as in timm

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
  require(pair.size() == 2, std::string("augment.") + name + ": got " +
                                std::to_string(pair.size()) + " numbers, wanted 2");
  require(pair[0] > 0 && pair[0] <= pair[1] && pair[1] <= max,
          std::string("augment.") + name + ": got [" + text(pair[0]) + ", " + text(pair[1]) +
              "], wanted two rising numbers above 0" +
              (std::isinf(max) ? "" : " and at most " + text(max)));
}

void check(const InputConfig& input, const AugmentConfig& augment) {
  require(input.size[0] > 0 && input.size[1] > 0,
          "input.size: got " + std::to_string(input.size[0]) + "x" + std::to_string(input.size[1]) +
              ", wanted sides above 0");
  require(input.crop_fraction > 0 && input.crop_fraction <= 1,
          "input.crop_fraction: got " + text(input.crop_fraction) + ", wanted above 0, at most 1");
  for (const auto& [name, values] :
       {std::pair{"mean", &input.mean}, std::pair{"std", &input.std}}) {
    require(values->size() == 3, std::string("input.") + name + ": got " +
                                     std::to_string(values->size()) + " numbers, wanted 3");
  }
  for (double value : input.std) {
    require(value > 0, "input.std: got " + text(value) + ", wanted above 0");
  }
  check_pair("crop_area", augment.crop_area, 1.0);
  check_pair("crop_ratio", augment.crop_ratio, INFINITY);
  require(augment.flip >= 0 && augment.flip <= 1,
          "augment.flip: got " + text(augment.flip) + ", wanted 0 to 1");
}

// Python's round: halves to the even neighbour.
int64_t round_half_even(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

Image centre_crop(const Image& image, int64_t height, int64_t width) {
  if (image.height == height && image.width == width) return image;
  return crop(image, round_half_even(static_cast<double>(image.height - height) / 2.0),
              round_half_even(static_cast<double>(image.width - width) / 2.0), height, width);
}

struct Box {
  int64_t top, left, height, width;
};

// timm's RandomResizedCropAndInterpolation: ten tries, then the largest centred part whose ratio is
// in range.
Box random_box(const Image& image, const AugmentConfig& augment, Rng& rng) {
  const auto height = static_cast<double>(image.height), width = static_cast<double>(image.width);
  const double low = std::log(augment.crop_ratio[0]), high = std::log(augment.crop_ratio[1]);
  for (int i = 0; i < kTries; ++i) {
    const double area = height * width * rng.uniform(augment.crop_area[0], augment.crop_area[1]);
    const double ratio = std::exp(rng.uniform(low, high));
    const int64_t w = round_half_even(std::sqrt(area * ratio));
    const int64_t h = round_half_even(std::sqrt(area / ratio));
    if (w >= 1 && h >= 1 && w <= image.width && h <= image.height) {
      const int64_t top = rng.below(image.height - h + 1);
      return {top, rng.below(image.width - w + 1), h, w};
    }
  }
  int64_t w = image.width, h = image.height;
  const double ratio = width / height;
  if (ratio < augment.crop_ratio[0]) {
    h = std::clamp<int64_t>(round_half_even(width / augment.crop_ratio[0]), 1, image.height);
  } else if (ratio > augment.crop_ratio[1]) {
    w = std::clamp<int64_t>(round_half_even(height * augment.crop_ratio[1]), 1, image.width);
  }
  return {(image.height - h) / 2, (image.width - w) / 2, h, w};
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
  visitor.choice("interpolation", config.interpolation, {"bicubic", "bilinear"},
                 "filter of every resize, antialiased, as Pillow does it");
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
      "crop", config.crop, {"none", "random_resized", "random"},
      "none: the evaluation view; random_resized: a random part, resized; random: resized "
      "as in evaluation, then cut anywhere");
  visitor.field("crop_area", config.crop_area,
                "random_resized: least and largest fraction of the image's area",
                {.min = 0, .max = 1, .above_min = true});
  visitor.field("crop_ratio", config.crop_ratio,
                "random_resized: least and largest width / height of the part", above(0));
  visitor.field("flip", config.flip, "probability of a left-right flip", between(0, 1));
}

ImagePipeline::ImagePipeline(const InputConfig& input, const AugmentConfig& augment)
    : input_(input), augment_(augment) {
  check(input, augment);
  for (size_t channel = 0; channel < 3; ++channel) {
    const auto mean = static_cast<float>(input.mean[channel]);
    const auto std = static_cast<float>(input.std[channel]);
    for (size_t level = 0; level < 256; ++level) {
      levels_[channel * 256 + level] = (static_cast<float>(level) / 255.0f - mean) / std;
    }
  }
}

// The evaluation's resize, before the crop.
Image ImagePipeline::resized(const Image& image) const {
  auto enlarged = [&](int64_t side) {
    return static_cast<int64_t>(std::floor(static_cast<double>(side) / input_.crop_fraction));
  };
  int64_t h = enlarged(height()), w = enlarged(width());
  if (input_.resize == ResizeMode::short_side) {
    if (h == w) {
      // torchvision's Resize(int): the long side is truncated.
      if (image.height < image.width) {
        w = h * image.width / image.height;
      } else {
        h = w * image.height / image.width;
      }
    } else {
      // timm's ResizeKeepRatio: the smallest that covers both sides.
      const double ratio = std::min(static_cast<double>(image.height) / static_cast<double>(h),
                                    static_cast<double>(image.width) / static_cast<double>(w));
      h = round_half_even(static_cast<double>(image.height) / ratio);
      w = round_half_even(static_cast<double>(image.width) / ratio);
    }
  }
  return resize(image, h, w, input_.interpolation);
}

Image ImagePipeline::evaluation_view(const Image& image) const {
  return centre_crop(resized(image), height(), width());
}

Image ImagePipeline::training_view(const Image& image, Rng rng) const {
  Image view;
  switch (augment_.crop) {
    case CropMode::none:
      view = evaluation_view(image);
      break;
    case CropMode::random_resized: {
      const Box box = random_box(image, augment_, rng);
      view = resize(crop(image, box.top, box.left, box.height, box.width), height(), width(),
                    input_.interpolation);
      break;
    }
    case CropMode::random: {
      const Image whole = resized(image);
      const int64_t top = rng.below(whole.height - height() + 1);
      const int64_t left = rng.below(whole.width - width() + 1);
      view = crop(whole, top, left, height(), width());
      break;
    }
  }
  if (augment_.flip > 0 && rng.coin(augment_.flip)) flip(view);
  return view;
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

}  // namespace convpass
