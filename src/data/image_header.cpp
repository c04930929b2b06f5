#include "src/data/image_header.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "convpass/core/error.h"
#include "src/data/byte_reader.h"

namespace convpass {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr std::string_view kPngSignature("\x89PNG\r\n\x1a\n", 8);

// The entries of one TIFF directory (also the form of an EXIF block).
struct Directory {
  struct Entry {
    uint16_t tag, type;
    uint32_t count;
    uint64_t at;  // of its value, or of the offset to it
  };
  ByteReader reader;
  std::vector<Entry> entries;

  explicit Directory(Bytes bytes) : reader(bytes, bytes.size() > 1 && bytes[0] == 'M') {
    uint64_t at = reader.u32(4);
    uint16_t count = reader.u16(at);
    reader.part(at + 2, uint64_t{count} * 12);
    for (uint16_t i = 0; i < count; ++i) {
      uint64_t entry = at + 2 + uint64_t{i} * 12;
      entries.push_back(
          {reader.u16(entry), reader.u16(entry + 2), reader.u32(entry + 4), entry + 8});
    }
  }

  const Entry* find(uint16_t tag) const {
    for (const Entry& entry : entries) {
      if (entry.tag == tag) return &entry;
    }
    return nullptr;
  }
  // Element `i` of a BYTE, SHORT or LONG entry.
  uint32_t value(const Entry& entry, uint64_t i) const {
    uint64_t size = entry.type == 3 ? 2 : entry.type == 1 ? 1 : 4;
    uint64_t at = entry.count * size <= 4 ? entry.at : reader.u32(entry.at);
    at += i * size;
    return size == 2 ? reader.u16(at) : size == 1 ? reader.u8(at) : reader.u32(at);
  }
  uint32_t value_or(uint16_t tag, uint32_t otherwise) const {
    const Entry* entry = find(tag);
    return entry && entry->count > 0 ? value(*entry, 0) : otherwise;
  }
  int orientation() const {
    uint32_t value = value_or(274, 1);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
};

// A damaged EXIF block must not make a good picture unreadable.
int exif_orientation(Bytes bytes) {
  constexpr std::string_view kPrefix("Exif\0\0", 6);
  if (ByteReader(bytes, false).is(0, kPrefix)) bytes = bytes.subspan(kPrefix.size());
  ByteReader reader(bytes, false);
  if (!reader.is(0, "II") && !reader.is(0, "MM")) return 1;
  try {
    return Directory(bytes).orientation();
  } catch (const Error&) {
    return 1;
  }
}

ImageHeader read_jpeg(Bytes bytes) {
  ImageHeader header{.kind = ImageKind::jpeg};
  ByteReader reader(bytes, true);
  const Error cut("JPEG: cut short: got " + std::to_string(bytes.size()) +
                  " bytes without an end marker");
  const uint8_t* end = bytes.data() + bytes.size();
  const uint8_t* p = bytes.data() + 2;
  for (;;) {
    // The next marker: 0xFF, then neither a stuffed zero nor a restart marker.
    p = p < end ? static_cast<const uint8_t*>(std::memchr(p, 0xFF, static_cast<size_t>(end - p)))
                : nullptr;
    if (p == nullptr) throw cut;
    while (p < end && *p == 0xFF) ++p;
    if (p == end) throw cut;
    uint8_t marker = *p++;
    if (marker <= 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue;
    if (marker == 0xD9) break;
    uint64_t at = static_cast<uint64_t>(p - bytes.data());
    if (bytes.size() - at < 2) throw cut;
    uint16_t length = reader.u16(at);
    if (length < 2 || length > bytes.size() - at) throw cut;
    bool frame =
        marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
    if (frame && length >= 8) {
      // The larger of several frames, so that no later one passes the size limit unseen.
      header.height = std::max<int64_t>(header.height, reader.u16(at + 3));
      header.width = std::max<int64_t>(header.width, reader.u16(at + 5));
    }
    if (marker == 0xE1 && header.orientation == 1) {
      header.orientation = exif_orientation(bytes.subspan(at + 2, length - 2u));
    }
    p += length;
  }
  return header;
}

struct PngChunk {
  std::string_view type;
  Bytes whole, body;
};

template <class Visit>
void walk_png(Bytes bytes, Visit visit) {
  ByteReader reader(bytes, true);
  for (uint64_t at = kPngSignature.size();;) {
    if (bytes.size() - at < 12) throw Error("PNG: cut short: ends before its IEND chunk");
    uint64_t length = reader.u32(at);
    if (length > bytes.size() - at - 12) {
      throw Error("PNG: cut short: a chunk of " + std::to_string(length) + " bytes, " +
                  std::to_string(bytes.size() - at - 12) + " are left");
    }
    PngChunk chunk{{reinterpret_cast<const char*>(bytes.data()) + at + 4, 4},
                   bytes.subspan(at, length + 12),
                   bytes.subspan(at + 8, length)};
    visit(chunk);
    if (chunk.type == "IEND") return;
    at += length + 12;
  }
}

bool makes_colours(std::string_view type) {
  return type == "IHDR" || type == "PLTE" || type == "IDAT" || type == "IEND";
}

ImageHeader read_png(Bytes bytes) {
  ImageHeader header{.kind = ImageKind::png};
  bool first = true, needs_palette = false;
  walk_png(bytes, [&](const PngChunk& chunk) {
    if (first) {
      if (chunk.type != "IHDR" || chunk.body.size() != 13) {
        throw Error("PNG: the first chunk is not an IHDR of 13 bytes");
      }
      ByteReader body(chunk.body, true);
      header.width = body.u32(0);
      header.height = body.u32(4);
      header.deep = body.u8(8) == 16;
      header.grey = body.u8(9) == 0;
      needs_palette = body.u8(9) == 3;
      first = false;
    }
    if (chunk.type == "PLTE") needs_palette = false;
    if (chunk.type == "IDAT" && needs_palette) throw Error("PNG: damaged: no palette");
    if (chunk.type == "eXIf") header.orientation = exif_orientation(chunk.body);
    if (!makes_colours(chunk.type)) return;
    uint64_t length = chunk.body.size();
    uint32_t wanted = ByteReader(chunk.whole, true).u32(length + 8);
    auto got =
        static_cast<uint32_t>(crc32(0, chunk.whole.data() + 4, static_cast<unsigned>(length + 4)));
    if (got != wanted) {
      throw Error("PNG: damaged: the checksum of chunk " + std::string(chunk.type) +
                  " does not match");
    }
  });
  return header;
}

ImageHeader read_webp(Bytes bytes) {
  ImageHeader header{.kind = ImageKind::webp};
  ByteReader reader(bytes, false);
  uint64_t claimed = uint64_t{reader.u32(4)} + 8;
  if (claimed > bytes.size()) {
    throw Error("WebP: cut short: got " + std::to_string(bytes.size()) + " bytes, wanted " +
                std::to_string(claimed));
  }
  bool found = false;
  auto grow = [&](int64_t width, int64_t height) {
    header.width = std::max(header.width, width);
    header.height = std::max(header.height, height);
  };
  for (uint64_t at = 12; at + 8 <= claimed;) {
    uint64_t length = reader.u32(at + 4);
    if (length > claimed - at - 8) throw Error("WebP: damaged: a chunk is longer than the file");
    uint64_t body = at + 8;
    if (reader.is(at, "VP8X")) {
      if (reader.u8(body) & 0x02) throw Error("WebP: an animation, which is not supported");
      grow(int64_t{reader.u24(body + 4)} + 1, int64_t{reader.u24(body + 7)} + 1);
    } else if (reader.is(at, "VP8 ")) {
      grow(reader.u16(body + 6) & 0x3FFF, reader.u16(body + 8) & 0x3FFF);
      found = true;
    } else if (reader.is(at, "VP8L")) {
      uint32_t packed = reader.u32(body + 1);
      grow(int64_t{packed & 0x3FFF} + 1, int64_t{packed >> 14 & 0x3FFF} + 1);
      found = true;
    } else if (reader.is(at, "EXIF")) {
      header.orientation = exif_orientation(bytes.subspan(body, length));
    }
    at = body + length + (length & 1);
  }
  if (!found) throw Error("WebP: damaged: holds no picture");
  return header;
}

ImageHeader read_bmp(Bytes bytes) {
  ImageHeader header{.kind = ImageKind::bmp};
  ByteReader reader(bytes, false);
  uint64_t data_at = reader.u32(10);
  uint32_t header_size = reader.u32(14);
  bool old = header_size == 12;  // OS/2
  header.width = old ? reader.u16(18) : static_cast<int32_t>(reader.u32(18));
  int64_t height = old ? reader.u16(20) : static_cast<int32_t>(reader.u32(22));
  header.height = height < 0 ? -height : height;  // negative: rows from the top
  uint64_t bits = reader.u16(old ? 24 : 28);
  uint32_t compression = old ? 0 : reader.u32(30);
  bool known_bits = bits == 1 || bits == 4 || bits == 8 || bits == 16 || bits == 24 || bits == 32;
  if (!known_bits || compression > 3 || (!old && (header_size < 40 || header_size > 124)) ||
      (!old && reader.u32(46) > 256)) {
    throw Error("BMP: a header that is damaged or of a kind that is not supported");
  }
  bool rows_are_plain = compression == 0 || compression == 3;
  if (header.width > 0 && header.height > 0 && rows_are_plain) {
    uint64_t row = (static_cast<uint64_t>(header.width) * bits + 31) / 32 * 4;
    uint64_t wanted = data_at + row * static_cast<uint64_t>(header.height);
    // A bomb is reported by its size, which says more than that it is short.
    bool plausible = header.width * header.height < (int64_t{1} << 28);
    if (plausible && wanted > bytes.size()) {
      throw Error("BMP: cut short: got " + std::to_string(bytes.size()) + " bytes, wanted " +
                  std::to_string(wanted));
    }
  } else if (!rows_are_plain && data_at + reader.u32(34) > bytes.size()) {
    throw Error("BMP: cut short: got " + std::to_string(bytes.size()) + " bytes, wanted " +
                std::to_string(data_at + reader.u32(34)));
  }
  return header;
}

ImageHeader read_tiff(Bytes bytes) {
  ImageHeader header{.kind = ImageKind::tiff};
  Directory directory(bytes);
  header.width = directory.value_or(256, 0);
  header.height = directory.value_or(257, 0);
  header.orientation = directory.orientation();
  uint32_t samples = directory.value_or(277, 1);
  uint32_t bits = directory.value_or(258, 1);
  uint32_t format = directory.value_or(339, 1);
  if (!directory.find(262)) throw Error("TIFF: does not say what its samples mean (tag 262)");
  uint32_t photometric = directory.value_or(262, 1);
  if ((bits != 1 && bits != 2 && bits != 4 && bits != 8 && bits != 16) || format != 1) {
    throw Error("TIFF: " + std::to_string(bits) + " bits per sample" +
                (format == 1 ? "" : " that are not unsigned integers") +
                ", wanted 1, 2, 4, 8 or 16 bits unsigned");
  }
  header.deep = bits == 16;
  header.grey = samples == 1 && photometric <= 1;
  // An associated alpha (1) is one that libtiff leaves alone; orientation 1 is as stored.
  for (auto [tag, wanted] : {std::pair{338, 2}, {274, header.orientation}}) {
    const auto* entry = directory.find(static_cast<uint16_t>(tag));
    if (entry && entry->type == 3 && entry->count == 1 &&
        directory.value(*entry, 0) == static_cast<uint32_t>(wanted)) {
      header.rewrites.emplace_back(entry->at + (bytes[0] == 'M' ? 1 : 0), uint8_t{1});
    }
  }
  for (auto [offsets, counts] : {std::pair<uint16_t, uint16_t>{273, 279}, {324, 325}}) {
    const auto* offset = directory.find(offsets);
    const auto* count = directory.find(counts);
    if (!offset || !count) continue;
    for (uint64_t i = 0; i < std::min(offset->count, count->count); ++i) {
      uint64_t wanted = uint64_t{directory.value(*offset, i)} + directory.value(*count, i);
      if (wanted > bytes.size()) {
        throw Error("TIFF: cut short: got " + std::to_string(bytes.size()) + " bytes, wanted " +
                    std::to_string(wanted));
      }
    }
  }
  return header;
}

[[noreturn]] void refuse_unknown(Bytes bytes) {
  ByteReader reader(bytes, false);
  constexpr const char* kWanted = ", wanted JPEG, PNG, WebP, BMP or TIFF";
  if (bytes.empty()) throw Error(std::string("empty") + kWanted);
  const char* known = nullptr;
  if (reader.is(0, "GIF8")) known = "a GIF";
  if (reader.is(4, "ftypavi")) known = "an AVIF";
  if (reader.is(4, "ftyphei") || reader.is(4, "ftypmif") || reader.is(4, "ftyphev")) {
    known = "a HEIC";
  }
  if (reader.is(0, std::string_view("II\x2b\0", 4)) ||
      reader.is(0, std::string_view("MM\0\x2b", 4))) {
    known = "a BigTIFF";
  }
  if (known) throw Error(std::string(known) + " file, which is not supported" + kWanted);
  const Bytes start = bytes.first(std::min<size_t>(bytes.size(), 12));
  const bool text = std::all_of(start.begin(), start.end(), [](uint8_t byte) {
    return (byte >= 0x20 && byte < 0x7F) || byte == '\n' || byte == '\r' || byte == '\t';
  });
  std::string shown;
  for (uint8_t byte : start) {
    if (text) {
      shown += byte < 0x20 ? ' ' : static_cast<char>(byte);
    } else {
      constexpr const char* kDigits = "0123456789abcdef";
      if (!shown.empty()) shown += ' ';
      shown += kDigits[byte >> 4];
      shown += kDigits[byte & 15];
    }
  }
  throw Error("not an image: starts with " + (text ? "the text \"" + shown + "\"" : shown) +
              kWanted);
}

}  // namespace

const char* kind_name(ImageKind kind) {
  constexpr const char* kNames[] = {"JPEG", "PNG", "WebP", "BMP", "TIFF"};
  return kNames[static_cast<int>(kind)];
}

ImageHeader read_image_header(std::span<const uint8_t> bytes) {
  ByteReader reader(bytes, false);
  if (reader.is(0, "\xFF\xD8\xFF")) return read_jpeg(bytes);
  if (reader.is(0, kPngSignature)) return read_png(bytes);
  if (reader.is(0, "RIFF") && reader.is(8, "WEBP")) return read_webp(bytes);
  if (reader.is(0, "BM")) return read_bmp(bytes);
  if (reader.is(0, std::string_view("II*\0", 4)) || reader.is(0, std::string_view("MM\0*", 4))) {
    return read_tiff(bytes);
  }
  refuse_unknown(bytes);
}

std::vector<uint8_t> essential_png(std::span<const uint8_t> bytes) {
  std::vector<uint8_t> result(kPngSignature.begin(), kPngSignature.end());
  walk_png(bytes, [&](const PngChunk& chunk) {
    if (makes_colours(chunk.type)) {
      result.insert(result.end(), chunk.whole.begin(), chunk.whole.end());
    }
  });
  return result;
}

}  // namespace convpass
