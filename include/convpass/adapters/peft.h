#pragma once

#include <filesystem>
#include <string>

#include "convpass/adapters/adapter_file.h"
#include "convpass/adapters/lora.h"
#include "convpass/core/tensor_map.h"
#include "convpass/models/vit.h"

// LoRA as PEFT saves it (huggingface/peft, utils/save_and_load.py): a folder with
// adapter_model.safetensors, whose names are base_model.model.MODULE.lora_A.weight, and
// adapter_config.json.
namespace convpass {

/// Whose names the modules of a ViT have.
enum class PeftNaming {
  timm,          ///< blocks.0.attn.qkv; head
  huggingface,   ///< vit.encoder.layer.0.attention.attention.query; classifier (transformers to 4)
  huggingface5,  ///< vit.layers.0.attention.q_proj; classifier (transformers 5)
};

struct PeftLora {
  PeftNaming naming = PeftNaming::timm;
  LoraConfig config;  ///< its blocks are listed, also where they are all
  TensorMap weights;  ///< under our names, float32; the head is head.weight, head.bias
};

/// Whether these are tensors that PEFT saved.
bool is_peft(const TensorMap& map);

/// `file` is the folder, or the weights in it beside which the configuration stands. Errors:
/// FileError for damage, tensors that are no LoRA on a ViT or have no counterpart, blocks that
/// differ, no head, and every field of the configuration that would change what the adapter
/// computes and that we do not have (use_dora, bias, rank_pattern, ...).
PeftLora load_peft(const std::filesystem::path& file);

/// Writes the two files into `folder`, which is made. "qkv" is written to Hugging Face's names as
/// three pairs that share A. Errors: Error for an adapter that is no LoRA, parts of timm's fused
/// layer, or a backbone or head that Hugging Face's ViT does not have.
void save_peft(const std::filesystem::path& folder, const AdapterFile& adapter,
               const VitConfig& backbone, PeftNaming naming);

}  // namespace convpass
