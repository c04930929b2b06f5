#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/data/image.h"
#include "data/image_files.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

using test::bytes_of;
using test::difference;
using test::image_file;
using test::message_of;
using test::read_ppm;

struct Kind {
  const char* file;
  int largest = 0;  // difference from Pillow, in levels
  double mean = 0;
};

class Decode : public testing::TestWithParam<Kind> {};

TEST_P(Decode, EqualsPillow) {
  const Kind kind = GetParam();
  const std::filesystem::path file = image_file(kind.file);
  const test::Difference got =
      difference(read_image(file), read_ppm(file.stem().string() + ".ppm"));
  EXPECT_LE(got.largest, kind.largest);
  EXPECT_LE(got.mean, kind.mean);
}

// OpenCV converts the CMYK of TIFF files with other rounding than Pillow; all else is equal to the
// last bit.
INSTANTIATE_TEST_SUITE_P(
    , Decode,
    testing::Values(Kind{"jpeg_444.jpg"}, Kind{"jpeg_422.jpg"}, Kind{"jpeg_420.jpg"},
                    Kind{"jpeg_progressive.jpg"}, Kind{"jpeg_restart.jpg"}, Kind{"jpeg_rgb.jpg"},
                    Kind{"jpeg_grey.jpg"}, Kind{"jpeg_exif6.jpg"}, Kind{"jpeg_cmyk.jpg"},
                    Kind{"jpeg_ycck.jpg"}, Kind{"png_rgb.png"}, Kind{"png_grey.png"},
                    Kind{"png_1bit.png"}, Kind{"png_palette.png"}, Kind{"png_palette4.png"},
                    Kind{"png_palette_trns.png"}, Kind{"png_rgb_trns.png"}, Kind{"png_rgba.png"},
                    Kind{"png_grey_alpha.png"}, Kind{"png_metadata.png"},
                    Kind{"png_interlaced.png"}, Kind{"png_grey16.png"}, Kind{"png_rgb16.png"},
                    Kind{"png_grey_alpha16.png"}, Kind{"png_rgba16.png"}, Kind{"png_exif5.png"},
                    Kind{"webp_lossy.webp"}, Kind{"webp_lossless.webp"},
                    Kind{"webp_lossy_alpha.webp"}, Kind{"webp_lossless_alpha.webp"},
                    Kind{"webp_exif8.webp"}, Kind{"bmp_rgb.bmp"}, Kind{"bmp_rgba.bmp"},
                    Kind{"bmp_grey.bmp"}, Kind{"bmp_palette.bmp"}, Kind{"bmp_1bit.bmp"},
                    Kind{"tiff_rgb_raw.tif"}, Kind{"tiff_rgb_lzw.tif"},
                    Kind{"tiff_rgb_deflate.tif"}, Kind{"tiff_rgb_packbits.tif"},
                    Kind{"tiff_rgb_jpeg.tif"}, Kind{"tiff_grey.tif"}, Kind{"tiff_1bit.tif"},
                    Kind{"tiff_palette.tif"}, Kind{"tiff_rgba.tif"}, Kind{"tiff_cmyk.tif", 1, 0.5},
                    Kind{"tiff_grey16.tif"}, Kind{"tiff_rgb16.tif"}, Kind{"tiff_orientation6.tif"}),
    [](const auto& info) {
      std::string name = info.param.file;
      return name.substr(0, name.find('.'));
    });

TEST(DecodePhoto, EqualsPillow) {
  const Image photo = read_image(image_file("photo.jpg"));
  ASSERT_EQ(photo.height, 375);
  ASSERT_EQ(photo.width, 500);
  const std::vector<uint8_t> text = bytes_of(image_file("photo.crc32"));
  EXPECT_EQ(crc32(0, photo.pixels.data(), static_cast<unsigned>(photo.pixels.size())),
            std::stoul(std::string(text.begin(), text.end())));
}

TEST(DecodeOrientation, IsAppliedOnRequestOnly) {
  const DecodeOptions turn{.exif_orientation = true};
  for (const std::string stem : {"jpeg_exif6", "png_exif5", "webp_exif8"}) {
    const std::string file = stem + (stem[0] == 'j' ? ".jpg" : stem[0] == 'p' ? ".png" : ".webp");
    const Image turned = read_image(image_file(file), turn);
    EXPECT_EQ(difference(turned, read_ppm(stem + "_turned.ppm")).largest, 0) << file;
    EXPECT_NE(turned.height, read_image(image_file(file)).height);
  }
}

TEST(DecodeOrientation, AllEightEqualPillow) {
  std::vector<uint8_t> bytes = bytes_of(image_file("jpeg_exif6.jpg"));
  // The EXIF entry: tag 0x0112, type 3, count 1, value 6, in the byte order of its block.
  const std::vector<uint8_t> little{0x12, 0x01, 3, 0, 1, 0, 0, 0, 6, 0};
  const std::vector<uint8_t> big{0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6};
  auto at = std::search(bytes.begin(), bytes.end(), little.begin(), little.end());
  int64_t value = 8;
  if (at == bytes.end()) {
    at = std::search(bytes.begin(), bytes.end(), big.begin(), big.end());
    value = 9;
  }
  ASSERT_NE(at, bytes.end());
  const Image plain = decode_image(bytes);
  for (uint8_t orientation = 1; orientation <= 8; ++orientation) {
    at[value] = orientation;
    const Image got = decode_image(bytes, {.exif_orientation = true});
    const bool across = orientation >= 5;
    ASSERT_EQ(got.height, across ? plain.width : plain.height);
    // Where the top left pixel of the stored image goes (EXIF 2.32, table 6).
    const bool right = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    const bool bottom =
        orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    const int64_t y = bottom ? got.height - 1 : 0, x = right ? got.width - 1 : 0;
    for (size_t c = 0; c < 3; ++c) {
      EXPECT_EQ(got.pixels[static_cast<size_t>((y * got.width + x) * 3) + c], plain.pixels[c]);
    }
  }
}

// Every cut of every kind must be an error of one line; the last bytes of a TIFF or BMP may be
// padding.
TEST(DecodeBroken, CutFilesAreErrors) {
  for (const char* name : {"jpeg_420.jpg", "jpeg_progressive.jpg", "png_rgb.png", "png_rgb16.png",
                           "webp_lossy.webp", "webp_lossless.webp", "bmp_rgb.bmp",
                           "bmp_palette.bmp", "tiff_rgb_lzw.tif", "tiff_rgb_raw.tif"}) {
    const std::vector<uint8_t> bytes = bytes_of(image_file(name));
    for (size_t cut = 0; cut < bytes.size(); cut += cut < 700 || bytes.size() - cut < 40 ? 1 : 97) {
      const std::string message = message_of([&] { decode_image(std::span(bytes).first(cut)); });
      EXPECT_FALSE(message.empty()) << name << " cut to " << cut;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
  }
}

// Bytes changed at random: an image or an error, nothing else (the sanitizers watch).
TEST(DecodeBroken, ChangedBytesAreImagesOrErrors) {
  uint32_t state = 1;
  auto random = [&state] { return state = state * 1664525u + 1013904223u, state >> 8; };
  for (const char* name : {"jpeg_exif6.jpg", "png_palette.png", "webp_lossy_alpha.webp",
                           "bmp_palette.bmp", "tiff_palette.tif", "tiff_rgba.tif"}) {
    const std::vector<uint8_t> bytes = bytes_of(image_file(name));
    for (int i = 0; i < 150; ++i) {
      std::vector<uint8_t> changed = bytes;
      for (int k = 0; k < 3; ++k) {
        changed[random() % std::min<size_t>(changed.size(), 400)] = static_cast<uint8_t>(random());
      }
      try {
        const Image image =
            decode_image(changed, {.exif_orientation = true, .max_pixels = 1'000'000});
        EXPECT_EQ(image.pixels.size(), static_cast<size_t>(image.height * image.width * 3));
      } catch (const Error&) {
      }
    }
  }
}

void put(std::vector<uint8_t>& bytes, size_t at, std::initializer_list<int> values) {
  for (int value : values) bytes[at++] = static_cast<uint8_t>(value);
}

TEST(DecodeBroken, BombsAreRefusedByTheirHeader) {
  // 60000 = 0xEA60.
  std::vector<uint8_t> png = bytes_of(image_file("png_rgb.png"));
  put(png, 16, {0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60});
  const uint32_t sum = static_cast<uint32_t>(crc32(0, png.data() + 12, 17));
  put(png, 29, {int(sum >> 24), int(sum >> 16 & 255), int(sum >> 8 & 255), int(sum & 255)});

  std::vector<uint8_t> jpeg = bytes_of(image_file("jpeg_444.jpg"));
  const std::vector<uint8_t> frame{0xFF, 0xC0, 0, 17, 8};
  auto found = std::search(jpeg.begin(), jpeg.end(), frame.begin(), frame.end());
  ASSERT_NE(found, jpeg.end());
  put(jpeg, static_cast<size_t>(found - jpeg.begin()) + 5, {0xEA, 0x60, 0xEA, 0x60});

  std::vector<uint8_t> bmp = bytes_of(image_file("bmp_rgb.bmp"));
  put(bmp, 18, {0x60, 0xEA, 0, 0, 0x60, 0xEA, 0, 0});

  // WebP sides have 14 bits: the largest that it can claim is 16384x16384.
  std::vector<uint8_t> webp = bytes_of(image_file("webp_lossless.webp"));
  put(webp, 21, {0xFF, 0xFF, 0xFF, 0x0F});

  std::vector<uint8_t> tiff = bytes_of(image_file("tiff_rgb16.tif"));
  put(tiff, 10 + 8, {0xEA, 0x60});
  put(tiff, 22 + 8, {0xEA, 0x60});

  for (const auto* bomb : {&png, &jpeg, &bmp, &webp, &tiff}) {
    const std::string message = message_of([&] { decode_image(*bomb); });
    EXPECT_NE(message.find("more than the limit of 178956970"), std::string::npos) << message;
  }
}

TEST(DecodeBroken, ZeroSizesAreErrors) {
  std::vector<uint8_t> bmp = bytes_of(image_file("bmp_rgb.bmp"));
  put(bmp, 18, {0, 0, 0, 0});
  EXPECT_EQ(message_of([&] { decode_image(bmp); }), "BMP: an image of 0x19 pixels");
}

TEST(DecodeBroken, DamagedPngDataIsAnError) {
  std::vector<uint8_t> png = bytes_of(image_file("png_rgb.png"));
  png[png.size() / 2] ^= 0x10;
  EXPECT_EQ(message_of([&] { decode_image(png); }),
            "PNG: damaged: the checksum of chunk IDAT does not match");
}

TEST(DecodeBroken, OtherKindsAreNamed) {
  auto message = [](const std::string& text) {
    const std::vector<uint8_t> bytes(text.begin(), text.end());
    return message_of([&] { decode_image(bytes); });
  };
  const std::string wanted = ", wanted JPEG, PNG, WebP, BMP or TIFF";
  EXPECT_EQ(message("GIF89a......"), "a GIF file, which is not supported" + wanted);
  EXPECT_EQ(message(std::string("\0\0\0\x20", 4) + "ftypavif"),
            "an AVIF file, which is not supported" + wanted);
  EXPECT_EQ(message(std::string("\0\0\0\x20", 4) + "ftypheic"),
            "a HEIC file, which is not supported" + wanted);
  EXPECT_EQ(message("Hello,\nworld and more"),
            "not an image: starts with the text \"Hello, world\"" + wanted);
  EXPECT_EQ(message("\x01\x80"), "not an image: starts with 01 80" + wanted);
  EXPECT_EQ(message(""), "empty" + wanted);
}

TEST(ReadImage, NamesTheFileInItsErrors) {
  TempFolder folder;
  const std::string text = "no image";
  test::write_bytes(folder / "text.jpg", {text.begin(), text.end()});
  test::write_bytes(folder / "empty.jpg", {});
  std::filesystem::create_directory(folder / "folder.jpg");
  for (const char* name : {"text.jpg", "empty.jpg", "folder.jpg", "missing.jpg"}) {
    try {
      read_image(folder / name);
      FAIL() << name;
    } catch (const FileError& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find((folder / name).string() + ": "), 0u) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    }
  }
}

// The libraries below must not write past us.
TEST(DecodeBroken, NothingIsPrinted) {
  testing::internal::CaptureStderr();
  decode_image(bytes_of(image_file("png_metadata.png")));
  for (const char* name : {"jpeg_420.jpg", "jpeg_progressive.jpg", "png_rgb.png", "webp_lossy.webp",
                           "bmp_rgb.bmp", "tiff_rgb_raw.tif"}) {
    const std::vector<uint8_t> bytes = bytes_of(image_file(name));
    for (size_t cut : {bytes.size() / 2, bytes.size() - 1}) {
      message_of([&] { decode_image(std::span(bytes).first(cut)); });
    }
    std::vector<uint8_t> changed = bytes;  // pixel data that no header tells to be wrong
    for (size_t i = bytes.size() / 2; i < bytes.size() / 2 + 40 && i + 2 < bytes.size(); ++i)
      changed[i] = static_cast<uint8_t>(changed[i] * 7 + 3);
    message_of([&] { decode_image(changed); });
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace convpass
