#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "src/core/formats.h"
#include "src/core/npy.h"
#include "src/core/printable.h"

namespace convpass {
namespace {

constexpr std::string_view kSuffix = ".npy";
constexpr uint32_t kLongestHeader = 1 << 20;

/// Reads magic, version, length and dictionary.
NpyHeader read_header(ZipEntryReader& entry) {
  uint8_t start[8];
  entry.read(start, sizeof start);
  if (std::memcmp(start, "\x93NUMPY", 6) != 0) throw std::invalid_argument("is not a NumPy array");
  const int version = start[6];
  if (version < 1 || version > 3) {
    throw std::invalid_argument("version " + std::to_string(version) +
                                " of the format, wanted 1 to 3");
  }
  uint8_t length_bytes[4] = {};
  entry.read(length_bytes, version == 1 ? 2 : 4);
  uint32_t length = 0;
  for (int i = 0; i < 4; ++i) length |= uint32_t{length_bytes[i]} << (8 * i);
  if (length > kLongestHeader || length > entry.left()) {
    throw std::invalid_argument("header claims " + std::to_string(length) +
                                " bytes, the member has " + std::to_string(entry.left()) + " left");
  }
  std::string text(length, '\0');
  entry.read(text.data(), length);
  return parse_npy_header(text);
}

void swap_bytes(at::Tensor& tensor) {
  auto* bytes = static_cast<uint8_t*>(tensor.mutable_data_ptr());
  const auto width = static_cast<size_t>(tensor.element_size());
  for (size_t i = 0; i < tensor.nbytes(); i += width) std::reverse(bytes + i, bytes + i + width);
}

at::Tensor read_array(ZipEntryReader& entry) {
  NpyHeader header = read_header(entry);
  const auto wanted = bytes_of(header.shape, header.type);
  if (!wanted) throw std::invalid_argument("the shape is too large");
  if (*wanted != entry.left()) {
    throw std::invalid_argument("got " + std::to_string(entry.left()) + " bytes of data, wanted " +
                                std::to_string(*wanted) + " for its shape and type");
  }
  if (header.fortran_order) std::reverse(header.shape.begin(), header.shape.end());
  at::Tensor tensor = at::empty(header.shape, header.type);
  entry.read(tensor.mutable_data_ptr(), *wanted);
  entry.finish();
  if (header.type == c10::kBool) normalise_bools(tensor.mutable_data_ptr(), *wanted);
  if (header.big_endian) swap_bytes(tensor);
  if (header.fortran_order) {
    // The reversed shape in C order is the shape in Fortran order.
    std::vector<int64_t> reversed(header.shape.size());
    for (size_t i = 0; i < reversed.size(); ++i) {
      reversed[i] = static_cast<int64_t>(reversed.size() - 1 - i);
    }
    tensor = tensor.permute(reversed).contiguous();
  }
  return tensor;
}

}  // namespace

TensorMap load_npz(ZipReader& zip) {
  TensorMap map;
  map.format = "npz";
  for (const auto& [member, size] : zip.entries()) {
    auto fail = [&zip, name = member](const std::string& what) {
      throw FileError(zip.file(), "array " + in_quotes(name) + ": " + what);
    };
    if (!member.ends_with(kSuffix)) fail("does not end in .npy, wanted arrays only");
    ZipEntryReader entry(zip, member);
    try {
      map.tensors.emplace(member.substr(0, member.size() - kSuffix.size()), read_array(entry));
    } catch (const std::invalid_argument& error) {
      fail(error.what());
    }
  }
  return map;
}

}  // namespace convpass
