#include "convpass/data/pipeline.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/rng.h"
#include "data/image_files.h"
#include "src/data/color_jitter.h"
#include "src/data/crop_box.h"
#include "src/data/rand_augment.h"

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

Image transposed(const Image& image) {
  Image turned{image.width, image.height, {}};
  for (int64_t y = 0; y < turned.height; ++y) {
    for (int64_t x = 0; x < turned.width; ++x) {
      const uint8_t* pixel = image.pixels.data() + (x * image.width + y) * 3;
      turned.pixels.insert(turned.pixels.end(), pixel, pixel + 3);
    }
  }
  return turned;
}

// Checksums of big_vision's resize_small and central_crop: tests/reference/tensorflow_views.py.
TEST(Pipeline, TfAreaIsTheEvaluationViewOfBigVision) {
  std::ifstream in(std::filesystem::path(CONVPASS_TEST_DATA) / "tensorflow/evaluation_views.txt");
  std::string name;
  int64_t turned = 0, side = 0, crop = 0;
  uLong wanted = 0;
  int lines = 0;
  for (; in >> name >> turned >> side >> crop >> wanted; ++lines) {
    InputConfig input = input_of(crop, crop);
    input.resize = ResizeMode::short_side;
    input.resize_to = {side};
    input.interpolation = Interpolation::tf_area;
    Image image = test::read_ppm("resize_" + name + ".ppm");
    if (turned) image = transposed(image);
    const Image view = ImagePipeline(input, {}).evaluation_view(image);
    EXPECT_EQ(crc32(0, view.pixels.data(), static_cast<uInt>(view.pixels.size())), wanted)
        << name << " " << turned << " " << side << " " << crop;
  }
  EXPECT_EQ(lines, 16);
}

TEST(Pipeline, CropFractionsOfBigVisionGiveWholePixels) {
  for (const auto& [size, fraction, wanted] :
       {std::tuple{224, 0.875, 256}, std::tuple{128, 0.8, 160}, std::tuple{224, 0.95, 235}}) {
    InputConfig input = input_of(size, size);
    input.crop_fraction = fraction;
    InputConfig same = input_of(size, size);
    same.resize_to = {wanted, wanted};
    const Image image = test::read_ppm("resize_smooth.ppm");
    EXPECT_EQ(ImagePipeline(input, {}).evaluation_view(image).pixels,
              ImagePipeline(same, {}).evaluation_view(image).pixels)
        << size;
  }
}

TEST(Pipeline, StretchedAndCutIsTheFewShotViewOfPillow) {
  InputConfig input = input_of(224, 224);
  input.resize_to = {256, 256};
  const Image photo = read_image(test::image_file("photo.jpg"));
  const Image view = ImagePipeline(input, {}).evaluation_view(photo);
  const std::vector<uint8_t> text = test::bytes_of(test::image_file("photo_256_crop_224.crc32"));
  EXPECT_EQ(crc32(0, view.pixels.data(), static_cast<uInt>(view.pixels.size())),
            std::stoul(std::string(text.begin(), text.end())));
}

TEST(Pipeline, ResizeToOfTrainingLeavesTheEvaluationAlone) {
  const Image image = test::read_ppm("resize_smooth.ppm");
  InputConfig input = input_of(16, 16);
  AugmentConfig augment;
  augment.crop = CropMode::random;
  augment.resize_to = {20};
  const ImagePipeline pipeline(input, augment);
  EXPECT_EQ(pipeline.evaluation_view(image).pixels,
            resize(image, 16, 16, Interpolation::bicubic).pixels);
  const Image whole = resize(image, 20, 20, Interpolation::bicubic);
  Rng rng(9);
  const int64_t top = rng.below(5), left = rng.below(5);
  EXPECT_EQ(pipeline.training_view(image, Rng(9)).pixels, crop(whole, top, left, 16, 16).pixels);
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

TEST(Pipeline, InceptionCropResizesItsBoxAsTensorFlowDoes) {
  InputConfig input = input_of(24, 20);
  AugmentConfig augment;
  augment.crop = CropMode::inception;
  augment.flip = 0.5;
  const ImagePipeline pipeline(input, augment);
  const Image image = test::read_ppm("resize_noise.ppm");
  const std::array<double, 2> area{0.05, 1.0}, ratio{0.75, 1.33};
  int flips = 0;
  for (uint64_t key = 0; key < 20; ++key) {
    Rng rng(key);
    const Box box = inception_box(image.height, image.width, {area, ratio}, rng);
    Image wanted = resize(crop(image, box.top, box.left, box.height, box.width), 24, 20,
                          Interpolation::tf_bilinear);
    if (rng.coin(0.5)) {
      ++flips;
      const Image straight = wanted;
      for (size_t i = 0; i < wanted.pixels.size(); ++i) {
        const size_t pixel = i / 3, mirrored = pixel / 20 * 20 + 19 - pixel % 20;
        wanted.pixels[i] = straight.pixels[mirrored * 3 + i % 3];
      }
    }
    EXPECT_EQ(pipeline.training_view(image, Rng(key)).pixels, wanted.pixels) << key;
  }
  EXPECT_GT(flips, 3);
  EXPECT_LT(flips, 17);
}

TEST(Pipeline, ChangesAreDrawnAfterCropAndFlip) {
  const Image image = test::read_ppm("resize_smooth.ppm");
  AugmentConfig augment;
  augment.crop = CropMode::random_resized;
  augment.flip = 0.5;
  const ImagePipeline plain(input_of(24, 24), augment);
  AugmentConfig changing = augment, jittering = augment;
  changing.rand_augment = "rand-m7-mstd0.5-inc1";
  jittering.color_jitter = {0.4, 0.3, 0.2, 0.1};
  const ImagePipeline changed(input_of(24, 24), changing), jittered(input_of(24, 24), jittering);
  // Means of 0.5, 0.4 and 0.3 in 255ths, halves to the even neighbour.
  const Sampling sampling{.interpolation = Interpolation::bicubic, .fill = {128, 102, 76}};
  int unchanged = 0;
  for (uint64_t key = 0; key < 100; ++key) {
    const Image before = plain.training_view(image, Rng(key));
    Rng rng(key);
    random_resized_box(image.height, image.width,
                       {std::array{0.08, 1.0}, std::array{3.0 / 4.0, 4.0 / 3.0}}, rng);
    rng.uniform();  // the flip
    Rng same = rng;
    Image wanted = before;
    apply(wanted, parse_rand_augment(changing.rand_augment).draw(rng), sampling);
    EXPECT_EQ(changed.training_view(image, Rng(key)).pixels, wanted.pixels) << key;
    unchanged += wanted.pixels == before.pixels;
    wanted = before;
    apply(wanted, draw_color_jitter(jittering.color_jitter, same), sampling);
    EXPECT_EQ(jittered.training_view(image, Rng(key)).pixels, wanted.pixels) << key;
  }
  EXPECT_NEAR(unchanged, 25, 5 * std::sqrt(100 * 0.25 * 0.75));
}

TEST(Pipeline, ErasesByItsKeyAlone) {
  AugmentConfig augment;
  augment.erasing = {.probability = 0.5, .mode = ErasingMode::pixel};
  const ImagePipeline pipeline(input_of(24, 24), augment), plain(input_of(24, 24), {});
  EXPECT_TRUE(pipeline.random());
  const std::vector<float> before(3 * 24 * 24, 7.0f);
  int erased = 0;
  for (uint64_t key = 0; key < 400; ++key) {
    std::vector<float> once = before, again = before, off = before;
    pipeline.erase(once.data(), Rng(key));
    pipeline.erase(again.data(), Rng(key));
    plain.erase(off.data(), Rng(key));
    EXPECT_EQ(once, again);
    EXPECT_EQ(off, before);
    erased += once != before;
  }
  EXPECT_NEAR(erased, 200, 5 * std::sqrt(400 * 0.25));
}

TEST(Pipeline, SharesPixelsOnlyWhereChangesAreTheSame) {
  InputConfig dark = input_of(8, 8);
  dark.mean = {0.1, 0.1, 0.1};
  AugmentConfig plain, changing, jittering, erasing;
  changing.rand_augment = "rand-m7";
  jittering.color_jitter = {0.4};
  erasing.erasing.probability = 0.5;
  for (const AugmentConfig* a : {&plain, &changing, &jittering, &erasing}) {
    for (const AugmentConfig* b : {&plain, &changing, &jittering, &erasing}) {
      EXPECT_EQ(a->same_draw(*b), a == b);
      EXPECT_EQ(ImagePipeline(input_of(8, 8), *a).same_pixels({input_of(8, 8), *b}, true), a == b);
      EXPECT_TRUE(ImagePipeline(input_of(8, 8), *a).same_pixels({input_of(8, 8), *b}, false));
    }
    // What rotations show outside the image follows the mean.
    EXPECT_EQ(ImagePipeline(input_of(8, 8), *a).same_pixels({dark, *a}, true), a != &changing);
  }
}

TEST(Pipeline, RefusesChangesThatItCannotMake) {
  auto refusal = [](const AugmentConfig& augment, InputConfig input = input_of(8, 8)) {
    return test::message_of([&] { ImagePipeline(input, augment); });
  };
  AugmentConfig augment;
  augment.rand_augment = "rand-m7-m8";
  EXPECT_EQ(refusal(augment),
            "augment.rand_augment: got \"rand-m7-m8\" with the part \"m8\", wanted each part once");
  augment.rand_augment = "rand-m7";
  InputConfig tensorflow = input_of(8, 8);
  tensorflow.interpolation = Interpolation::tf_area;
  EXPECT_EQ(refusal(augment, tensorflow),
            "input.interpolation: got a filter of TensorFlow with augment.rand_augment, wanted "
            "bicubic or bilinear");
  augment.color_jitter = {0.4};
  EXPECT_EQ(refusal(augment),
            "augment.color_jitter: got it with augment.rand_augment, wanted one of them");
  augment = {};
  augment.color_jitter = {0.4, 0.4};
  EXPECT_EQ(refusal(augment), "augment.color_jitter: got 2 numbers, wanted 1, 3 or 4");
  augment.color_jitter = {0.4, 0.4, 0.4, 0.6};
  EXPECT_EQ(refusal(augment), "augment.color_jitter: got a hue of 0.6, wanted at most 0.5");
  augment.color_jitter = {-0.1};
  EXPECT_EQ(refusal(augment), "augment.color_jitter: got -0.1, wanted at least 0");
  augment = {};
  augment.erasing.probability = 1.5;
  EXPECT_EQ(refusal(augment), "augment.random_erasing: got 1.5, wanted 0 to 1");
  augment.erasing = {.probability = 0.5, .count = 0};
  EXPECT_EQ(refusal(augment), "augment.erasing_count: got 0, wanted at least 1");
}

TEST(Pipeline, StrengthZeroMakesNoViewRandom) {
  AugmentConfig augment;
  augment.color_jitter = {0, 0, 0};
  EXPECT_FALSE(ImagePipeline(input_of(8, 8), augment).random());
  augment.color_jitter = {0, 0.1, 0};
  EXPECT_TRUE(ImagePipeline(input_of(8, 8), augment).random());
}

TEST(Pipeline, MixingMakesNoViewRandom) {
  AugmentConfig augment;
  augment.mix.mixup = 0.8;
  augment.mix.cutmix = 1.0;
  EXPECT_FALSE(ImagePipeline(input_of(8, 8), augment).random());
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

TEST(Pipeline, RefusesToResizeToMoreThanItCanHold) {
  InputConfig input = input_of(8, 8);
  input.crop_fraction = 8.0 / 8192;
  ImagePipeline(input, {});
  input.crop_fraction = 1e-9;
  EXPECT_EQ(test::message_of([&] { ImagePipeline(input, {}); }),
            "input.crop_fraction: got 0.000000, wanted at least 0.000977: images are resized to at "
            "most 8192 pixels");
}

TEST(Pipeline, RefusesPixelsThatTheCropDoesNotFitIn) {
  InputConfig input = input_of(8, 8);
  input.resize_to = {9, 7};
  EXPECT_EQ(test::message_of([&] { ImagePipeline(input, {}); }),
            "input.resize_to: got 9x7, wanted at least the input size of 8x8");
  input.resize_to = {9};
  input.crop_fraction = 0.5;
  EXPECT_EQ(test::message_of([&] { ImagePipeline(input, {}); }),
            "input.crop_fraction: got 0.5 and input.resize_to, wanted one of them");
  AugmentConfig augment;
  augment.resize_to = {10};
  EXPECT_EQ(test::message_of([&] { ImagePipeline(input_of(8, 8), augment); }),
            "augment.resize_to: got it without augment.crop \"random\", which alone resizes to it");
}

}  // namespace
}  // namespace convpass
