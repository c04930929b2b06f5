#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// Scaling and shifting features (Lian et al. 2022, arXiv 2210.08823; dongzelian/SSF,
/// models/vision_transformer.py).
struct SsfConfig {};
void fields(FieldVisitor& visitor, SsfConfig& config);

/// y becomes y * scale + shift after the patch embedding, every norm and every dense layer. Scales
/// are drawn from N(1, 0.02), shifts from N(0, 0.02), as in the authors' code: a fresh one changes
/// the features. Merges into the layers. Names: patch_embed.ssf_scale_1, blocks.i.ssf_scale_{1,2}
/// (norms), blocks.i.attn.ssf_scale_{1,2} (qkv, proj), blocks.i.mlp.ssf_scale_{1,2} (fc1, fc2),
/// ssf_scale_1 (last norm), and ssf_shift_*; CLIP's norm before the blocks is
/// patch_embed.ssf_scale_2.
std::unique_ptr<Adapter> make_ssf(const SsfConfig& config, const Backbone& backbone, uint64_t seed);

}  // namespace convpass
