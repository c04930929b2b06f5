#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>

#include "convpass/core/file.h"
#include "convpass/core/tensor_map.h"
#include "src/core/zip.h"

// The readers behind load_tensors, which has found the kind from the first bytes.
namespace convpass {

TensorMap load_safetensors(const std::filesystem::path& file,
                           std::shared_ptr<const MappedFile> mapped);
/// `text` is the index; its shards lie in the folder of `file`.
TensorMap load_sharded_safetensors(const std::filesystem::path& file,
                                   std::span<const uint8_t> text);
TensorMap load_npz(ZipReader& zip);
TensorMap load_pytorch(ZipReader& zip);

/// Number of bytes of a tensor; nothing when a dimension is negative or the product overflows.
std::optional<uint64_t> bytes_of(std::span<const int64_t> shape, c10::ScalarType dtype);

/// Makes every byte of a bool tensor 0 or 1: C++ allows no other, a file may hold any.
void normalise_bools(void* data, size_t size);

}  // namespace convpass
