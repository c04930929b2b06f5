#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// RepAdapter (Luo et al. 2023, arXiv 2302.08106; luogen1996/RepAdapter, repadapter.py). The scale
/// is 0.1 to 10 there, chosen for each task.
struct RepAdapterConfig {
  int64_t width = 8;
  int64_t groups = 2;  ///< of the second projection
  double scale = 1.0;
  std::vector<std::string> sites{"attn", "mlp"};  ///< "attn" alone is the authors' "repattn"
  std::vector<int64_t> blocks{};                  ///< empty = all
  double dropout = 0.1;
};
void fields(FieldVisitor& visitor, RepAdapterConfig& config);

/// The normed input n of attention or MLP becomes n + s * B(dropout(A(n))), B grouped. A
/// Xavier-uniform, B and the biases zero: starts as exact zero. Linear, so it merges into qkv and
/// fc1. Names: blocks.i.adapter_{attn,mlp}.conv_A.weight `[width, D, 1]`, conv_B.weight `[D,
/// width / groups, 1]`, and biases. Errors: Error for an unknown block or site, or groups that do
/// not divide width and D.
std::unique_ptr<Adapter> make_repadapter(const RepAdapterConfig& config, const Backbone& backbone,
                                         uint64_t seed);

}  // namespace convpass
