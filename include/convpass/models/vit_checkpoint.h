#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "convpass/core/tensor_map.h"
#include "convpass/models/vit.h"

namespace convpass {

/// The naming conventions of ViT files (spec: checkpoints.md).
enum class VitFormat {
  timm,        ///< timm, official DeiT: blocks.i.attn.qkv
  google_npz,  ///< original, AugReg and big_vision Flax files
  hf_vit,      ///< transformers ViTModel / ViTForImageClassification, 4.x and 5.x names
  hf_deit,
  hf_dinov2,  ///< also with registers
  dinov2,     ///< official .pth
  clip,       ///< OpenAI / open_clip image tower
  hf_clip,
};

/// A ViT checkpoint brought to the reference naming.
struct VitCheckpoint {
  VitFormat format = VitFormat::timm;
  VitConfig config;
  TensorMap backbone;  ///< timm names, f32, what Vit takes, no head
  TensorMap head;      ///< head.weight/bias and the like that were in the file (may be empty)
  Normalization normalization;  ///< what the weights were trained with, as far as the format tells
  std::string hash;             ///< of the backbone tensors; the same weights in two formats agree
};

/// Reads any supported ViT file. A `config.json` beside it (Hugging Face, timm) or an
/// `open_clip_config.json` is read for what tensors do not tell: heads, eps, activation. Without it
/// heads are width / 64, or 16 for the widths 1152, 1280, 1408 and 1664.
///
/// QuickGELU cannot be seen in the tensors. timm: only where config.json names a known
/// `..._clip_quickgelu` architecture or says so in model_args.act_layer. CLIP: as
/// open_clip_config.json says; without it only where the file has `input_resolution`, as OpenAI's
/// do. Hugging Face CLIP: unless hidden_act says otherwise.
///
/// Errors: FileError naming missing and left-over tensors, apart from the documented list per
/// format (old heads, mask_token, pre_logits).
VitCheckpoint load_vit_checkpoint(const std::filesystem::path& file);

/// The same from tensors already read; `file` is for messages and for config.json.
VitCheckpoint vit_checkpoint_from(const TensorMap& tensors, const std::filesystem::path& file);

/// The inverse: tensors named and laid out as `format` wants them.
/// Errors: Error when that format cannot hold this architecture.
TensorMap vit_checkpoint_as(const VitCheckpoint& checkpoint, VitFormat format);

std::string_view vit_format_name(VitFormat format);  ///< "timm", "google-npz", "hf-vit", ...
std::optional<VitFormat> vit_format_named(std::string_view name);

/// Hash of names, shapes and f32 values, in the order of the names: 40 hexadecimal digits (SHA-1).
std::string weights_hash(const TensorMap& tensors);

}  // namespace convpass
