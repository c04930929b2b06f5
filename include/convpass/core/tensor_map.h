#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <ostream>
#include <string>

namespace convpass {

/// Names to tensors plus string metadata: what every checkpoint format is turned into.
///
/// `format` says what it was read from: "safetensors", "npz", "pytorch" or "torchscript".
struct TensorMap {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string format;

  bool has(const std::string& name) const { return tensors.count(name) != 0; }
  /// The tensor of that name; the caller has checked that it is there (TORCH_CHECK).
  const at::Tensor& at(const std::string& name) const;
  int64_t parameters() const;  ///< number of elements of all tensors
};

/// Reads a checkpoint; the kind is found from the bytes, not from the name.
///
/// - safetensors, memory-mapped (tensors point into the mapping, which lives as long as they do);
///   also `*.safetensors.index.json`, whose shards lie in the same folder.
/// - `.npz`: stored or deflated members; Fortran order is made contiguous; bfloat16, written as raw
///   2-byte void `|V2`, is reinterpreted.
/// - PyTorch zip files (`.pt`, `.pth`, `.bin`), also whole modules and TorchScript archives, whose
///   attributes become dotted names. The pickle is read by a reader that knows tensors and
///   containers and nothing else: no code runs. Wrappers `model`, `state_dict`, `teacher`,
///   `model_state` are unwrapped, one in another too, when what they hold is a dictionary of
///   tensors; what stands beside tensors and is none is ignored. A prefix `module.` or `backbone.`
///   of all names is taken off. Tensors keep the strides of the file and may share a storage.
///
/// Types: f32, f16, bf16, f64, signed and unsigned integers up to 64 bits, bool; kept as in the
/// file.
///
/// Errors: FileError for whatever is missing, damaged, hostile (lengths past the end of the file,
/// shapes whose product overflows, overlapping or unnamed data) or of a kind that is not read.
TensorMap load_tensors(const std::filesystem::path& file);

/// Writes safetensors: appears whole or not at all (written aside, synced, renamed). Tensors are
/// made contiguous and moved to the CPU. The header is in the order of the names, the data in that
/// of the element sizes (wide first, so that every tensor is aligned) and names: equal maps, equal
/// bytes.
///
/// Errors: FileError when it cannot be written, a name is not UTF-8, or one is `__metadata__`.
void save_safetensors(const std::filesystem::path& file, const TensorMap& map);

/// A matrix of bytes that is too large to be held.
struct ByteRows {
  std::string name;
  int64_t rows = 0, row_bytes = 0;
  std::map<std::string, std::string> metadata;
};
/// Writes safetensors with one tensor of uint8 [rows, row_bytes], whose data `write` streams: all
/// of it, or throws. Atomic like save_safetensors. Errors: FileError.
void save_safetensors_rows(const std::filesystem::path& file, const ByteRows& shape,
                           const std::function<void(std::ostream&)>& write);

/// Writes a flat dictionary name -> tensor as a PyTorch zip file, which `torch.load` reads back
/// (weights_only=True). Atomic and reproducible like save_safetensors; it has no place for
/// metadata.
void save_pytorch(const std::filesystem::path& file, const TensorMap& map);

}  // namespace convpass
