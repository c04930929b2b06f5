#include "src/data/image_ops.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "data/image_files.h"

namespace convpass {
namespace {

constexpr Sampling kBicubic{.interpolation = Interpolation::bicubic, .fill = {124, 116, 104}};
constexpr Sampling kBilinear{.interpolation = Interpolation::bilinear, .fill = {124, 116, 104}};

// In the order of Operation.
const std::vector<std::string> kNames{"autocontrast", "equalize",    "invert",       "rotate",
                                      "posterize",    "solarize",    "solarize_add", "color",
                                      "contrast",     "brightness",  "sharpness",    "shear_x",
                                      "shear_y",      "translate_x", "translate_y",  "shift_hue"};

// Every fourth red with every green and blue.
Image colour_cube() {
  Image image{1024, 4096, {}};
  for (int i = 0; i < 1024 * 4096; ++i) {
    image.pixels.insert(image.pixels.end(),
                        {static_cast<uint8_t>((i >> 16) * 4 + 1), static_cast<uint8_t>(i >> 8),
                         static_cast<uint8_t>(i)});
  }
  return image;
}

// The images of tests/reference/image_ops.py.
std::map<std::string, Image> images() {
  const Image noise = test::read_ppm("resize_noise.ppm");
  const Image smooth = test::read_ppm("resize_smooth.ppm");
  Image dim = smooth, plain = noise;
  for (uint8_t& level : dim.pixels) level = static_cast<uint8_t>(level / 9 + 30);
  std::fill(plain.pixels.begin(), plain.pixels.end(), uint8_t{77});
  return {{"cube", colour_cube()},
          {"photo", test::read_ppm("resize_photo_bicubic_224x224.ppm")},
          {"noise", noise},
          {"smooth", smooth},
          {"dim", dim},
          {"plain", plain},
          {"tiny", crop(noise, 0, 0, 2, 3)}};
}

TEST(ImageOps, AreThoseOfPillow) {
  const std::map<std::string, Image> sources = images();
  std::ifstream in(std::filesystem::path(CONVPASS_TEST_DATA) / "image_ops.txt");
  std::string name, operation;
  double argument = 0;
  bool bilinear = false;
  uLong wanted = 0;
  int lines = 0;
  for (; in >> name >> operation >> argument >> bilinear >> wanted; ++lines) {
    const auto index = std::find(kNames.begin(), kNames.end(), operation) - kNames.begin();
    Image image = sources.at(name);
    apply(image, {{static_cast<Operation>(index), argument}}, bilinear ? kBilinear : kBicubic);
    EXPECT_EQ(crc32(0, image.pixels.data(), static_cast<uInt>(image.pixels.size())), wanted)
        << name << " " << operation << " " << argument << (bilinear ? " bilinear" : "");
  }
  EXPECT_EQ(lines, 833);
}

TEST(ImageOps, AreAppliedOneAfterTheOther) {
  Image wanted = test::read_ppm("resize_smooth.ppm"), image = wanted;
  solarize(wanted, 77);
  rotate(wanted, 21, kBicubic);
  equalize(wanted);
  apply(image, {{Operation::solarize, 77}, {Operation::rotate, 21}, {Operation::equalize}},
        kBicubic);
  EXPECT_EQ(image.pixels, wanted.pixels);
}

TEST(ImageOps, KeepingNoBitsIsBlack) {
  Image image{1, 1, {255, 128, 1}};
  posterize(image, -3);
  EXPECT_EQ(image.pixels, (std::vector<uint8_t>{0, 0, 0}));
}

// Pillow's filter: at half a pixel -1/8, 5/8, 5/8, -1/8 for a = -1, truncated.
TEST(ImageOps, GeometricBicubicIsSharperThanThatOfResize) {
  Image image{1, 6, {}};
  for (uint8_t level : {0, 0, 0, 200, 200, 200}) image.pixels.insert(image.pixels.end(), 3, level);
  affine(image, {1, 0, 0.5, 0, 1, 0}, kBicubic);
  std::vector<int> red;
  for (size_t x = 0; x < 6; ++x) red.push_back(image.pixels[x * 3]);
  EXPECT_EQ(red, (std::vector<int>{0, 0, 100, 225, 200, kBicubic.fill[0]}));
}

TEST(ImageOps, FillsWhatLiesOutsideTheImage) {
  const Image before = test::read_ppm("resize_noise.ppm");
  for (const std::array<double, 6>& matrix :
       {std::array<double, 6>{1, 0, 1e9, 0, 1, 0}, {1, 0, 0, 0, 1, -1e9}, {0, 0, -1, 0, 0, 3}}) {
    Image image = before;
    affine(image, matrix, kBilinear);
    for (size_t i = 0; i < image.pixels.size(); ++i) {
      ASSERT_EQ(image.pixels[i], kBilinear.fill[i % 3]);
    }
  }
}

TEST(ImageOps, MirrorsByAMatrix) {
  const Image before = test::read_ppm("resize_noise.ppm");
  Image image = before;
  affine(image, {-1, 0, 97, 0, -1, 61}, kBicubic);
  rotate(image, -180, kBicubic);
  EXPECT_EQ(image.pixels, before.pixels);
}

}  // namespace
}  // namespace convpass
