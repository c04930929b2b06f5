#include "src/data/jpeg.h"

#include <csetjmp>
#include <cstdio>
// After <cstdio>: jpeglib.h uses FILE and size_t without including them.
#include <jpeglib.h>

#include <string>

#include "convpass/core/error.h"

namespace convpass {
namespace {

// A progressive file of a few bytes a scan can cost hours; real ones have about ten.
constexpr int kMostScans = 500;

/// libjpeg's decoder with errors that jump back here instead of ending the process, and warnings
/// that print nothing.
struct Decoder {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf failed{};
  char message[JMSG_LENGTH_MAX] = "";

  Decoder() {
    jpeg.err = jpeg_std_error(&errors);
    jpeg.client_data = this;
    errors.error_exit = [](j_common_ptr common) {
      auto* decoder = static_cast<Decoder*>(common->client_data);
      common->err->format_message(common, decoder->message);
      std::longjmp(decoder->failed, 1);
    };
    errors.emit_message = [](j_common_ptr, int) {};
    progress.progress_monitor = [](j_common_ptr common) {
      auto* decoder = static_cast<Decoder*>(common->client_data);
      if (decoder->jpeg.input_scan_number <= kMostScans) return;
      std::snprintf(decoder->message, sizeof decoder->message, "more than %d scans", kMostScans);
      std::longjmp(decoder->failed, 1);
    };
  }
  ~Decoder() { jpeg_destroy_decompress(&jpeg); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // The two below hold nothing with a destructor, so that a jump out of libjpeg skips none.

  bool start(std::span<const uint8_t> bytes) {
    if (setjmp(failed) != 0) return false;
    jpeg_create_decompress(&jpeg);
    jpeg.progress = &progress;
    jpeg_mem_src(&jpeg, bytes.data(), static_cast<unsigned long>(bytes.size()));
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = jpeg.num_components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&jpeg);
    return true;
  }

  /// Rows of output_width * output_components bytes.
  bool read(uint8_t* pixels) {
    if (setjmp(failed) != 0) return false;
    const size_t row_bytes =
        static_cast<size_t>(jpeg.output_width) * static_cast<size_t>(jpeg.output_components);
    while (jpeg.output_scanline < jpeg.output_height) {
      JSAMPROW row = pixels + jpeg.output_scanline * row_bytes;
      jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    return true;
  }
};

/// a * b / 255, rounded, as Pillow computes it.
int scaled(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/// Inverted CMYK (Adobe's) to RGB, in place: what is stored is 255 - ink.
void cmyk_to_rgb(std::vector<uint8_t>& pixels) {
  size_t to = 0;
  for (size_t from = 0; from + 3 < pixels.size(); from += 4) {
    const int paper = pixels[from + 3];  // 255 - black
    for (size_t channel = 0; channel < 3; ++channel) {
      const int value = paper - scaled(255 - pixels[from + channel], paper);
      pixels[to++] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
  pixels.resize(to);
}

}  // namespace

Image decode_jpeg(std::span<const uint8_t> bytes, const ImageHeader& header) {
  Decoder decoder;
  Image image;
  bool whole = decoder.start(bytes);
  if (whole) {
    const jpeg_decompress_struct& jpeg = decoder.jpeg;
    image.height = jpeg.output_height;
    image.width = jpeg.output_width;
    if (image.height != header.height || image.width != header.width)
      throw Error("JPEG: damaged: two frame headers");
    image.pixels.resize(static_cast<size_t>(image.height * image.width * jpeg.output_components));
    whole = decoder.read(image.pixels.data());
  }
  if (!whole) throw Error(std::string("JPEG: damaged: ") + decoder.message);
  if (decoder.jpeg.out_color_space == JCS_CMYK) cmyk_to_rgb(image.pixels);
  return image;
}

}  // namespace convpass
