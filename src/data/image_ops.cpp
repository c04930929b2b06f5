#include "src/data/image_ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/core/widest_vectors.h"

namespace convpass {
namespace {

using Levels = std::array<uint8_t, 256>;
using ChannelLevels = std::array<Levels, 3>;
using Counts = std::array<std::array<int64_t, 256>, 3>;

Levels unchanged() {
  Levels levels;
  std::iota(levels.begin(), levels.end(), uint8_t{0});
  return levels;
}

void map_levels(Image& image, const ChannelLevels& levels) {
  uint8_t* const end = image.pixels.data() + image.pixels.size();
  for (uint8_t* pixel = image.pixels.data(); pixel != end; pixel += 3) {
    pixel[0] = levels[0][pixel[0]];
    pixel[1] = levels[1][pixel[1]];
    pixel[2] = levels[2][pixel[2]];
  }
}

Counts histogram(const Image& image) {
  // Two sets of counters: neighbouring pixels are often alike, and adding to one counter twice in a
  // row waits for memory.
  std::array<Counts, 2> counts{};
  const uint8_t* pixel = image.pixels.data();
  const int64_t pixels = image.height * image.width;
  for (int64_t i = 0; i < pixels; ++i, pixel += 3) {
    Counts& turn = counts[static_cast<size_t>(i & 1)];
    ++turn[0][pixel[0]];
    ++turn[1][pixel[1]];
    ++turn[2][pixel[2]];
  }
  for (size_t channel = 0; channel < 3; ++channel) {
    for (size_t level = 0; level < 256; ++level) {
      counts[0][channel][level] += counts[1][channel][level];
    }
  }
  return counts[0];
}

Levels stretched(const std::array<int64_t, 256>& counts) {
  Levels levels = unchanged();
  auto used = [](int64_t count) { return count > 0; };
  const auto low = std::find_if(counts.begin(), counts.end(), used) - counts.begin();
  const auto high = counts.rend() - std::find_if(counts.rbegin(), counts.rend(), used) - 1;
  if (high <= low) return levels;
  const double scale = 255.0 / static_cast<double>(high - low);
  const double offset = static_cast<double>(-low) * scale;
  for (size_t level = 0; level < 256; ++level) {
    levels[level] =
        static_cast<uint8_t>(std::clamp(static_cast<double>(level) * scale + offset, 0.0, 255.0));
  }
  return levels;
}

Levels equalized(const std::array<int64_t, 256>& counts) {
  Levels levels = unchanged();
  int64_t total = 0, last = 0, kinds = 0;
  for (int64_t count : counts) {
    total += count;
    if (count > 0) last = count, ++kinds;
  }
  const int64_t step = (total - last) / 255;
  if (kinds <= 1 || step == 0) return levels;
  int64_t below = step / 2;
  for (size_t level = 0; level < 256; ++level) {
    levels[level] = static_cast<uint8_t>(std::min<int64_t>(below / step, 255));
    below += counts[level];
  }
  return levels;
}

// ITU-R 601 in 16 bits after the point, rounded: Pillow's convert("L").
int grey_of(const uint8_t* pixel) {
  return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
}

uint8_t blend(int degenerate, int level, float factor) {
  const float blended =
      static_cast<float>(degenerate) + factor * static_cast<float>(level - degenerate);
  return static_cast<uint8_t>(std::clamp(blended, 0.0f, 255.0f));
}

void blend_from_level(Image& image, int degenerate, double factor) {
  Levels levels;
  for (int level = 0; level < 256; ++level) {
    levels[static_cast<size_t>(level)] = blend(degenerate, level, static_cast<float>(factor));
  }
  map_levels(image, {levels, levels, levels});
}

CONVPASS_WIDEST_VECTORS
int64_t sum_of_greys(const uint8_t* pixel, int64_t pixels) {
  int64_t sum = 0;
  for (int64_t i = 0; i < pixels; ++i) sum += grey_of(pixel + i * 3);
  return sum;
}

CONVPASS_WIDEST_VECTORS
void blend_from_grey(uint8_t* pixel, int64_t pixels, float factor) {
  for (int64_t i = 0; i < pixels; ++i) {
    uint8_t* at = pixel + i * 3;
    const int grey = grey_of(at);
    at[0] = blend(grey, at[0], factor);
    at[1] = blend(grey, at[1], factor);
    at[2] = blend(grey, at[2], factor);
  }
}

// Bytes 3 to width - 3 of a row, from itself and the rows around it.
CONVPASS_WIDEST_VECTORS
void sharpen_row(const uint8_t* above, const uint8_t* row, const uint8_t* under, int64_t bytes,
                 float factor, uint8_t* __restrict out) {
  auto column = [&](int64_t i) { return above[i] + row[i] + under[i]; };
  for (int64_t i = 3; i < bytes - 3; ++i) {
    const int sum = column(i - 3) + column(i) + column(i + 3) + 4 * row[i];
    // Rounded; a thirteenth never lies halfway.
    const int smooth = (2 * sum + 13) / 26;
    out[i] = blend(smooth, row[i], factor);
  }
}

struct Hsv {
  int hue, saturation, value;
};

// Of a circle and of 255, truncated: Pillow's convert("HSV"), its mix of precisions included.
Hsv hsv_of(int r, int g, int b) {
  const int high = std::max({r, g, b}), low = std::min({r, g, b});
  if (high == low) return {0, 0, high};
  const auto spread = static_cast<float>(high - low);
  const float saturation = spread / static_cast<float>(high);
  auto below = [&](int level) { return static_cast<float>(high - level) / spread; };
  const float sixths = r == high   ? below(b) - below(g)
                       : g == high ? static_cast<float>(2.0 + below(r) - below(b))
                                   : static_cast<float>(4.0 + below(g) - below(r));
  double turned = sixths / 6.0 + 1.0;
  if (turned >= 1.0) turned -= 1.0;
  return {static_cast<int>(static_cast<float>(turned) * 255.0),
          static_cast<int>(saturation * 255.0), high};
}

void write_rgb(const Hsv& hsv, uint8_t* pixel) {
  const double sixths = hsv.hue * 6.0 / 255.0;
  const int sector = static_cast<int>(sixths);
  const auto within = static_cast<float>(sixths - sector);
  const float saturation = static_cast<float>(hsv.saturation) / 255.0f;
  auto part = [&](double missing) {
    return static_cast<uint8_t>(hsv.value * (1.0 - missing) + 0.5);
  };
  const auto value = static_cast<uint8_t>(hsv.value);
  const uint8_t low = part(saturation);
  const uint8_t falling = part(saturation * within);
  const uint8_t rising = part(saturation * (1.0 - within));
  const uint8_t levels[] = {value, falling, low, low, rising, value};
  const auto at = static_cast<size_t>(sector);
  pixel[0] = levels[at % 6];
  pixel[1] = levels[(at + 4) % 6];
  pixel[2] = levels[(at + 2) % 6];
}

}  // namespace

void autocontrast(Image& image) {
  const Counts counts = histogram(image);
  map_levels(image, {stretched(counts[0]), stretched(counts[1]), stretched(counts[2])});
}

void equalize(Image& image) {
  const Counts counts = histogram(image);
  map_levels(image, {equalized(counts[0]), equalized(counts[1]), equalized(counts[2])});
}

void invert(Image& image) {
  for (uint8_t& level : image.pixels) level = static_cast<uint8_t>(255 - level);
}

void posterize(Image& image, int64_t bits) {
  const auto kept = static_cast<uint8_t>(0xff00 >> std::clamp<int64_t>(bits, 0, 8));
  for (uint8_t& level : image.pixels) level &= kept;
}

void solarize(Image& image, int64_t threshold) {
  const int from = static_cast<int>(std::clamp<int64_t>(threshold, 0, 256));
  for (uint8_t& level : image.pixels) {
    level = static_cast<uint8_t>(level >= from ? 255 - level : level);
  }
}

void solarize_add(Image& image, int64_t amount) {
  const int more = static_cast<int>(std::clamp<int64_t>(amount, 0, 255));
  for (uint8_t& level : image.pixels) {
    level = static_cast<uint8_t>(level < 128 ? std::min(level + more, 255) : level);
  }
}

void color(Image& image, double factor) {
  blend_from_grey(image.pixels.data(), image.height * image.width, static_cast<float>(factor));
}

void contrast(Image& image, double factor) {
  const int64_t pixels = image.height * image.width;
  const double mean =
      static_cast<double>(sum_of_greys(image.pixels.data(), pixels)) / static_cast<double>(pixels);
  blend_from_level(image, static_cast<int>(mean + 0.5), factor);
}

void brightness(Image& image, double factor) { blend_from_level(image, 0, factor); }

void sharpness(Image& image, double factor) {
  const Image before = image;
  const int64_t row = image.width * 3;
  for (int64_t y = 1; y + 1 < image.height; ++y) {
    const uint8_t* from = before.pixels.data() + y * row;
    sharpen_row(from - row, from, from + row, row, static_cast<float>(factor),
                image.pixels.data() + y * row);
  }
}

void shift_hue(Image& image, double turn) {
  const int shift = static_cast<int>(turn * 255);
  for (size_t i = 0; i < image.pixels.size(); i += 3) {
    uint8_t* pixel = image.pixels.data() + i;
    Hsv hsv = hsv_of(pixel[0], pixel[1], pixel[2]);
    hsv.hue = (hsv.hue + shift) & 255;
    write_rgb(hsv, pixel);
  }
}

void apply(Image& image, const std::vector<Change>& changes, const Sampling& sampling) {
  for (const auto& [operation, argument] : changes) {
    switch (operation) {
      case Operation::autocontrast:
        autocontrast(image);
        break;
      case Operation::equalize:
        equalize(image);
        break;
      case Operation::invert:
        invert(image);
        break;
      case Operation::rotate:
        rotate(image, argument, sampling);
        break;
      case Operation::posterize:
        posterize(image, static_cast<int64_t>(argument));
        break;
      case Operation::solarize:
        solarize(image, static_cast<int64_t>(argument));
        break;
      case Operation::solarize_add:
        solarize_add(image, static_cast<int64_t>(argument));
        break;
      case Operation::color:
        color(image, argument);
        break;
      case Operation::contrast:
        contrast(image, argument);
        break;
      case Operation::brightness:
        brightness(image, argument);
        break;
      case Operation::sharpness:
        sharpness(image, argument);
        break;
      case Operation::shear_x:
        shear_x(image, argument, sampling);
        break;
      case Operation::shear_y:
        shear_y(image, argument, sampling);
        break;
      case Operation::translate_x:
        translate_x(image, argument, sampling);
        break;
      case Operation::translate_y:
        translate_y(image, argument, sampling);
        break;
      case Operation::shift_hue:
        shift_hue(image, argument);
        break;
    }
  }
}

}  // namespace convpass
