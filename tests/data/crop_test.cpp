#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <sstream>
#include <string>

#include "convpass/data/pipeline.h"
#include "data/image_files.h"
#include "src/data/crop_box.h"

namespace convpass {
namespace {

std::ifstream reference(const std::string& name) {
  return std::ifstream(std::filesystem::path(CONVPASS_TEST_DATA) / "tensorflow" / name);
}

// tests/reference/tensorflow_views.py transcribes GenerateRandomCrop and our random numbers.
TEST(InceptionBox, EqualsTensorFlowsKernelForTheSameDraws) {
  std::ifstream in = reference("inception_boxes.txt");
  int64_t height = 0, width = 0;
  double area = 0, ratio = 0;
  uint64_t key = 0;
  Box wanted{};
  int lines = 0, whole = 0;
  while (in >> height >> width >> area >> ratio >> key >> wanted.top >> wanted.left >>
         wanted.height >> wanted.width) {
    const std::array<double, 2> areas{area, 1.0}, ratios{0.75, ratio};
    Rng rng(key);
    const Box got = inception_box(height, width, {areas, ratios}, rng);
    EXPECT_TRUE(got.top == wanted.top && got.left == wanted.left && got.height == wanted.height &&
                got.width == wanted.width)
        << height << "x" << width << " key " << key;
    ++lines;
    whole += got.height == height && got.width == width;
  }
  EXPECT_EQ(lines, 480);
  EXPECT_GE(whole, 120);  // 1x1, and 20x200 of at least 0.9, where nothing else fits
}

TEST(InceptionBox, DrawsTheHeightEvenlyAndNeverReachesTheFarBorder) {
  const std::array<double, 2> areas{0.05, 1.0}, ratios{1.0, 1.0};
  constexpr int64_t kSide = 100;
  constexpr int kDraws = 79 * 200;
  std::array<int, kSide + 1> heights{};
  for (uint64_t i = 0; i < kDraws; ++i) {
    Rng rng(11, 0, i, Purpose::augment);
    const Box box = inception_box(kSide, kSide, {areas, ratios}, rng);
    ASSERT_EQ(box.height, box.width);
    ++heights[static_cast<size_t>(box.height)];
    if (box.height == kSide) continue;
    ASSERT_LT(box.top + box.height, kSide);
    ASSERT_LT(box.left + box.width, kSide);
  }
  // Of side 22 = round(sqrt(500)) the area is 484, below the bound: it grows to 23.
  EXPECT_EQ(heights[22], 0);
  EXPECT_NEAR(heights[23], 400, 5 * std::sqrt(400.0));
  for (size_t side = 24; side <= kSide; ++side) {
    EXPECT_NEAR(heights[side], 200, 5 * std::sqrt(200.0)) << side;
  }
}

}  // namespace
}  // namespace convpass
