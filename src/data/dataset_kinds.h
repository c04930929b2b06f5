#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/rng.h"
#include "convpass/data/dataset.h"

namespace convpass {

/// Images that lie in files of their own.
class FileDataset : public Dataset {
 public:
  FileDataset(std::vector<std::filesystem::path> files, std::vector<int64_t> labels,
              std::vector<std::string> classes, const DecodeOptions& decode);
  std::string name(int64_t index) const override;
  Image image(int64_t index) const override;
  void keep(const std::vector<int64_t>& indices) override;

 private:
  std::vector<std::filesystem::path> files_;
  DecodeOptions decode_;
};

/// Equally sized 8-bit images one behind the other in memory.
struct ImageArray {
  std::filesystem::path file;  ///< for messages
  std::string part = {};       ///< of a file that holds several arrays
  std::shared_ptr<const void> owner = {};
  const uint8_t* data = nullptr;
  int64_t count = 0, height = 0, width = 0;
  int64_t channels = 1;  ///< 1 or 3
  bool planar = false;   ///< [3, H, W] instead of [H, W, 3]
  int64_t step = 0;      ///< bytes from one image to the next
};

class ArrayDataset : public Dataset {
 public:
  ArrayDataset(ImageArray array, std::vector<int64_t> labels, std::vector<std::string> classes);
  std::string name(int64_t index) const override;
  Image image(int64_t index) const override;
  bool in_memory() const override { return true; }
  void keep(const std::vector<int64_t>& indices) override;

 private:
  ImageArray array_;
  std::vector<int64_t> positions_;
};

/// The positions of each class's images, by label.
std::vector<std::vector<int64_t>> members_by_class(const Dataset& dataset);
/// The `count` of `indices` with the smallest random_key(seed, 0, index, purpose), in ascending
/// order.
std::vector<int64_t> choose(const std::vector<int64_t>& indices, int64_t count, int64_t seed,
                            Purpose purpose);

/// "0".."K-1": K = `classes`, or one more than the largest label when that is 0. Errors: FileError
/// about `file` when a label does not lie in 0..K-1.
std::vector<std::string> numbered_classes(const std::vector<int64_t>& labels, int64_t classes,
                                          const std::filesystem::path& file);
/// "0" to "count - 1".
std::vector<std::string> numbers(int64_t count);
/// One past the largest label that is allowed.
int64_t label_end(int64_t classes);

std::unique_ptr<Dataset> open_source(const FolderSource& source, const DecodeOptions& decode,
                                     int64_t classes);
std::unique_ptr<Dataset> open_source(const ListSource& source, const DecodeOptions& decode,
                                     int64_t classes);
std::unique_ptr<Dataset> open_source(const IdxSource& source, const DecodeOptions& decode,
                                     int64_t classes);
std::unique_ptr<Dataset> open_source(const CifarSource& source, const DecodeOptions& decode,
                                     int64_t classes);
std::unique_ptr<Dataset> open_source(const NpzSource& source, const DecodeOptions& decode,
                                     int64_t classes);
std::unique_ptr<Dataset> open_source(const ImagesSource& source, const DecodeOptions& decode,
                                     int64_t classes);
/// Never called: hold_out() takes such a part from the set that it belongs to.
std::unique_ptr<Dataset> open_source(const HeldOutSource& source, const DecodeOptions& decode,
                                     int64_t classes);

}  // namespace convpass
