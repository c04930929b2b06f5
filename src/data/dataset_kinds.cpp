#include "src/data/dataset_kinds.h"

#include <algorithm>
#include <utility>

#include "convpass/core/error.h"

namespace convpass {
namespace {

template <class T>
void select(std::vector<T>& values, const std::vector<int64_t>& indices) {
  std::vector<T> kept;
  kept.reserve(indices.size());
  for (int64_t index : indices) kept.push_back(values[static_cast<size_t>(index)]);
  values = std::move(kept);
}

}  // namespace

FileDataset::FileDataset(std::vector<std::filesystem::path> files, std::vector<int64_t> labels,
                         std::vector<std::string> classes, const DecodeOptions& decode)
    : files_(std::move(files)), decode_(decode) {
  labels_ = std::move(labels);
  classes_ = std::move(classes);
}

std::string FileDataset::name(int64_t index) const {
  return files_[static_cast<size_t>(index)].string();
}

Image FileDataset::image(int64_t index) const {
  return read_image(files_[static_cast<size_t>(index)], decode_);
}

void FileDataset::keep(const std::vector<int64_t>& indices) {
  select(files_, indices);
  select(labels_, indices);
}

ArrayDataset::ArrayDataset(ImageArray array, std::vector<int64_t> labels,
                           std::vector<std::string> classes)
    : array_(std::move(array)) {
  labels_ = std::move(labels);
  classes_ = std::move(classes);
  for (int64_t i = 0; i < array_.count; ++i) positions_.push_back(i);
}

std::string ArrayDataset::name(int64_t index) const {
  return array_.file.string() + (array_.part.empty() ? "" : "#" + array_.part) + "#" +
         std::to_string(positions_[static_cast<size_t>(index)]);
}

Image ArrayDataset::image(int64_t index) const {
  const int64_t pixels = array_.height * array_.width;
  const uint8_t* from = array_.data + positions_[static_cast<size_t>(index)] * array_.step;
  Image image{array_.height, array_.width, {}};
  image.pixels.resize(static_cast<size_t>(pixels * 3));
  const int64_t pixel_step = array_.channels == 3 && !array_.planar ? 3 : 1;
  const int64_t channel_step = array_.channels == 1 ? 0 : array_.planar ? pixels : 1;
  uint8_t* to = image.pixels.data();
  for (int64_t i = 0; i < pixels; ++i) {
    for (int64_t c = 0; c < 3; ++c) *to++ = from[i * pixel_step + c * channel_step];
  }
  return image;
}

void ArrayDataset::keep(const std::vector<int64_t>& indices) {
  select(positions_, indices);
  select(labels_, indices);
}

int64_t label_end(int64_t classes) {
  // Without a number of classes, a damaged label must not make a million class names.
  constexpr int64_t kMostClasses = int64_t{1} << 20;
  return classes > 0 ? classes : kMostClasses;
}

std::vector<std::string> numbered_classes(const std::vector<int64_t>& labels, int64_t classes,
                                          const std::filesystem::path& file) {
  int64_t largest = -1;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < 0 || labels[i] >= label_end(classes)) {
      throw FileError(file, "sample " + std::to_string(i) + ": got label " +
                                std::to_string(labels[i]) + ", wanted 0 to " +
                                std::to_string(label_end(classes) - 1));
    }
    largest = std::max(largest, labels[i]);
  }
  return numbers(classes > 0 ? classes : largest + 1);
}

std::vector<std::string> numbers(int64_t count) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i) names.push_back(std::to_string(i));
  return names;
}

}  // namespace convpass
