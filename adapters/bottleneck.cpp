#include "convpass/adapters/bottleneck.h"

#include <ATen/ATen.h>

#include <optional>

#include "adapters/parts.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

at::Tensor gelu_tanh(const at::Tensor& x) { return at::gelu(x, "tanh"); }

class SequentialBottleneck final : public ListedAdapter {
 public:
  SequentialBottleneck(const BottleneckConfig& config, const Backbone& backbone, uint64_t seed)
      : config_(config), blocks_(static_cast<size_t>(backbone.depth())) {
    at::Generator generator = seeded_generator(seed);
    const auto sites = chosen_sites(config.sites);
    for (int64_t block : chosen_blocks("bottleneck", config.blocks, backbone))
      for (size_t site = 0; site < sites.size(); ++site)
        if (sites[site])
          blocks_[static_cast<size_t>(block)][site] =
              Bottleneck::fresh(backbone.token_dim(block), config.width, generator);
  }

  bool adds(int64_t block, Site site) const override {
    return blocks_.at(static_cast<size_t>(block))[static_cast<size_t>(site)].has_value();
  }
  at::Tensor added(int64_t block, Site site, const at::Tensor&, const at::Tensor& branch,
                   const Pass& pass) const override {
    return blocks_[static_cast<size_t>(block)][static_cast<size_t>(site)]->forward(
        branch, config_.activation == BottleneckActivation::relu ? &at::relu : &gelu_tanh, 1.0,
        config_.dropout, pass);
  }
  /// What was added to the stream, and both sides of the activation.
  int64_t kept_values(int64_t block) const override {
    int64_t kept = 0;
    for (const auto& here : blocks_.at(static_cast<size_t>(block)))
      if (here) kept += here->up_weight.size(0) + 2 * config_.width;
    return kept;
  }

 private:
  void visit(const Each& each) override {
    for (size_t block = 0; block < blocks_.size(); ++block)
      for (Site site : {Site::attn, Site::mlp})
        if (auto& here = blocks_[block][static_cast<size_t>(site)])
          here->visit("blocks." + std::to_string(block) + ".adapter_" + site_name(site) + ".",
                      each);
  }

  BottleneckConfig config_;
  std::vector<std::array<std::optional<Bottleneck>, 2>> blocks_;
};

}  // namespace

void fields(FieldVisitor& visitor, BottleneckConfig& config) {
  visitor.field("width", config.width, "channels of the bottleneck", {.min = 1, .max = 4096});
  visitor.field("sites", config.sites,
                "after what one stands: \"attn\" and \"mlp\" (Houlsby), \"mlp\" alone (Pfeiffer)");
  visitor.choice("activation", config.activation, {"relu", "gelu"},
                 "between the projections: GELU by tanh (Houlsby), ReLU (Pfeiffer)");
  visitor.list_or_word("blocks", config.blocks, "all",
                       "blocks that get them, counted from 0; no graph is built below the lowest",
                       at_least(0));
  visitor.field("dropout", config.dropout, "elementwise dropout before the last projection",
                {.min = 0, .max = 0.99});
}

std::unique_ptr<Adapter> make_bottleneck(const BottleneckConfig& config, const Backbone& backbone,
                                         uint64_t seed) {
  return std::make_unique<SequentialBottleneck>(config, backbone, seed);
}

}  // namespace convpass
