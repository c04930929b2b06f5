#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): the output of a dense layer gets
/// s * B A x, s = alpha / rank. Defaults and scaling are those of PEFT 0.21 (LoraConfig,
/// tuners/lora/layer.py); query and value are the paper's choice.
struct LoraConfig {
  int64_t rank = 8;
  double alpha = 8;
  bool rank_stabilized = false;  ///< s = alpha / sqrt(rank): PEFT's use_rslora, arXiv 2312.03732
  std::vector<std::string> layers{"q", "v"};  ///< of q, k, v, qkv, proj, fc1, fc2
  std::vector<int64_t> blocks{};              ///< empty = all
  double dropout = 0;                         ///< of the input of A

  double scale() const;
};
void fields(FieldVisitor& visitor, LoraConfig& config);

/// A Kaiming-uniform with a = sqrt(5), B zero: starts as exact zero. "qkv" is one A and one B for
/// the three together, as PEFT has it for timm's fused layer. Names: blocks.i.attn.q.lora_A.weight
/// `[rank, in]`, lora_B.weight `[out, rank]`. Errors: Error for a block or layer that is unknown,
/// stands twice or (qkv) beside its parts.
std::unique_ptr<Adapter> make_lora(const LoraConfig& config, const Backbone& backbone,
                                   uint64_t seed);

}  // namespace convpass
