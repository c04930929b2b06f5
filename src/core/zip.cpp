#include "src/core/zip.h"

#include <zip.h>

#include <algorithm>

#include "convpass/core/error.h"
#include "src/core/printable.h"

namespace convpass {
namespace {

// Deflate cannot do better than 1032 to 1; a claim beyond this is a lie.
constexpr uint64_t kMostDeflateRatio = 1100;

}  // namespace

void ZipReader::Closer::operator()(struct zip* archive) const { zip_discard(archive); }
void ZipEntryReader::Closer::operator()(struct zip_file* entry) const { zip_fclose(entry); }

ZipReader::ZipReader(const std::filesystem::path& file) : file_(file) {
  int code = 0;
  archive_.reset(zip_open(file.c_str(), ZIP_RDONLY, &code));
  if (!archive_) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    throw FileError(file, "is a damaged zip archive: " + printable(text));
  }
  const uint64_t file_size = std::filesystem::file_size(file);
  uint64_t compressed = 0;
  const zip_int64_t count = zip_get_num_entries(archive_.get(), 0);
  for (zip_int64_t i = 0; i < count; ++i) {
    zip_stat_t stat;
    const auto index = static_cast<zip_uint64_t>(i);
    if (zip_stat_index(archive_.get(), index, ZIP_FL_ENC_RAW, &stat) != 0) {
      throw FileError(file, "is a damaged zip archive: " + printable(zip_strerror(archive_.get())));
    }
    const std::string where = "zip entry " + in_quotes(stat.name) + ": ";
    if (stat.encryption_method != ZIP_EM_NONE) {
      throw FileError(file, where + "is encrypted, which is not read");
    }
    if (stat.comp_method != ZIP_CM_STORE && stat.comp_method != ZIP_CM_DEFLATE) {
      throw FileError(file, where + "compression method " + std::to_string(stat.comp_method) +
                                ", wanted stored or deflated");
    }
    if (stat.comp_size > file_size - compressed) {
      throw FileError(file, where + "claims " + std::to_string(stat.comp_size) +
                                " compressed bytes, more than the file has left");
    }
    compressed += stat.comp_size;
    const bool stored = stat.comp_method == ZIP_CM_STORE;
    if (stored ? stat.size != stat.comp_size : stat.size / kMostDeflateRatio > stat.comp_size) {
      throw FileError(file, where + "claims " + std::to_string(stat.size) + " bytes from " +
                                std::to_string(stat.comp_size) +
                                (stored ? " stored" : " deflated"));
    }
    if (!entries_.emplace(stat.name, Entry{index, stat.size}).second) {
      throw FileError(file, where + "is there twice");
    }
  }
}

std::vector<uint8_t> ZipReader::read(const std::string& name, uint64_t limit) {
  ZipEntryReader reader(*this, name);
  if (reader.left() > limit) {
    throw FileError(file_, "zip entry " + in_quotes(name) + ": " + std::to_string(reader.left()) +
                               " bytes, wanted at most " + std::to_string(limit));
  }
  std::vector<uint8_t> bytes(reader.left());
  reader.read(bytes.data(), bytes.size());
  reader.finish();
  return bytes;
}

void ZipReader::read_into(const std::string& name, void* data) {
  ZipEntryReader reader(*this, name);
  reader.read(data, reader.left());
  reader.finish();
}

ZipEntryReader::ZipEntryReader(ZipReader& reader, const std::string& name)
    : file_(reader.file_), name_(name) {
  auto found = reader.entries_.find(name);
  if (found == reader.entries_.end()) fail("is missing");
  left_ = found->second.size;
  entry_.reset(zip_fopen_index(reader.archive_.get(), found->second.index, 0));
  if (!entry_) fail(printable(zip_strerror(reader.archive_.get())));
}

void ZipEntryReader::read(void* data, uint64_t size) {
  if (size > left_) {
    fail("ends early: got " + std::to_string(left_) + " more bytes, wanted " +
         std::to_string(size));
  }
  auto* bytes = static_cast<uint8_t*>(data);
  while (size > 0) {
    const zip_int64_t n = zip_fread(entry_.get(), bytes, size);
    if (n < 0) fail(printable(zip_file_strerror(entry_.get())));
    if (n == 0) fail("ends early: " + std::to_string(left_) + " bytes are missing");
    bytes += n;
    size -= static_cast<uint64_t>(n);
    left_ -= static_cast<uint64_t>(n);
  }
}

void ZipEntryReader::finish() {
  if (left_ != 0) fail(std::to_string(left_) + " bytes follow the data");
  // libzip compares the checksum when a read meets the end.
  uint8_t more = 0;
  const zip_int64_t n = zip_fread(entry_.get(), &more, 1);
  if (n < 0) fail(printable(zip_file_strerror(entry_.get())));
  if (n > 0) fail("holds more data than it claims");
}

void ZipEntryReader::fail(const std::string& what) const {
  throw FileError(file_, "zip entry " + in_quotes(name_) + ": " + what);
}

}  // namespace convpass
