#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

enum class ConvInit { identity, xavier };

/// Convolutional bypasses (Jie & Deng, 2022, arXiv 2207.07039; PETL-ViT convpass/vtab).
struct ConvpassConfig {
  int64_t width = 8;   ///< h, the bottleneck
  double scale = 1.0;  ///< s, constant
  ConvInit conv_init = ConvInit::identity;
  std::vector<std::string> sites{"attn", "mlp"};
  std::vector<int64_t> blocks{};  ///< empty = all
  double dropout = 0.1;
};

void fields(FieldVisitor& visitor, ConvpassConfig& config);

/// Adds s * up(dropout(gelu(conv(gelu(down(n)))))) beside attention and MLP, gelu = QuickGELU. The
/// 3x3 convolution runs on the grid of patches; each prefix token is a 1x1 image of its own.
class Convpass final : public Adapter {
 public:
  /// Fresh weights drawn from `seed`: `down` Xavier-uniform, `conv` as configured, `up` zero,
  /// biases zero, so that the bypass starts as exact zero. Errors: Error when a block or site does
  /// not exist in the backbone, or twice.
  Convpass(const ConvpassConfig& config, const Backbone& backbone, uint64_t seed);

  bool acts(int64_t block, Site site) const override;
  at::Tensor beside(int64_t block, Site site, const at::Tensor& normed, const TokenLayout& layout,
                    const Pass& pass) const override;
  /// The same in two steps around the branch where can_fuse_bypass() says so, fused with the
  /// additions to the residual stream and to the gradient of `normed`: equal to the plain form to
  /// 1e-6 in float32, and with the same random draws.
  at::Tensor begin_beside(int64_t block, Site site, at::Tensor& normed,
                          const TokenLayout& layout) const override;
  at::Tensor add_beside(int64_t block, Site site, const Residual& residual,
                        const TokenLayout& layout, const Pass& pass) const override;
  /// The official names: blocks.i.adapter_{attn,mlp}.adapter_{down,conv,up}.{weight,bias}.
  NamedTensors parameters() const override;
  void to(c10::Device device) override;

  /// 2 L ((2h+1) D + 9h^2 + 2h) for both sites of L blocks.
  static int64_t parameter_count(const ConvpassConfig& config, int64_t depth, int64_t dim);

 private:
  struct Bypass {
    at::Tensor down_weight, down_bias, conv_weight, conv_bias, up_weight, up_bias;
  };
  at::Tensor dropout(at::IntArrayRef shape, const Pass& pass) const;
  const Bypass* find(int64_t block, Site site) const;

  ConvpassConfig config_;
  std::vector<std::array<std::unique_ptr<Bypass>, 2>> blocks_;  ///< [block][site]
};

}  // namespace convpass
