#include "src/data/random_erasing.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace convpass {
namespace {

constexpr double kLeastArea = 0.02, kMostArea = 1.0 / 3.0;
constexpr double kLeastRatio = 0.3;
constexpr int kTries = 10;

// Box-Muller with both halves: many numbers at once are worth it, unlike the one of Rng::normal.
void fill_with_normal(float* to, int64_t count, Rng& rng) {
  for (int64_t i = 0; i < count; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - rng.uniform()));
    const double angle = 2.0 * std::numbers::pi * rng.uniform();
    to[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < count) to[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

}  // namespace

std::vector<Box> draw_erased(const ErasingConfig& config, int64_t height, int64_t width, Rng& rng) {
  std::vector<Box> boxes;
  if (!rng.coin(config.probability)) return boxes;
  const int64_t count = 1 + rng.below(config.count);
  const double share = static_cast<double>(height * width) / static_cast<double>(count);
  const double widest = -std::log(kLeastRatio);
  for (int64_t i = 0; i < count; ++i) {
    for (int t = 0; t < kTries; ++t) {
      const double area = rng.uniform(kLeastArea, kMostArea) * share;
      const double ratio = std::exp(rng.uniform(-widest, widest));
      // Halves to the even neighbour, as Python rounds.
      const auto h = static_cast<int64_t>(std::nearbyint(std::sqrt(area * ratio)));
      const auto w = static_cast<int64_t>(std::nearbyint(std::sqrt(area / ratio)));
      if (h >= height || w >= width) continue;
      const int64_t top = rng.below(height - h + 1);
      boxes.push_back({top, rng.below(width - w + 1), h, w});
      break;
    }
  }
  return boxes;
}

void erase(float* image, int64_t height, int64_t width, const ErasingConfig& config, Rng rng) {
  for (const Box& box : draw_erased(config, height, width, rng)) {
    for (int64_t channel = 0; channel < 3; ++channel) {
      const auto colour = static_cast<float>(config.mode == ErasingMode::rand ? rng.normal() : 0.0);
      for (int64_t y = box.top; y < box.top + box.height; ++y) {
        float* row = image + (channel * height + y) * width + box.left;
        if (config.mode == ErasingMode::pixel) {
          fill_with_normal(row, box.width, rng);
        } else {
          std::fill_n(row, box.width, colour);
        }
      }
    }
  }
}

}  // namespace convpass
