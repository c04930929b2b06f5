#pragma once

#include <filesystem>
#include <string>

#include "convpass/core/tensor_map.h"
#include "convpass/models/swin.h"

namespace convpass {

/// The naming conventions of Swin files.
enum class SwinFormat {
  timm,       ///< timm since 0.9: merging stands before its stage, layers.1.downsample
  microsoft,  ///< the authors', and timm's before: behind the stage below, layers.0.downsample
  hf_swin,    ///< transformers SwinModel, SwinForImageClassification
};

/// A Swin checkpoint brought to the reference naming.
struct SwinCheckpoint {
  SwinFormat format = SwinFormat::timm;
  SwinConfig config;
  TensorMap backbone;  ///< timm names, f32, what Swin takes, no head
  TensorMap head;      ///< head.weight [K, D], head.bias [K] that were in the file, or none
  Normalization normalization;  ///< ImageNet's unless a file beside it says otherwise
  std::string hash;             ///< of the backbone tensors
};

/// Whether some name is one of a Swin file.
bool is_swin_checkpoint(const TensorMap& tensors);

/// Reads any of these namings: widths, depths, heads and windows are those of the tensors. The
/// buffers relative_position_index and attn_mask are dropped once their shapes are those of the
/// windows. A `config.json` or `preprocessor_config.json` beside it may tell mean and std.
///
/// Errors: FileError naming missing and left-over tensors and those of a wrong shape or type.
SwinCheckpoint load_swin_checkpoint(const std::filesystem::path& file);

/// The same from tensors already read; `file` is for messages and for the files beside it.
SwinCheckpoint swin_checkpoint_from(const TensorMap& tensors, const std::filesystem::path& file);

/// The inverse, in timm's names; the metadata tells mean and std.
TensorMap swin_checkpoint_as_timm(const SwinCheckpoint& checkpoint);

std::string_view swin_format_name(SwinFormat format);  ///< "timm", "microsoft", "hf-swin"

}  // namespace convpass
