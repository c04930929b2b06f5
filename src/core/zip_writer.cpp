#include "src/core/zip_writer.h"

#include <array>

namespace convpass {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint16_t kVersion = 45;      // 4.5: 64-bit sizes
constexpr uint16_t kDate = 0x21;       // 1 January 1980, the first that the format can name
constexpr uint16_t kZip64 = 0x0001;    // extra field: 64-bit sizes
constexpr uint16_t kPadding = 0x4246;  // extra field: torch's own padding
constexpr uint32_t kIn64Bits = 0xffffffff;

class Record {
 public:
  Record& u16(uint64_t value) { return append(value, 2); }
  Record& u32(uint64_t value) { return append(value, 4); }
  Record& u64(uint64_t value) { return append(value, 8); }
  Record& text(std::string_view value) {
    bytes_ += value;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  Record& append(uint64_t value, int width) {
    for (int i = 0; i < width; ++i) bytes_ += static_cast<char>(value >> (8 * i));
    return *this;
  }
  std::string bytes_;
};

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
    table[i] = value;
  }
  return table;
}

uint32_t crc32(std::string_view data) {
  static constexpr auto kTable = make_crc_table();
  uint32_t crc = 0xffffffff;
  for (char c : data) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

}  // namespace

void ZipWriter::write(std::string_view bytes) {
  out_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  position_ += bytes.size();
}

void ZipWriter::add(const std::string& name, std::string_view data) {
  const Entry& entry = entries_.emplace_back(Entry{name, crc32(data), data.size(), position_});
  constexpr uint64_t kFixed = 30 + 20 + 4;  // header, 64-bit sizes, start of the padding
  const uint64_t padding =
      (kAlignment - (position_ + kFixed + name.size()) % kAlignment) % kAlignment;
  Record header;
  header.u32(0x04034b50).u16(kVersion).u16(0).u16(0).u16(0).u16(kDate);
  header.u32(entry.crc).u32(kIn64Bits).u32(kIn64Bits).u16(name.size()).u16(24 + padding).text(name);
  header.u16(kZip64).u16(16).u64(entry.size).u64(entry.size);
  header.u16(kPadding).u16(padding).text(std::string(padding, 'Z'));
  write(header.bytes());
  write(data);
}

void ZipWriter::finish() {
  const uint64_t start = position_;
  for (const Entry& entry : entries_) {
    Record header;
    header.u32(0x02014b50).u16(kVersion).u16(kVersion).u16(0).u16(0).u16(0).u16(kDate);
    header.u32(entry.crc).u32(kIn64Bits).u32(kIn64Bits).u16(entry.name.size()).u16(28);
    header.u16(0).u16(0).u16(0).u32(0).u32(kIn64Bits).text(entry.name);
    header.u16(kZip64).u16(24).u64(entry.size).u64(entry.size).u64(entry.offset);
    write(header.bytes());
  }
  const uint64_t end = position_;
  Record record;
  record.u32(0x06064b50).u64(44).u16(kVersion).u16(kVersion).u32(0).u32(0);
  record.u64(entries_.size()).u64(entries_.size()).u64(end - start).u64(start);
  record.u32(0x07064b50).u32(0).u64(end).u32(1);
  record.u32(0x06054b50).u16(0).u16(0).u16(0xffff).u16(0xffff).u32(kIn64Bits).u32(kIn64Bits).u16(0);
  write(record.bytes());
}

}  // namespace convpass
