#include "convpass/core/tensor_map.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cctype>
#include <string_view>

#include "convpass/core/error.h"
#include "src/core/formats.h"
#include "src/core/printable.h"

namespace convpass {
namespace {

struct Signature {
  size_t offset;
  std::string_view bytes;
  const char* says;
};
using namespace std::string_view_literals;

// Kinds that people hand over by mistake, each with the way out.
constexpr Signature kRefused[] = {
    {0, "version https://git-lfs"sv,
     "is a git-lfs pointer, not the weights: run `git lfs pull` to get the file itself"},
    {0, "\x93NUMPY"sv, "is a single .npy array, wanted a checkpoint (.npz holds named arrays)"},
    {0, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."sv,
     "is in PyTorch's legacy format: re-save it with a current torch (torch.load, torch.save)"},
    {257, "ustar"sv,
     "is a tar archive: unpack it, or if torch wrote it, re-save it with a current torch"},
    {0, "\x89HDF\r\n"sv, "is an HDF5 file, which is not read: convert it to safetensors or npz"},
    {0, "\x1f\x8b"sv, "is gzip-compressed: decompress it"},
    {0, "<!DOCTYPE"sv, "is a web page: the download went wrong"},
    {0, "<html"sv, "is a web page: the download went wrong"},
    {0, "\x80"sv, "is a bare Python pickle: re-save it with a current torch (torch.save)"},
};

bool starts_with(std::string_view text, std::string_view what, size_t offset = 0) {
  return text.size() >= offset && text.substr(offset).starts_with(what);
}

/// A JSON text has no zero among its first bytes, the length of a safetensors header always has.
bool looks_like_json(std::string_view text) {
  const auto head = text.substr(0, 8);
  const auto first = text.find_first_not_of(" \t\r\n");
  return head.find('\0') == std::string_view::npos && first != std::string_view::npos &&
         text[first] == '{';
}

TensorMap load_zip(const std::filesystem::path& file) {
  ZipReader zip(file);
  bool arrays = false;
  for (const auto& [name, entry] : zip.entries()) {
    if (name.ends_with("/data.pkl")) return load_pytorch(zip);
    arrays = arrays || name.ends_with(".npy");
  }
  if (arrays) return load_npz(zip);
  throw FileError(file, "is a zip archive of " + std::to_string(zip.entries().size()) +
                            " entries with neither PyTorch's data.pkl nor .npy arrays");
}

}  // namespace

const at::Tensor& TensorMap::at(const std::string& name) const {
  auto found = tensors.find(name);
  TORCH_CHECK(found != tensors.end(), "no tensor called '", name, "'");
  return found->second;
}

int64_t TensorMap::parameters() const {
  int64_t count = 0;
  for (const auto& [name, tensor] : tensors) count += tensor.numel();
  return count;
}

namespace {

TensorMap load_any(const std::filesystem::path& file) {
  auto mapped = MappedFile::open(file);
  auto bytes = mapped->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (starts_with(text, "PK\x03\x04") || starts_with(text, "PK\x05\x06")) return load_zip(file);
  if (looks_like_json(text)) return load_sharded_safetensors(file, bytes);
  if (starts_with(text, "{", 8)) return load_safetensors(file, mapped);
  for (const auto& kind : kRefused) {
    if (starts_with(text, kind.bytes, kind.offset)) throw FileError(file, kind.says);
  }
  throw FileError(file, "is of an unknown kind (it starts with " + in_quotes(text.substr(0, 8)) +
                            "), wanted safetensors, npz or a PyTorch zip file");
}

}  // namespace

TensorMap load_tensors(const std::filesystem::path& file) {
  TensorMap map = load_any(file);
  // Those who read names look for patterns in them, which recurses once a character.
  constexpr size_t kLongestName = 1024;
  for (const auto& [name, tensor] : map.tensors)
    if (name.size() > kLongestName)
      throw FileError(file, "tensor " + in_quotes(name.substr(0, 80)) + "...: a name of " +
                                std::to_string(name.size()) + " characters, wanted at most " +
                                std::to_string(kLongestName));
  return map;
}

std::optional<uint64_t> bytes_of(std::span<const int64_t> shape, c10::ScalarType dtype) {
  // A zero anywhere makes the product zero, but the rest must still be dimensions that can be had.
  uint64_t product = c10::elementSize(dtype);
  bool empty = false;
  for (int64_t size : shape) {
    if (size < 0) return std::nullopt;
    empty = empty || size == 0;
    if (__builtin_mul_overflow(product, std::max<uint64_t>(1, static_cast<uint64_t>(size)),
                               &product) ||
        product > INT64_MAX) {
      return std::nullopt;
    }
  }
  return empty ? 0 : product;
}

void normalise_bools(void* data, size_t size) {
  auto* bytes = static_cast<uint8_t*>(data);
  for (size_t i = 0; i < size; ++i) bytes[i] = bytes[i] != 0;
}

}  // namespace convpass
