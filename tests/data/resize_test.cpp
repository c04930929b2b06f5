#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "convpass/core/error.h"
#include "convpass/data/image.h"
#include "data/image_files.h"

namespace convpass {
namespace {

using test::difference;
using test::read_ppm;

struct Size {
  int64_t height, width;
};
constexpr Size kSizes[] = {{24, 24}, {61, 40}, {17, 97}, {83, 131}, {7, 150}, {150, 7}, {1, 1}};

TEST(Resize, EqualsPillowExactly) {
  for (const std::string source : {"noise", "smooth"}) {
    const Image image = read_ppm("resize_" + source + ".ppm");
    for (const auto& [kind, interpolation] : {std::pair{"bicubic", Interpolation::bicubic},
                                              std::pair{"bilinear", Interpolation::bilinear}}) {
      for (Size size : kSizes) {
        const std::string name = "resize_" + source + "_" + kind + "_" +
                                 std::to_string(size.height) + "x" + std::to_string(size.width);
        const Image got = resize(image, size.height, size.width, interpolation);
        EXPECT_EQ(difference(got, read_ppm(name + ".ppm")).largest, 0) << name;
      }
    }
  }
}

TEST(Resize, EqualsPillowOnADecodedPhoto) {
  const Image photo = read_image(test::image_file("photo.jpg"));
  EXPECT_EQ(difference(resize(photo, 224, 224, Interpolation::bicubic),
                       read_ppm("resize_photo_bicubic_224x224.ppm"))
                .largest,
            0);
}

// tests/reference/tensorflow_views.py transcribes the kernels in their float32 arithmetic.
TEST(Resize, EqualsTensorFlowsKernelsExactly) {
  const Image image = read_ppm("resize_noise.ppm");
  for (const auto& [kind, interpolation] : {std::pair{"bilinear", Interpolation::tf_bilinear},
                                            std::pair{"area", Interpolation::tf_area}}) {
    for (Size size : {Size{24, 24}, Size{61, 40}, Size{17, 97}, Size{70, 110}, Size{7, 150},
                      Size{150, 7}, Size{1, 1}}) {
      const std::string name = std::string("../tensorflow/") + kind + "_" +
                               std::to_string(size.height) + "x" + std::to_string(size.width);
      const Image got = resize(image, size.height, size.width, interpolation);
      EXPECT_EQ(difference(got, read_ppm(name + ".ppm")).largest, 0) << name;
    }
  }
}

TEST(Resize, OfTensorFlowTruncates) {
  const Image image{1, 2, {0, 10, 0, 255, 13, 0}};
  // The middle of three outputs lies half way: 127.5 and 11.5.
  const Image got = resize(image, 1, 3, Interpolation::tf_bilinear);
  EXPECT_EQ(got.pixels, (std::vector<uint8_t>{0, 10, 0, 127, 11, 0, 255, 13, 0}));
}

TEST(Resize, KeepsAnImageOfThatSize) {
  const Image image = read_ppm("resize_noise.ppm");
  for (auto interpolation :
       {Interpolation::bicubic, Interpolation::tf_bilinear, Interpolation::tf_area}) {
    EXPECT_EQ(resize(image, image.height, image.width, interpolation).pixels, image.pixels);
  }
}

TEST(Resize, KeepsAConstantColour) {
  Image image{19, 23, std::vector<uint8_t>(19 * 23 * 3, 201)};
  for (Size size : {Size{5, 60}, Size{40, 3}, Size{7, 7}, Size{50, 50}}) {
    const Image got = resize(image, size.height, size.width, Interpolation::bicubic);
    EXPECT_EQ(got.pixels, std::vector<uint8_t>(got.pixels.size(), 201));
  }
}

TEST(Resize, RefusesSidesOutOfRange) {
  const Image image{2, 2, std::vector<uint8_t>(12)};
  EXPECT_THROW(resize(image, 0, 5, Interpolation::bicubic), Error);
  EXPECT_THROW(resize(image, 5, int64_t{1} << 40, Interpolation::bicubic), Error);
  EXPECT_THROW(resize(Image{}, 5, 5, Interpolation::bicubic), Error);
}

TEST(Crop, IsBlackOutsideTheImage) {
  Image image{2, 2, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
  const Image got = crop(image, -1, 1, 3, 2);
  EXPECT_EQ(got.pixels,
            (std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 4, 5, 6, 0, 0, 0, 10, 11, 12, 0, 0, 0}));
  EXPECT_EQ(crop(image, 9, 9, 1, 1).pixels, (std::vector<uint8_t>{0, 0, 0}));
  EXPECT_EQ(crop(image, -9, -9, 1, 1).pixels, (std::vector<uint8_t>{0, 0, 0}));
}

}  // namespace
}  // namespace convpass
