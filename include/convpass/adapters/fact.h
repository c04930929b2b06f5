#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// FacT-TT (Jie & Deng 2023, arXiv 2212.03145; JieShibo/PETL-ViT, FacT/fact_tt.py). Rank (4 to 16)
/// and scale (0.01 to 100) are chosen for each task there.
struct FactConfig {
  int64_t rank = 16;
  double scale = 1.0;
  double dropout = 0.1;
};
void fields(FieldVisitor& visitor, FactConfig& config);

/// The output of q, k, v, proj, fc1, fc2 gets s * V(dropout(T(U x))): U `[rank, D]` and V `[D,
/// rank]` are shared by all layers, T is each layer's own; fc1 and fc2 are taken as hidden / D
/// layers side by side. U and T uniform in +-1/sqrt(in) (torch's default), V zero: starts as exact
/// zero. Linear, so it merges. Names: FacTu.weight, FacTv.weight, blocks.i.attn.{q,k,v,proj}_FacTs.
/// weight, blocks.i.mlp.{fc1,fc2}_FacTs.weight. Errors: Error where the MLP's width is no multiple
/// of D.
std::unique_ptr<Adapter> make_fact(const FactConfig& config, const Backbone& backbone,
                                   uint64_t seed);

}  // namespace convpass
