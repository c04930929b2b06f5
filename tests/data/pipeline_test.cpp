#include "convpass/data/pipeline.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/rng.h"
#include "data/image_files.h"

namespace convpass {
namespace {

InputConfig input_of(int64_t height, int64_t width) {
  InputConfig input;
  input.size = {height, width};
  input.mean = {0.5, 0.4, 0.3};
  input.std = {0.2, 0.25, 0.3};
  return input;
}

// Red is the column, green the row: a pixel says where it comes from.
Image coordinates(int64_t height, int64_t width) {
  Image image{height, width, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      image.pixels.insert(image.pixels.end(),
                          {static_cast<uint8_t>(x), static_cast<uint8_t>(y), 0});
    }
  }
  return image;
}

TEST(Pipeline, StretchIsAPlainResize) {
  const Image image = test::read_ppm("resize_noise.ppm");
  const ImagePipeline pipeline(input_of(24, 24), {});
  EXPECT_EQ(pipeline.evaluation_view(image).pixels,
            test::read_ppm("resize_noise_bicubic_24x24.ppm").pixels);
}

TEST(Pipeline, ShortSideTruncatesTheLongSideAndCutsTheCentre) {
  InputConfig input = input_of(21, 21);
  input.resize = ResizeMode::short_side;
  input.crop_fraction = 0.875;
  const Image image = test::read_ppm("resize_noise.ppm");  // 61 high, 97 wide
  // Short side 21 / 0.875 = 24, long side trunc(24 * 97 / 61) = 38; offsets round(1.5) = 2 (to
  // even) and round(8.5) = 8.
  const Image wanted = crop(resize(image, 24, 38, Interpolation::bicubic), 2, 8, 21, 21);
  EXPECT_EQ(ImagePipeline(input, {}).evaluation_view(image).pixels, wanted.pixels);
}

TEST(Pipeline, ShortSideOfAnOblongInputCoversBothSides) {
  InputConfig input = input_of(20, 30);
  input.resize = ResizeMode::short_side;
  const Image image = test::read_ppm("resize_noise.ppm");
  // Scales 20/61 and 30/97: the larger is 20/61, so the width is round(97 * 20/61) = 32.
  const Image wanted = crop(resize(image, 20, 32, Interpolation::bicubic), 0, 1, 20, 30);
  EXPECT_EQ(ImagePipeline(input, {}).evaluation_view(image).pixels, wanted.pixels);
}

TEST(Pipeline, NormalisesToPlanesLikeTorchvision) {
  const ImagePipeline pipeline(input_of(2, 3), {});
  const Image image = coordinates(2, 3);
  std::vector<float> out(18);
  pipeline.normalise(image, out.data());
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(out[i], (static_cast<float>(i % 3) / 255.0f - 0.5f) / 0.2f);
    EXPECT_EQ(out[6 + i], (static_cast<float>(i / 3) / 255.0f - 0.4f) / 0.25f);
    EXPECT_EQ(out[12 + i], (0.0f - 0.3f) / 0.3f);
  }
}

TEST(Pipeline, TrainingViewWithoutAugmentationIsTheEvaluationView) {
  const Image image = test::read_ppm("resize_smooth.ppm");
  const ImagePipeline pipeline(input_of(24, 24), {});
  EXPECT_FALSE(pipeline.random());
  EXPECT_EQ(pipeline.training_view(image, Rng(1)).pixels, pipeline.evaluation_view(image).pixels);
}

TEST(Pipeline, SameKeySameView) {
  AugmentConfig augment;
  augment.crop = CropMode::random_resized;
  augment.flip = 0.5;
  const Image image = test::read_ppm("resize_smooth.ppm");
  const ImagePipeline pipeline(input_of(24, 24), augment);
  EXPECT_EQ(pipeline.training_view(image, Rng(5)).pixels,
            pipeline.training_view(image, Rng(5)).pixels);
  EXPECT_NE(pipeline.training_view(image, Rng(5)).pixels,
            pipeline.training_view(image, Rng(6)).pixels);
}

TEST(Pipeline, FlipsAsOftenAsAsked) {
  AugmentConfig augment;
  augment.flip = 0.25;
  const ImagePipeline pipeline(input_of(3, 4), augment);
  const Image image = coordinates(3, 4);
  int flipped = 0;
  for (uint64_t i = 0; i < 4000; ++i) {
    const Image view = pipeline.training_view(image, Rng(7, 0, i, Purpose::augment));
    if (view.pixels[0] != 3) continue;
    ++flipped;
    for (size_t p = 0; p < 12; ++p) {
      ASSERT_EQ(view.pixels[p * 3], 3 - p % 4);
      ASSERT_EQ(view.pixels[p * 3 + 1], p / 4);
    }
  }
  EXPECT_NEAR(flipped / 4000.0, 0.25, 5 * std::sqrt(0.25 * 0.75 / 4000));
}

TEST(Pipeline, RandomCropReachesEveryOffsetEvenly) {
  InputConfig input = input_of(8, 8);
  input.crop_fraction = 0.8;  // 10 pixels, offsets 0 to 2
  AugmentConfig augment;
  augment.crop = CropMode::random;
  const ImagePipeline pipeline(input, augment);
  const Image image = coordinates(10, 10);
  int counts[3][3] = {};
  constexpr int kDraws = 9000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const Image view = pipeline.training_view(image, Rng(7, 0, i, Purpose::augment));
    ASSERT_LE(view.pixels[0], 2);
    ASSERT_LE(view.pixels[1], 2);
    ++counts[view.pixels[1]][view.pixels[0]];
  }
  for (const auto& row : counts) {
    for (int count : row) EXPECT_NEAR(count, kDraws / 9, 5 * std::sqrt(kDraws / 9.0));
  }
}

// The box is read back from the view: resized to its corners, the coordinates show its borders.
TEST(Pipeline, RandomResizedCropHasTheAreaAndRatioOfTimm) {
  InputConfig input = input_of(64, 64);
  input.interpolation = Interpolation::bilinear;
  AugmentConfig augment;
  augment.crop = CropMode::random_resized;
  const ImagePipeline pipeline(input, augment);
  const Image image = coordinates(200, 250);
  double area_sum = 0, log_ratio_sum = 0, x_sum = 0;
  constexpr int kDraws = 3000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const Image view = pipeline.training_view(image, Rng(3, 0, i, Purpose::augment));
    const uint8_t* first = view.pixels.data();
    const uint8_t* last = view.pixels.data() + view.pixels.size() - 3;
    const double width = (last[0] - first[0]) * 64.0 / 63.0;
    const double height = (last[1] - first[1]) * 64.0 / 63.0;
    const double area = width * height / (200.0 * 250.0), ratio = width / height;
    ASSERT_GT(area, 0.07);
    ASSERT_LT(area, 1.03);
    ASSERT_GT(ratio, 0.75 * 0.95);
    ASSERT_LT(ratio, 1.3334 * 1.05);
    area_sum += area;
    log_ratio_sum += std::log(ratio);
    x_sum += (last[0] + first[0]) / 2.0;
  }
  // A try that does not fit is drawn again, which takes large areas and extreme ratios away. The
  // mean of 200000 draws of timm's own get_params for this size is in tests/reference/crops.py.
  EXPECT_NEAR(area_sum / kDraws, 0.4546, 0.02);
  EXPECT_NEAR(log_ratio_sum / kDraws, 0.0283, 0.02);
  EXPECT_NEAR(x_sum / kDraws, 124.5, 2.0);
}

TEST(Pipeline, CropThatNeverFitsFallsBackToTheCentre) {
  AugmentConfig augment;
  augment.crop = CropMode::random_resized;
  augment.crop_area = {1.0, 1.0};
  const ImagePipeline pipeline(input_of(30, 40), augment);
  // Ratio 5: cut to round(30 * 4/3) = 40 columns, from (150 - 40) / 2 = 55 on.
  const Image image = coordinates(30, 150);
  const Image view = pipeline.training_view(image, Rng(1));
  EXPECT_EQ(view.pixels, crop(image, 0, 55, 30, 40).pixels);
}

TEST(Pipeline, RefusesWhatIsNotResolved) {
  EXPECT_EQ(test::message_of([] { ImagePipeline({}, {}); }),
            "input.size: got 0x0, wanted sides above 0");
  InputConfig input = input_of(8, 8);
  input.mean.pop_back();
  EXPECT_EQ(test::message_of([&] { ImagePipeline(input, {}); }),
            "input.mean: got 2 numbers, wanted 3");
  AugmentConfig augment;
  augment.crop_area = {0.5, 0.2};
  EXPECT_EQ(test::message_of([&] { ImagePipeline(input_of(8, 8), augment); }),
            "augment.crop_area: got [0.5, 0.2], wanted two rising numbers above 0 and at most 1");
}

}  // namespace
}  // namespace convpass
