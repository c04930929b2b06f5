#include "convpass/adapters/convpass.h"

#include <ATen/ATen.h>

#include "adapters/fused_bypass.h"
#include "adapters/parts.h"
#include "convpass/core/fields.h"
#include "convpass/models/layers.h"

namespace convpass {
namespace {

constexpr int kSites = 2;

/// [h, h, 3, 3]: every tap zero but the centre, which is the identity matrix.
at::Tensor identity_convolution(int64_t width) {
  at::Tensor weight = at::zeros({width, width, 3, 3});
  weight.select(3, 1).select(2, 1).copy_(at::eye(width));
  return weight;
}

}  // namespace

void fields(FieldVisitor& visitor, ConvpassConfig& config) {
  visitor.field("width", config.width, "channels of the bottleneck (h in the paper)",
                {.min = 1, .max = 4096});
  visitor.field("scale", config.scale, "constant factor of each bypass (s in the paper)");
  visitor.choice("conv_init", config.conv_init, {"identity", "xavier"},
                 "initial 3x3 kernel: centre tap = identity, or Xavier-uniform");
  visitor.field("sites", config.sites,
                "beside what a bypass stands: \"attn\", \"mlp\" (\"attn\" alone is Convpass-attn)");
  visitor.list_or_word(
      "blocks", config.blocks, "all",
      "blocks that get bypasses, counted from 0; no graph is built below the lowest", at_least(0));
  visitor.field("dropout", config.dropout, "elementwise dropout before the last projection",
                {.min = 0, .max = 0.99});
}

Convpass::Convpass(const ConvpassConfig& config, const Backbone& backbone, uint64_t seed)
    : config_(config), blocks_(static_cast<size_t>(backbone.depth())) {
  const std::vector<int64_t> chosen = chosen_blocks("convpass", config.blocks, backbone);
  const std::array<bool, kSites> wanted = chosen_sites(config.sites);
  const int64_t width = config.width;
  at::Generator generator = seeded_generator(seed);
  for (int64_t block : chosen) {
    const int64_t dim = backbone.token_dim(block);
    for (size_t site = 0; site < kSites; ++site) {
      if (!wanted[site]) continue;
      auto bypass = std::make_unique<Bypass>();
      bypass->down_weight = xavier_uniform({width, dim}, dim, width, generator);
      bypass->down_bias = at::zeros({width});
      bypass->conv_weight =
          config.conv_init == ConvInit::identity
              ? identity_convolution(width)
              : xavier_uniform({width, width, 3, 3}, 9 * width, 9 * width, generator);
      bypass->conv_bias = at::zeros({width});
      bypass->up_weight = at::zeros({dim, width});
      bypass->up_bias = at::zeros({dim});
      blocks_[static_cast<size_t>(block)][site] = std::move(bypass);
    }
  }
}

const Convpass::Bypass* Convpass::find(int64_t block, Site site) const {
  return blocks_.at(static_cast<size_t>(block))[static_cast<size_t>(site)].get();
}

bool Convpass::acts(int64_t block, Site site) const { return find(block, site) != nullptr; }

at::Tensor Convpass::beside(int64_t block, Site site, const at::Tensor& normed,
                            const TokenLayout& layout, const Pass& pass) const {
  const Bypass& bypass = *find(block, site);
  const int64_t batch = normed.size(0);
  TORCH_CHECK(normed.size(1) == layout.tokens(), "tokens ", normed.sizes(),
              " do not fit the layout");
  auto cast = [&](const at::Tensor& parameter) { return parameter.to(normed.options()); };

  at::Tensor z = quick_gelu(
      at::linear(normed, cast(bypass.down_weight), cast(bypass.down_bias)));  // [B, N, h]
  const at::Tensor kernel = cast(bypass.conv_weight), kernel_bias = cast(bypass.conv_bias);
  std::vector<at::Tensor> parts;
  if (layout.prefix > 0)  // a 1x1 image with zero padding meets the centre tap alone
    parts.push_back(
        at::linear(z.narrow(1, 0, layout.prefix), kernel.select(3, 1).select(2, 1), kernel_bias));
  if (layout.height > 0) {
    at::Tensor image = z.narrow(1, layout.prefix, layout.height * layout.width)
                           .reshape({batch, layout.height, layout.width, config_.width})
                           .permute({0, 3, 1, 2});  // [B, h, H, W], channels last in memory
    parts.push_back(at::conv2d(image, kernel, kernel_bias, 1, 1)
                        .permute({0, 2, 3, 1})
                        .reshape({batch, layout.height * layout.width, config_.width}));
  }
  z = quick_gelu(parts.size() == 1 ? parts[0] : at::cat(parts, 1));  // [B, N, h]
  const at::Tensor mask = dropout(z.sizes(), pass);
  if (mask.defined()) z = z * mask.to(z.options());
  // The constant scale goes into the small weight instead of over the large result.
  return at::linear(z, cast(bypass.up_weight * config_.scale),
                    cast(bypass.up_bias * config_.scale));
}

at::Tensor Convpass::dropout(at::IntArrayRef shape, const Pass& pass) const {
  return dropout_mask(shape, config_.dropout, pass);
}

at::Tensor Convpass::begin_beside(int64_t block, Site site, at::Tensor& normed,
                                  const TokenLayout& layout) const {
  const Bypass& p = *find(block, site);
  if (!can_fuse_bypass(normed) || !p.down_weight.is_cpu()) return {};
  return begin_fused_bypass(normed, {p.down_weight, p.down_bias}, layout);
}

at::Tensor Convpass::add_beside(int64_t block, Site site, const Residual& residual,
                                const TokenLayout& layout, const Pass& pass) const {
  if (!residual.begun.defined()) return Adapter::add_beside(block, site, residual, layout, pass);
  const Bypass& p = *find(block, site);
  BypassDraws draws;
  draws.dropout = dropout({residual.stream.size(0), layout.tokens(), config_.width}, pass);
  const at::Tensor depth = drop_path_factor(residual.stream, residual.drop_rate, pass);
  if (depth.defined()) draws.depth = depth.reshape({-1}).to(at::kFloat).contiguous();
  const BypassEnd end{p.conv_weight, p.conv_bias, p.up_weight, p.up_bias, config_.scale};
  return end_fused_bypass(residual, end, layout, draws);
}

NamedTensors Convpass::parameters() const {
  NamedTensors all;
  for (size_t block = 0; block < blocks_.size(); ++block)
    for (size_t site = 0; site < kSites; ++site) {
      const Bypass* bypass = blocks_[block][site].get();
      if (bypass == nullptr) continue;
      const std::string name = "blocks." + std::to_string(block) + ".adapter_" +
                               site_name(static_cast<Site>(site)) + ".adapter_";
      all.emplace_back(name + "down.weight", bypass->down_weight);
      all.emplace_back(name + "down.bias", bypass->down_bias);
      all.emplace_back(name + "conv.weight", bypass->conv_weight);
      all.emplace_back(name + "conv.bias", bypass->conv_bias);
      all.emplace_back(name + "up.weight", bypass->up_weight);
      all.emplace_back(name + "up.bias", bypass->up_bias);
    }
  return all;
}

int64_t Convpass::parameter_count(const ConvpassConfig& config, int64_t depth, int64_t dim) {
  const int64_t h = config.width;
  const int64_t blocks = config.blocks.empty() ? depth : static_cast<int64_t>(config.blocks.size());
  return static_cast<int64_t>(config.sites.size()) * blocks *
         ((2 * h + 1) * dim + 9 * h * h + 2 * h);
}

void Convpass::to(c10::Device device) {
  for (auto& sites : blocks_)
    for (auto& bypass : sites) {
      if (!bypass) continue;
      for (at::Tensor* tensor : {&bypass->down_weight, &bypass->down_bias, &bypass->conv_weight,
                                 &bypass->conv_bias, &bypass->up_weight, &bypass->up_bias})
        *tensor = tensor->detach().to(device).set_requires_grad(true);
    }
}

}  // namespace convpass
