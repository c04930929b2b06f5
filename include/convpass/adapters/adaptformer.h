#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// AdaptFormer (Chen et al. 2022, arXiv 2205.13535; ShoufaChen/AdaptFormer, models/adapter.py and
/// models/custom_modules.py, with the options of main_image.py).
struct AdaptFormerConfig {
  int64_t width = 64;
  double scale = 0.1;
  std::vector<int64_t> blocks{};  ///< empty = all
  double dropout = 0.1;
};
void fields(FieldVisitor& visitor, AdaptFormerConfig& config);

/// Adds s * up(dropout(relu(down(x)))) beside the MLP, x = the residual stream before the MLP's
/// norm; stochastic depth leaves it alone, as in the authors' code. `down` Kaiming-uniform with a =
/// sqrt(5), `up` and the biases zero: starts as exact zero. Names:
/// blocks.i.adaptmlp.{down,up}_proj. {weight,bias}. Errors: Error for an unknown block.
std::unique_ptr<Adapter> make_adaptformer(const AdaptFormerConfig& config, const Backbone& backbone,
                                          uint64_t seed);

}  // namespace convpass
