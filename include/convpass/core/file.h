#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace convpass {

/// A file mapped into memory; unmapped with the last owner. The mapping is private: what is written
/// to it (through a cast) never reaches the file.
class MappedFile {
 public:
  /// Errors: FileError when it cannot be opened, is a directory, or is empty.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& file);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  MappedFile() = default;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

/// The whole file in memory. Errors: FileError.
std::vector<uint8_t> read_file(const std::filesystem::path& file);

/// Writes a file that appears whole or not at all: `write` fills a temporary neighbour, which is
/// synced and renamed over `file`. On any failure the neighbour is removed and `file` is what it
/// was. Errors: FileError.
void write_atomically(const std::filesystem::path& file,
                      const std::function<void(std::ostream&)>& write);
void write_atomically(const std::filesystem::path& file, const std::string& text);

/// Returns when what was written to a file has reached the disk. Errors: FileError.
void sync_file(const std::filesystem::path& file);

/// Holds a folder for this process: a second one is refused until the first lets go or ends,
/// however it ends. Leaves nothing in the folder. Where the file system knows no locks, none is
/// held.
class FolderLock {
 public:
  /// Errors: FileError where the folder is held already.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(FolderLock&& other) noexcept : opened_(std::exchange(other.opened_, -1)) {}
  FolderLock& operator=(FolderLock&&) = delete;

 private:
  int opened_;
};

/// Removes from `folder` the temporary neighbours of writers that were killed; those of living
/// processes stay.
void remove_leftovers(const std::filesystem::path& folder);

}  // namespace convpass
