#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119; kmnp/vpt, src/models/vit_prompt/vit.py,
/// location "prepend", no projection). The authors choose the number for each task, from 1 to 200;
/// 50 lies in the middle (their configuration alone says 5).
struct VptConfig {
  int64_t tokens = 50;
  bool deep = true;    ///< fresh prompts in each block, else (shallow) in the first alone
  double dropout = 0;  ///< of the prompts
};
void fields(FieldVisitor& visitor, VptConfig& config);

/// Puts prompts between the class token and the patches; deep: those of a block replace what the
/// block below made of its own. They are drawn uniformly in +-sqrt(6 / (3 patch^2 + D)). Names:
/// prompt_embeddings `[1, P, D]`, deep_prompt_embeddings `[blocks - 1, P, D]`.
std::unique_ptr<Adapter> make_vpt(const VptConfig& config, const Backbone& backbone, uint64_t seed);

}  // namespace convpass
