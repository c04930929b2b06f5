#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct zip;
struct zip_file;

namespace convpass {

/// A zip archive open for reading: libzip behind checks that make its sizes trustworthy.
///
/// Every entry is stored or deflated, not encrypted, named once, and claims no more than its
/// compressed bytes can hold; all entries together claim no more compressed bytes than the file
/// has. So reading every entry once needs memory bounded by the length of the file. Errors:
/// FileError from every function.
class ZipReader {
 public:
  struct Entry {
    uint64_t index = 0;
    uint64_t size = 0;  ///< uncompressed, bytes
  };

  explicit ZipReader(const std::filesystem::path& file);

  const std::filesystem::path& file() const { return file_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  bool has(const std::string& name) const { return entries_.count(name) != 0; }

  /// The whole entry, which must be there and hold at most `limit` bytes.
  std::vector<uint8_t> read(const std::string& name, uint64_t limit);
  /// The whole entry into `data` of exactly its size.
  void read_into(const std::string& name, void* data);

 private:
  friend class ZipEntryReader;
  struct Closer {
    void operator()(struct zip* archive) const;
  };

  std::filesystem::path file_;
  std::unique_ptr<struct zip, Closer> archive_;
  std::map<std::string, Entry> entries_;
};

/// Reads one entry from its start to its end.
class ZipEntryReader {
 public:
  ZipEntryReader(ZipReader& reader, const std::string& name);

  uint64_t left() const { return left_; }
  /// Exactly `size` bytes.
  void read(void* data, uint64_t size);
  /// Checks that all was read, that no data follows and that the checksum holds.
  void finish();

 private:
  struct Closer {
    void operator()(struct zip_file* entry) const;
  };
  [[noreturn]] void fail(const std::string& what) const;

  const std::filesystem::path& file_;
  std::string name_;
  std::unique_ptr<struct zip_file, Closer> entry_;
  uint64_t left_ = 0;
};

}  // namespace convpass
