#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "convpass/core/tensor_map.h"
#include "convpass/models/bit_resnet.h"

namespace convpass {

/// The naming conventions of BiT files (spec: checkpoints.md).
enum class BitFormat {
  big_transfer_npz,  ///< resnet/block1/unit01/a/standardized_conv2d/kernel; the distilled files too
  big_vision_npz,    ///< block1/unit01/conv1/kernel; the 2020 JAX port too, whose head is conv_head
  timm,              ///< stages.0.blocks.0.conv1.weight
  big_transfer,      ///< bit_pytorch: body.block1.unit01.conv1.weight
  hf_bit,            ///< transformers BitModel / BitForImageClassification
};

/// A BiT checkpoint brought to the reference naming.
struct BitCheckpoint {
  BitFormat format = BitFormat::timm;
  BitConfig config;
  TensorMap backbone;  ///< timm names, f32, what BitResnet takes, no head
  TensorMap head;      ///< head.weight [K, C], head.bias [K] that were in the file, or none
  Normalization normalization;  ///< mean and std 0.5 unless a file beside it says otherwise
  std::string hash;             ///< of the backbone tensors; the same weights in two formats agree
};

/// Whether some name is one of a BiT file.
bool is_bit_checkpoint(const TensorMap& tensors);

/// Reads any supported BiT file: depth and widths are those of the tensors. The standardisation eps
/// and the pool's padding are those of the code that the names belong to: 1e-10 and zeros
/// (big_transfer), 1e-10 and minus infinity (big_vision), 1e-8 and zeros (timm, Hugging Face). A
/// `config.json` beside it may tell the groups of the norms, else 32: `num_groups`, at its top
/// (Hugging Face) or in `model_args`.
///
/// Errors: FileError naming missing and left-over tensors and those of a wrong shape; for a Hugging
/// Face model that is another network (layer_type, global_padding, hidden_act, ...).
BitCheckpoint load_bit_checkpoint(const std::filesystem::path& file);

/// The same from tensors already read; `file` is for messages and for config.json.
BitCheckpoint bit_checkpoint_from(const TensorMap& tensors, const std::filesystem::path& file);

/// The inverse: tensors named and laid out as `format` wants them.
TensorMap bit_checkpoint_as(const BitCheckpoint& checkpoint, BitFormat format);

std::string_view bit_format_name(BitFormat format);  ///< "big-transfer-npz", "timm", "hf-bit", ...
std::optional<BitFormat> bit_format_named(std::string_view name);

}  // namespace convpass
