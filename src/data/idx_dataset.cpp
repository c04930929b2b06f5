#include <zlib.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "src/data/byte_reader.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

struct Idx {
  std::vector<int64_t> sizes;
  std::vector<uint8_t> bytes;  // header included
  size_t data_at = 0;
};

// Inflates until the stream or `most` bytes are through, so that no bomb grows beyond its own
// header.
class Inflater {
 public:
  Inflater(const std::filesystem::path& file, std::span<const uint8_t> packed) : file_(file) {
    stream_.next_in = const_cast<Bytef*>(packed.data());
    left_ = packed.size();
    if (inflateInit2(&stream_, 15 + 16) != Z_OK) throw FileError(file, "cannot start zlib");
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  void grow(std::vector<uint8_t>& bytes, size_t most) {
    constexpr size_t kStep = size_t{1} << 20;
    while (bytes.size() < most && !done_) {
      const size_t before = bytes.size();
      bytes.resize(std::min(most, before + kStep));
      stream_.next_out = bytes.data() + before;
      stream_.avail_out = static_cast<uInt>(bytes.size() - before);
      while (stream_.avail_out > 0 && !done_) step();
      bytes.resize(bytes.size() - stream_.avail_out);
    }
  }

 private:
  void step() {
    if (stream_.avail_in == 0) {
      stream_.avail_in = static_cast<uInt>(std::min<size_t>(left_, size_t{1} << 30));
      left_ -= stream_.avail_in;
    }
    const int status = inflate(&stream_, Z_NO_FLUSH);
    done_ = status == Z_STREAM_END;
    if (status == Z_BUF_ERROR) throw FileError(file_, "gzip: cut short");
    if (status != Z_OK && !done_) throw FileError(file_, "gzip: damaged");
  }

  const std::filesystem::path& file_;
  z_stream stream_{};
  size_t left_ = 0;
  bool done_ = false;
};

// `dimensions` axes of unsigned bytes.
Idx read_idx(const std::filesystem::path& file, size_t dimensions, const char* key) {
  if (file.empty()) throw Error(std::string("idx: no `") + key + "` file is named");
  Idx idx;
  idx.data_at = 4 + 4 * dimensions;
  std::vector<uint8_t> raw = read_file(file);
  const bool packed = raw.size() > 2 && raw[0] == 0x1F && raw[1] == 0x8B;
  std::optional<Inflater> inflater;
  if (packed) {
    inflater.emplace(file, raw);
    inflater->grow(idx.bytes, idx.data_at);
  } else {
    idx.bytes = std::move(raw);
  }
  if (idx.bytes.size() < idx.data_at) {
    throw FileError(file, "idx: cut short: got " + std::to_string(idx.bytes.size()) +
                              " bytes, wanted a header of " + std::to_string(idx.data_at));
  }
  const ByteReader header(idx.bytes, true);
  const uint32_t magic = header.u32(0);
  const auto wanted_magic = static_cast<uint32_t>(0x0800 + dimensions);
  if (magic != wanted_magic) {
    throw FileError(file, std::string("idx ") + key + ": starts with the number " +
                              std::to_string(magic) + ", wanted " + std::to_string(wanted_magic));
  }
  uint64_t wanted = 1;
  for (size_t i = 0; i < dimensions; ++i) {
    const uint64_t size = header.u32(4 + 4 * i);
    constexpr uint64_t kMost = uint64_t{1} << 40;
    if (size == 0 || wanted > kMost / size) {
      throw FileError(file, "idx: axis " + std::to_string(i) + " has the size " +
                                std::to_string(size) + ", which cannot be");
    }
    wanted *= size;
    idx.sizes.push_back(static_cast<int64_t>(size));
  }
  wanted += idx.data_at;
  // One byte more shows whether there is too much.
  if (packed) inflater->grow(idx.bytes, wanted + 1);
  if (idx.bytes.size() != wanted) {
    const bool more = idx.bytes.size() > wanted;
    throw FileError(file, std::string("idx: got ") + (more && packed ? "more than " : "") +
                              std::to_string(more && packed ? wanted : idx.bytes.size()) +
                              " bytes, wanted " + std::to_string(wanted) + " by its header");
  }
  return idx;
}

}  // namespace

std::unique_ptr<Dataset> open_source(const IdxSource& source, const DecodeOptions&,
                                     int64_t classes) {
  auto images = std::make_shared<Idx>(read_idx(source.images, 3, "images"));
  const Idx labels = read_idx(source.labels, 1, "labels");
  if (images->sizes[0] != labels.sizes[0]) {
    throw FileError(source.labels, "idx: got " + std::to_string(labels.sizes[0]) +
                                       " labels, wanted one for each of the " +
                                       std::to_string(images->sizes[0]) + " images of " +
                                       source.images.string());
  }
  ImageArray array{.file = source.images,
                   .data = images->bytes.data() + images->data_at,
                   .count = images->sizes[0],
                   .height = images->sizes[1],
                   .width = images->sizes[2],
                   .channels = 1,
                   .step = images->sizes[1] * images->sizes[2]};
  array.owner = std::move(images);
  std::vector<int64_t> values(labels.bytes.begin() + static_cast<int64_t>(labels.data_at),
                              labels.bytes.end());
  std::vector<std::string> names = numbered_classes(values, classes, source.labels);
  return std::make_unique<ArrayDataset>(std::move(array), std::move(values), std::move(names));
}

}  // namespace convpass
