#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "convpass/core/error.h"

namespace convpass {

/// Numbers out of untrusted bytes: reading past the end is an Error, never undefined.
class ByteReader {
 public:
  ByteReader(std::span<const uint8_t> bytes, bool big_endian)
      : bytes_(bytes), big_endian_(big_endian) {}

  uint64_t size() const { return bytes_.size(); }
  uint8_t u8(uint64_t at) const { return static_cast<uint8_t>(number(at, 1)); }
  uint16_t u16(uint64_t at) const { return static_cast<uint16_t>(number(at, 2)); }
  uint32_t u24(uint64_t at) const { return static_cast<uint32_t>(number(at, 3)); }
  uint32_t u32(uint64_t at) const { return static_cast<uint32_t>(number(at, 4)); }
  bool is(uint64_t at, std::string_view text) const {
    if (at > size() || text.size() > size() - at) return false;
    for (size_t i = 0; i < text.size(); ++i) {
      if (bytes_[at + i] != static_cast<uint8_t>(text[i])) return false;
    }
    return true;
  }
  std::span<const uint8_t> part(uint64_t at, uint64_t count) const {
    need(at, count);
    return bytes_.subspan(at, count);
  }

 private:
  void need(uint64_t at, uint64_t count) const {
    if (at > size() || count > size() - at) {
      throw Error("cut short: got " + std::to_string(size()) + " bytes, wanted at least " +
                  std::to_string(at + count));
    }
  }
  uint64_t number(uint64_t at, uint64_t count) const {
    need(at, count);
    uint64_t value = 0;
    for (uint64_t i = 0; i < count; ++i) {
      uint64_t byte = bytes_[at + (big_endian_ ? i : count - 1 - i)];
      value = value << 8 | byte;
    }
    return value;
  }

  std::span<const uint8_t> bytes_;
  bool big_endian_;
};

}  // namespace convpass
