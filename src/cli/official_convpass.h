#pragma once

#include <filesystem>

#include "convpass/adapters/convpass.h"
#include "convpass/core/tensor_map.h"

namespace convpass::cli {

/// Whether these are the tensors that the official code saves: `blocks.i.adapter_attn.*` and the
/// head, without any metadata.
bool is_official_convpass(const TensorMap& map);

/// Width, sites and blocks as read off the tensors; scale and dropout, which they do not tell, keep
/// their defaults. Errors: FileError for shapes that are not Convpass, or bypasses that differ from
/// block to block.
ConvpassConfig official_config(const TensorMap& map, const std::filesystem::path& file);

}  // namespace convpass::cli
