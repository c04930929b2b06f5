#include <algorithm>
#include <opencv2/core.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <utility>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/data/image.h"
#include "src/data/image_header.h"
#include "src/data/jpeg.h"

namespace convpass {
namespace {

// Threads are ours (one image each), and so are the messages.
void set_up_opencv() {
  static const bool done = [] {
    cv::setNumThreads(1);
    cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
    cv::redirectError([](int, const char*, const char*, const char*, int, void*) { return 0; });
    return true;
  }();
  static_cast<void>(done);
}

cv::Mat decode(std::span<const uint8_t> bytes, int flags) {
  try {
    // imdecode only reads; the Mat header wants a mutable pointer.
    cv::Mat buffer(1, static_cast<int>(bytes.size()), CV_8UC1, const_cast<uint8_t*>(bytes.data()));
    return cv::imdecode(buffer, flags);
  } catch (const cv::Exception&) {
    return {};
  }
}

Image image_of(const cv::Mat& rgb) {
  const uint8_t* first = rgb.ptr<uint8_t>();
  return {rgb.rows, rgb.cols, std::vector<uint8_t>(first, first + rgb.total() * 3)};
}

// Pillow's 16-bit colours keep the high byte, but 16-bit grey ("I;16") is clipped at 255.
cv::Mat to_eight_bits(const cv::Mat& mat, bool clip) {
  cv::Mat result(mat.rows, mat.cols, CV_MAKETYPE(CV_8U, mat.channels()));
  for (int y = 0; y < mat.rows; ++y) {
    const uint16_t* from = mat.ptr<uint16_t>(y);
    uint8_t* to = result.ptr<uint8_t>(y);
    for (int i = 0; i < mat.cols * mat.channels(); ++i) {
      to[i] = static_cast<uint8_t>(clip ? std::min<int>(from[i], 255) : from[i] >> 8);
    }
  }
  return result;
}

// EXIF orientations 2..8 as the transposes of Pillow's `exif_transpose`.
Image oriented(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  cv::Mat mat(static_cast<int>(image.height), static_cast<int>(image.width), CV_8UC3,
              image.pixels.data());
  if (orientation >= 5) cv::transpose(mat, mat);
  constexpr int kNoFlip = 2;
  constexpr int kFlips[] = {1, -1, 0, kNoFlip, 1, -1, 0};  // about the vertical axis, both, ...
  const int flip = kFlips[orientation - 2];
  if (flip != kNoFlip) cv::flip(mat, mat, flip);
  return image_of(mat);
}

std::string shape(int64_t width, int64_t height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

Image decode_by_opencv(std::span<const uint8_t> bytes, const ImageHeader& header) {
  set_up_opencv();
  const std::string kind = kind_name(header.kind);
  int flags = cv::IMREAD_COLOR | cv::IMREAD_IGNORE_ORIENTATION;
  std::vector<uint8_t> rewritten;
  if (header.kind == ImageKind::png) {
    rewritten = essential_png(bytes);
    if (header.deep && header.grey) {
      flags = cv::IMREAD_GRAYSCALE | cv::IMREAD_ANYDEPTH | cv::IMREAD_IGNORE_ORIENTATION;
    }
  }
  if (header.kind == ImageKind::tiff) {
    if (header.deep) flags |= cv::IMREAD_ANYDEPTH;
    if (!header.rewrites.empty()) rewritten.assign(bytes.begin(), bytes.end());
    for (auto [at, value] : header.rewrites) rewritten[at] = value;
  }
  cv::Mat mat = decode(rewritten.empty() ? bytes : std::span<const uint8_t>(rewritten), flags);
  if (mat.empty()) throw Error(kind + ": damaged: OpenCV cannot decode it");

  if (mat.depth() == CV_16U) mat = to_eight_bits(mat, header.grey);
  if (mat.depth() != CV_8U || (mat.channels() != 1 && mat.channels() != 3)) {
    throw Error(kind + ": a pixel type that is not supported");
  }
  cv::cvtColor(mat, mat, mat.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
  return image_of(mat);
}

}  // namespace

Image decode_image(std::span<const uint8_t> bytes, const DecodeOptions& options) {
  const ImageHeader header = read_image_header(bytes);
  const std::string kind = kind_name(header.kind);
  if (header.width <= 0 || header.height <= 0) {
    throw Error(kind + ": an image of " + shape(header.width, header.height) + " pixels");
  }
  constexpr int64_t kMaxSide = 1 << 20;  // OpenCV's own limit
  if (std::max(header.width, header.height) > kMaxSide) {
    throw Error(kind + ": an image of " + shape(header.width, header.height) +
                " pixels, more than the limit of " + std::to_string(kMaxSide) + " a side");
  }
  if (header.width > options.max_pixels / header.height) {
    throw Error(kind + ": an image of " + shape(header.width, header.height) +
                " pixels, more than the limit of " + std::to_string(options.max_pixels));
  }

  Image image =
      header.kind == ImageKind::jpeg ? decode_jpeg(bytes, header) : decode_by_opencv(bytes, header);
  // Pillow turns a TIFF by its orientation whether asked to or not.
  const bool turn = options.exif_orientation || header.kind == ImageKind::tiff;
  return turn ? oriented(std::move(image), header.orientation) : image;
}

std::string opencv_version() { return cv::getVersionString(); }

Image read_image(const std::filesystem::path& file, const DecodeOptions& options) {
  std::vector<uint8_t> bytes = read_file(file);
  try {
    return decode_image(bytes, options);
  } catch (const Error& error) {
    throw FileError(file, error.what());
  }
}

}  // namespace convpass
