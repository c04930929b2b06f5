#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

enum class BottleneckActivation { relu, gelu };

/// Sequential bottleneck adapter. At both sites it is that of Houlsby et al. 2019 (arXiv 1902.00751
/// section 2.1; google-research/adapter-bert, modeling.py feedforward_adapter: width 64, GELU by
/// tanh); after the MLP alone that of Pfeiffer et al. 2020 (arXiv 2005.00247), with ReLU.
struct BottleneckConfig {
  int64_t width = 64;
  std::vector<std::string> sites{"attn", "mlp"};
  BottleneckActivation activation = BottleneckActivation::gelu;
  std::vector<int64_t> blocks{};  ///< empty = all
  double dropout = 0;
};
void fields(FieldVisitor& visitor, BottleneckConfig& config);

/// The output b of attention or MLP becomes b + up(dropout(act(down(b)))) before it is added to the
/// residual stream. `down` is Kaiming-uniform and `up` zero, so that it starts as exact zero; the
/// original draws both from a normal of 1e-3, so starts near the identity, and trains norms too.
/// Names: blocks.i.adapter_{attn,mlp}.{down,up}_proj.{weight,bias}. Errors: Error for an unknown
/// block or site.
std::unique_ptr<Adapter> make_bottleneck(const BottleneckConfig& config, const Backbone& backbone,
                                         uint64_t seed);

}  // namespace convpass
