#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <variant>

#include "convpass/core/tensor_map.h"
#include "convpass/models/bit_resnet.h"
#include "convpass/models/script_backbone.h"
#include "convpass/models/swin.h"
#include "convpass/models/tresnet.h"
#include "convpass/models/vit.h"

namespace convpass {

/// The architecture of a backbone of any kind. As JSON its "kind" is "vit", "bit", "tresnet",
/// "torchscript" or "swin"; without one, as adapter files had it before there were others, it is
/// what the variant holds.
using BackboneArchitecture =
    std::variant<VitConfig, BitConfig, TResnetConfig, ScriptConfig, SwinConfig>;
void fields(FieldVisitor& visitor, BackboneArchitecture& architecture);

/// A checkpoint of any kind, brought to timm's names.
struct BackboneCheckpoint {
  std::string format;  ///< naming of the file: "timm", "hf-dinov2", "big-transfer-npz", ...
  BackboneArchitecture architecture;
  TensorMap backbone;  ///< f32, no head
  TensorMap head;      ///< of the file (may be empty)
  Normalization normalization;
  std::string hash;  ///< weights_hash of `backbone`
};

/// Reads any supported file. Errors: FileError, see load_vit_checkpoint, load_bit_checkpoint,
/// load_tresnet_checkpoint and load_swin_checkpoint.
BackboneCheckpoint load_backbone_checkpoint(const std::filesystem::path& file);
/// The same from tensors already read; `file` is for messages and for config.json.
BackboneCheckpoint backbone_checkpoint_from(const TensorMap& tensors,
                                            const std::filesystem::path& file);

/// Leaves the first `blocks` blocks of a ViT and all around them, as if the file held no more; the
/// hash becomes that of what is left. Errors: Error when it is no ViT or has fewer blocks.
void keep_first_blocks(BackboneCheckpoint& checkpoint, int64_t blocks);

/// See vit_variant, bit_variant, tresnet_variant and swin_variant. Errors: Error naming the nearest
/// known variant.
BackboneArchitecture backbone_variant(const std::string& name);
/// "vit_small_patch14", "resnetv2_50x1_bit", ... (see vit_name and the like).
std::string backbone_name(const BackboneArchitecture& architecture);
/// The name and the numbers that a variant stands for, for people.
std::string architecture_text(const BackboneArchitecture& architecture);
/// Whether a checkpoint is of the architecture that a variant names; the resolution may differ, and
/// so may small numerics that follow the source of the weights.
bool same_architecture(const BackboneArchitecture& a, const BackboneArchitecture& b);

}  // namespace convpass
