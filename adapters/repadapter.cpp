#include "convpass/adapters/repadapter.h"

#include <ATen/ATen.h>

#include <optional>

#include "adapters/parts.h"
#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

struct Reparam {
  at::Tensor a_weight, a_bias;  // [h, D, 1], [h]
  at::Tensor b_weight, b_bias;  // [D, h / groups, 1], [D]

  /// The grouped B as one matrix [D, h], zero outside of its groups.
  at::Tensor dense_b(int64_t groups) const {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& part : b_weight.squeeze(2).chunk(groups, 0)) parts.push_back(part);
    return at::block_diag(parts);
  }
};

class RepAdapter final : public ListedAdapter {
 public:
  RepAdapter(const RepAdapterConfig& config, const Backbone& backbone, uint64_t seed)
      : config_(config), blocks_(static_cast<size_t>(backbone.depth())) {
    at::Generator generator = seeded_generator(seed);
    const auto sites = chosen_sites(config.sites);
    const std::vector<int64_t> blocks = chosen_blocks("repadapter", config.blocks, backbone);
    const int64_t width = config.width;
    for (int64_t block : blocks) {
      const int64_t dim = backbone.token_dim(block);
      for (int64_t size : {width, dim})
        if (size % config.groups != 0)
          throw Error("adapter.groups: got " + std::to_string(config.groups) +
                      ", wanted a divisor of the width " + std::to_string(width) +
                      " and of the tokens' " + std::to_string(dim));
      for (size_t site = 0; site < sites.size(); ++site)
        if (sites[site])
          blocks_[static_cast<size_t>(block)][site] =
              Reparam{xavier_uniform({width, dim, 1}, dim, width, generator), at::zeros({width}),
                      at::zeros({dim, width / config.groups, 1}), at::zeros({dim})};
    }
    mergeable_ = !backbone.has_stages();
  }

  bool changes_layers(int64_t block) const override {
    const auto& here = blocks_.at(static_cast<size_t>(block));
    return here[0].has_value() || here[1].has_value();
  }

  at::Tensor after(int64_t block, Layer layer, const at::Tensor&, at::Tensor output,
                   const Pass& pass) const override {
    if (layer != Layer::norm1 && layer != Layer::norm2) return output;
    const auto& here = blocks_.at(static_cast<size_t>(block))[layer == Layer::norm2];
    if (!here) return output;
    auto cast = [&](const at::Tensor& parameter) { return parameter.to(output.options()); };
    at::Tensor z = at::linear(output, cast(here->a_weight.squeeze(2)), cast(here->a_bias));
    z = dropout(z, config_.dropout, pass);  // [B, N, h]
    at::Tensor sum = add_product(output, z, cast(here->dense_b(config_.groups) * config_.scale));
    return sum + cast(here->b_bias * config_.scale);
  }

  /// What A reads and puts out.
  int64_t kept_values(int64_t block) const override {
    int64_t kept = 0;
    for (const auto& here : blocks_.at(static_cast<size_t>(block)))
      if (here) kept += here->a_weight.size(1) + config_.width;
    return kept;
  }

  bool merge_into(Weights& weights) const override {
    if (!mergeable_) return false;
    at::NoGradGuard no_grad;
    for (int pass = 0; pass < 2; ++pass)  // first whether all can be
      for (size_t block = 0; block < blocks_.size(); ++block)
        for (size_t site = 0; site < 2; ++site) {
          const auto& here = blocks_[block][site];
          if (!here) continue;
          const std::string name =
              layer_name(static_cast<int64_t>(block), site == 0 ? Layer::qkv : Layer::fc1);
          if (weights.count(name + ".bias") == 0) return false;
          if (pass == 0) continue;
          at::Tensor &weight = weights.at(name + ".weight"), &bias = weights.at(name + ".bias");
          const at::Tensor b = here->dense_b(config_.groups);
          bias = bias + at::mv(weight, at::mv(b, here->a_bias) + here->b_bias) * config_.scale;
          weight = weight + at::mm(at::mm(weight, b), here->a_weight.squeeze(2)) * config_.scale;
        }
    return true;
  }

 private:
  void visit(const Each& each) override {
    for (size_t block = 0; block < blocks_.size(); ++block)
      for (Site site : {Site::attn, Site::mlp}) {
        auto& here = blocks_[block][static_cast<size_t>(site)];
        if (!here) continue;
        const std::string name =
            "blocks." + std::to_string(block) + ".adapter_" + site_name(site) + ".conv_";
        each(name + "A.weight", here->a_weight);
        each(name + "A.bias", here->a_bias);
        each(name + "B.weight", here->b_weight);
        each(name + "B.bias", here->b_bias);
      }
  }

  RepAdapterConfig config_;
  /// The zeros beyond the grid of a Swin's windows meet qkv, but no adapter before it.
  bool mergeable_ = true;
  std::vector<std::array<std::optional<Reparam>, 2>> blocks_;
};

}  // namespace

void fields(FieldVisitor& visitor, RepAdapterConfig& config) {
  visitor.field("width", config.width, "channels between the projections", {.min = 1, .max = 4096});
  visitor.field("groups", config.groups, "groups of the second projection",
                {.min = 1, .max = 4096});
  visitor.field("scale", config.scale,
                "constant factor (s in the paper, which tries 0.1, 0.5, 1, 5, 10)");
  visitor.field("sites", config.sites,
                "before what one stands: \"attn\", \"mlp\" (\"attn\" alone is RepAttn)");
  visitor.list_or_word("blocks", config.blocks, "all",
                       "blocks that get them, counted from 0; no graph is built below the lowest",
                       at_least(0));
  visitor.field("dropout", config.dropout, "elementwise dropout before the last projection",
                {.min = 0, .max = 0.99});
}

std::unique_ptr<Adapter> make_repadapter(const RepAdapterConfig& config, const Backbone& backbone,
                                         uint64_t seed) {
  return std::make_unique<RepAdapter>(config, backbone, seed);
}

}  // namespace convpass
