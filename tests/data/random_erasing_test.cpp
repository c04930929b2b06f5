#include "src/data/random_erasing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace convpass {
namespace {

ErasingConfig always(ErasingMode mode = ErasingMode::constant, int64_t count = 1) {
  return {.probability = 1, .mode = mode, .count = count};
}

// Two draws decide on the box, two place it.
TEST(RandomErasing, BoxIsThatOfTimmForTheSameDraws) {
  for (uint64_t key = 0; key < 200; ++key) {
    Rng drawn(key), rng(key);
    const std::vector<Box> boxes = draw_erased(always(), 20, 30, drawn);
    rng.uniform();  // whether to erase
    rng.uniform();  // how many of 1
    int64_t h = 0, w = 0;
    do {
      const double area = rng.uniform(0.02, 1.0 / 3) * 600;
      const double ratio = std::exp(rng.uniform(std::log(0.3), std::log(1 / 0.3)));
      h = std::lrint(std::sqrt(area * ratio));
      w = std::lrint(std::sqrt(area / ratio));
    } while (h >= 20 || w >= 30);
    ASSERT_EQ(boxes.size(), 1u);
    EXPECT_EQ(boxes[0].height, h);
    EXPECT_EQ(boxes[0].width, w);
    EXPECT_EQ(boxes[0].top, rng.below(20 - h + 1));
    EXPECT_EQ(boxes[0].left, rng.below(30 - w + 1));
  }
}

struct Means {
  double boxes = 0, area = 0, log_ratio = 0, middle_y = 0, middle_x = 0;
};

Means means_of(int64_t height, int64_t width, int64_t count) {
  constexpr int kDraws = 40000;
  Means means;
  std::vector<Box> all;
  Rng rng(4);
  for (int i = 0; i < kDraws; ++i) {
    const auto boxes = draw_erased(always(ErasingMode::constant, count), height, width, rng);
    all.insert(all.end(), boxes.begin(), boxes.end());
  }
  const auto number = static_cast<double>(all.size());
  const auto rows = static_cast<double>(height), columns = static_cast<double>(width);
  means.boxes = number / kDraws;
  for (const Box& box : all) {
    const auto h = static_cast<double>(box.height), w = static_cast<double>(box.width);
    means.area += h * w / (rows * columns) / number;
    means.log_ratio += std::log(h / w) / number;
    means.middle_y += (static_cast<double>(box.top) + h / 2) / rows / number;
    means.middle_x += (static_cast<double>(box.left) + w / 2) / columns / number;
  }
  return means;
}

// The means of 300000 images of timm's own code are in tests/reference/random_erasing.py. A try
// that does not fit is drawn again, which in a low image takes high boxes away.
TEST(RandomErasing, BoxesAreSpreadAsTimmSpreadsThem) {
  const Means square = means_of(224, 224, 1);
  EXPECT_EQ(square.boxes, 1);
  EXPECT_NEAR(square.area, 0.17596, 0.003);
  EXPECT_NEAR(square.log_ratio, 0.0, 0.02);
  EXPECT_NEAR(square.middle_y, 0.5, 0.004);
  EXPECT_NEAR(square.middle_x, 0.5, 0.004);
  const Means low = means_of(16, 40, 3);
  EXPECT_NEAR(low.boxes, 1.9996, 0.02);
  EXPECT_NEAR(low.area, 0.08482, 0.0015);
  EXPECT_NEAR(low.log_ratio, -0.0431, 0.012);
  EXPECT_NEAR(low.middle_x, 0.5, 0.004);
}

TEST(RandomErasing, ErasesAsOftenAsAsked) {
  Rng rng(8);
  int erased = 0;
  for (int i = 0; i < 10000; ++i) {
    erased += !draw_erased({.probability = 0.25}, 16, 16, rng).empty();
  }
  EXPECT_NEAR(erased, 2500, 5 * std::sqrt(10000 * 0.25 * 0.75));
}

constexpr int64_t kHeight = 24, kWidth = 32;
constexpr float kBefore = 99;

std::vector<float> erased(ErasingMode mode, uint64_t key) {
  std::vector<float> image(3 * kHeight * kWidth, kBefore);
  erase(image.data(), kHeight, kWidth, always(mode), Rng(key));
  return image;
}

// The values that were written, by channel.
std::vector<std::vector<float>> values(ErasingMode mode, uint64_t key) {
  const std::vector<float> image = erased(mode, key);
  std::vector<std::vector<float>> written(3);
  for (size_t i = 0; i < image.size(); ++i) {
    if (image[i] != kBefore) written[i / (kHeight * kWidth)].push_back(image[i]);
  }
  return written;
}

TEST(RandomErasing, ChangesTheBoxInAllChannelsAndNothingElse) {
  for (uint64_t key = 0; key < 50; ++key) {
    Rng rng(key);
    const Box box = draw_erased(always(), kHeight, kWidth, rng).at(0);
    const std::vector<float> image = erased(ErasingMode::constant, key);
    for (int64_t i = 0; i < 3 * kHeight * kWidth; ++i) {
      const int64_t y = i / kWidth % kHeight - box.top, x = i % kWidth - box.left;
      const bool inside = y >= 0 && y < box.height && x >= 0 && x < box.width;
      ASSERT_EQ(image[static_cast<size_t>(i)], inside ? 0.0f : kBefore);
    }
  }
}

TEST(RandomErasing, FillsAreNormalNumbersOfABoxOrOfAPixel) {
  std::vector<double> colours, pixels;
  for (uint64_t key = 0; key < 2000; ++key) {
    for (const auto& channel : values(ErasingMode::rand, key)) {
      ASSERT_EQ(std::count(channel.begin(), channel.end(), channel.front()),
                static_cast<int64_t>(channel.size()));
      colours.push_back(channel.front());
    }
  }
  for (uint64_t key = 0; key < 20; ++key) {
    for (const auto& channel : values(ErasingMode::pixel, key)) {
      pixels.insert(pixels.end(), channel.begin(), channel.end());
    }
  }
  for (const std::vector<double>& numbers : {colours, pixels}) {
    const auto count = static_cast<double>(numbers.size());
    double sum = 0, squares = 0;
    for (double x : numbers) sum += x, squares += x * x;
    EXPECT_NEAR(sum / count, 0, 5 / std::sqrt(count));
    EXPECT_NEAR(squares / count, 1, 5 * std::sqrt(2 / count));
  }
}

TEST(RandomErasing, SameKeySameValues) {
  EXPECT_EQ(erased(ErasingMode::pixel, 3), erased(ErasingMode::pixel, 3));
  EXPECT_NE(erased(ErasingMode::pixel, 3), erased(ErasingMode::pixel, 4));
}

}  // namespace
}  // namespace convpass
