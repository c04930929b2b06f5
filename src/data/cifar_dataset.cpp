#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSide = 32;
constexpr int64_t kPixels = kSide * kSide * 3;

struct Layout {
  std::vector<fs::path> files;
  int64_t label_bytes = 1;  // the label is the last of them; CIFAR-100 puts the coarse one first
  int64_t classes = 10;
  const char* names = "batches.meta.txt";
};

Layout find_layout(const CifarSource& source) {
  if (source.split != "train" && source.split != "test") {
    throw FileError(source.path,
                    "cifar: got split \"" + source.split + "\", wanted \"train\" or \"test\"");
  }
  const bool train = source.split == "train";
  Layout layout;
  for (int i = 1; train && fs::exists(source.path / ("data_batch_" + std::to_string(i) + ".bin"));
       ++i) {
    layout.files.push_back(source.path / ("data_batch_" + std::to_string(i) + ".bin"));
  }
  if (!train && fs::exists(source.path / "test_batch.bin")) {
    layout.files.push_back(source.path / "test_batch.bin");
  }
  if (!layout.files.empty()) return layout;
  const fs::path fine = source.path / (source.split + ".bin");
  if (!fs::exists(fine)) {
    throw FileError(source.path, std::string("cifar: no ") +
                                     (train ? "data_batch_1.bin" : "test_batch.bin") +
                                     " (CIFAR-10) and no " + source.split + ".bin (CIFAR-100)");
  }
  return {{fine}, 2, 100, "fine_label_names.txt"};
}

// The names that come with the data set, one a line; numbers when the file is missing or has too
// few.
std::vector<std::string> class_names(const fs::path& file, int64_t classes) {
  std::vector<std::string> names;
  std::error_code ignored;
  if (fs::is_regular_file(file, ignored) && fs::file_size(file, ignored) > 0) {
    std::string name;
    std::vector<uint8_t> bytes = read_file(file);
    bytes.push_back('\n');
    for (uint8_t byte : bytes) {
      if (byte != '\n') {
        if (byte != '\r') name += static_cast<char>(byte);
        continue;
      }
      if (!name.empty()) names.push_back(std::exchange(name, {}));
    }
  }
  if (static_cast<int64_t>(names.size()) == classes) return names;
  return numbered_classes({}, classes, file);
}

}  // namespace

std::unique_ptr<Dataset> open_source(const CifarSource& source, const DecodeOptions&,
                                     int64_t classes) {
  const Layout layout = find_layout(source);
  const int64_t step = layout.label_bytes + kPixels;
  auto bytes = std::make_shared<std::vector<uint8_t>>();
  for (const fs::path& file : layout.files) {
    const std::vector<uint8_t> part = read_file(file);
    if (part.empty() || part.size() % static_cast<size_t>(step) != 0) {
      throw FileError(file, "cifar: got " + std::to_string(part.size()) +
                                " bytes, wanted a multiple of " + std::to_string(step) +
                                " above 0");
    }
    bytes->insert(bytes->end(), part.begin(), part.end());
  }
  ImageArray array{.file = layout.files[0],
                   .data = bytes->data() + layout.label_bytes,
                   .count = static_cast<int64_t>(bytes->size()) / step,
                   .height = kSide,
                   .width = kSide,
                   .channels = 3,
                   .planar = true,
                   .step = step};
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < array.count; ++i) {
    labels.push_back((*bytes)[static_cast<size_t>(i * step + layout.label_bytes - 1)]);
  }
  if (layout.files.size() > 1) array.file = source.path / "data_batch_*.bin";
  const int64_t end = classes > 0 ? std::min(classes, layout.classes) : layout.classes;
  std::vector<std::string> names = numbered_classes(labels, end, array.file);
  if (classes == 0 || classes == layout.classes) {
    names = class_names(source.path / layout.names, layout.classes);
  } else if (classes > layout.classes) {
    names = numbered_classes(labels, classes, array.file);
  }
  array.owner = std::move(bytes);
  return std::make_unique<ArrayDataset>(std::move(array), std::move(labels), std::move(names));
}

}  // namespace convpass
