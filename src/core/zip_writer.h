#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace convpass {

/// Writes a zip archive of stored entries whose data is aligned, as torch.load can map it. Times
/// are fixed, so equal entries give equal bytes. Always in the 64-bit form: no size needs another
/// path.
class ZipWriter {
 public:
  explicit ZipWriter(std::ostream& out) : out_(out) {}

  void add(const std::string& name, std::string_view data);
  /// Writes the directory; call once, after the last entry.
  void finish();

 private:
  struct Entry {
    std::string name;
    uint32_t crc;
    uint64_t size, offset;
  };
  void write(std::string_view bytes);

  std::ostream& out_;
  uint64_t position_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace convpass
