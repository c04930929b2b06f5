#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

std::string shape(const at::Tensor& tensor) {
  std::string text = std::string(c10::toString(tensor.scalar_type())) + " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + "]";
}

const at::Tensor& member(const TensorMap& map, const std::string& name, const NpzSource& source) {
  if (map.has(name)) return map.at(name);
  std::string found;
  for (const auto& [key, tensor] : map.tensors) {
    if (found.size() < 200) found += (found.empty() ? "" : ", ") + key;
  }
  throw FileError(source.path, "npz: no array \"" + name + "\", got: " + found);
}

}  // namespace

std::unique_ptr<Dataset> open_source(const NpzSource& source, const DecodeOptions&,
                                     int64_t classes) {
  const TensorMap map = load_tensors(source.path);
  if (map.format != "npz") {
    throw FileError(source.path, "got a file of the kind " + map.format + ", wanted npz");
  }
  const at::Tensor& images = member(map, source.images, source);
  const at::Tensor& labels = member(map, source.labels, source);
  const bool grey = images.dim() == 3;
  if (images.scalar_type() != at::kByte || !(grey || (images.dim() == 4 && images.size(3) == 3)) ||
      images.numel() == 0) {
    throw FileError(source.path, "npz: \"" + source.images + "\" is " + shape(images) +
                                     ", wanted Byte [N, H, W] or [N, H, W, 3]");
  }
  // Some collections (MedMNIST) keep labels as a column.
  if (!at::isIntegralType(labels.scalar_type(), /*includeBool=*/false) ||
      labels.numel() != images.size(0) || labels.dim() < 1 || labels.size(0) != images.size(0)) {
    throw FileError(source.path, "npz: \"" + source.labels + "\" is " + shape(labels) +
                                     ", wanted whole numbers [" + std::to_string(images.size(0)) +
                                     "]");
  }
  const at::Tensor numbers = labels.to(at::kLong).contiguous();
  std::vector<int64_t> values(numbers.const_data_ptr<int64_t>(),
                              numbers.const_data_ptr<int64_t>() + numbers.numel());
  auto owner = std::make_shared<at::Tensor>(images.contiguous());
  ImageArray array{.file = source.path,
                   .part = source.images,
                   .data = owner->const_data_ptr<uint8_t>(),
                   .count = images.size(0),
                   .height = images.size(1),
                   .width = images.size(2),
                   .channels = grey ? 1 : 3,
                   .step = images.size(1) * images.size(2) * (grey ? 1 : 3)};
  array.owner = std::move(owner);
  std::vector<std::string> names = numbered_classes(values, classes, source.path);
  return std::make_unique<ArrayDataset>(std::move(array), std::move(values), std::move(names));
}

}  // namespace convpass
