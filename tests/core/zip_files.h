#pragma once

#include <map>
#include <sstream>
#include <string>

#include "src/core/zip.h"
#include "src/core/zip_writer.h"
#include "tests/core/tensor_files.h"

namespace convpass {

using ZipContents = std::map<std::string, std::string>;

/// All entries of an archive, to be edited and written again.
inline ZipContents zip_contents(const std::filesystem::path& file) {
  ZipReader zip(file);
  ZipContents contents;
  for (const auto& [name, entry] : zip.entries()) {
    auto bytes = zip.read(name, 1 << 20);
    contents[name] = std::string(bytes.begin(), bytes.end());
  }
  return contents;
}

inline std::string zip_bytes(const ZipContents& contents) {
  std::ostringstream out;
  ZipWriter writer(out);
  for (const auto& [name, data] : contents) writer.add(name, data);
  writer.finish();
  return out.str();
}

/// Replaces the only occurrence of `old` in `text`.
inline void replace_once(std::string& text, const std::string& old, const std::string& now) {
  const auto at = text.find(old);
  ASSERT_NE(at, std::string::npos) << old;
  ASSERT_EQ(text.find(old, at + 1), std::string::npos) << old << " occurs twice";
  text.replace(at, old.size(), now);
}

/// Sets 4 bytes of the central directory record of the entry called `name`: 8 is flags and method,
/// 16 the checksum, 20 the compressed and 24 the uncompressed size, 42 the place of the entry.
inline void set_in_directory(std::string& zip, const std::string& name, size_t field,
                             uint32_t value) {
  const auto at = zip.rfind(name);
  ASSERT_NE(at, std::string::npos);
  ASSERT_EQ(zip.compare(at - 46, 4, "PK\x01\x02"), 0);
  zip.replace(at - 46 + field, 4, little_endian(value, 4));
}

/// Version 1 of the npy format.
inline std::string npy(const std::string& type, const std::string& shape, const std::string& data) {
  const std::string header =
      "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  return "\x93NUMPY\x01" + std::string(1, '\0') + little_endian(header.size(), 2) + header + data;
}

}  // namespace convpass
