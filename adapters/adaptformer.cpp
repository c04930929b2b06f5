#include "convpass/adapters/adaptformer.h"

#include <ATen/ATen.h>

#include <optional>

#include "adapters/parts.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

class AdaptFormer final : public ListedAdapter {
 public:
  AdaptFormer(const AdaptFormerConfig& config, const Backbone& backbone, uint64_t seed)
      : config_(config), blocks_(static_cast<size_t>(backbone.depth())) {
    at::Generator generator = seeded_generator(seed);
    for (int64_t block : chosen_blocks("adaptformer", config.blocks, backbone))
      blocks_[static_cast<size_t>(block)] =
          Bottleneck::fresh(backbone.token_dim(block), config.width, generator);
  }

  bool adds(int64_t block, Site site) const override {
    return site == Site::mlp && blocks_.at(static_cast<size_t>(block)).has_value();
  }
  at::Tensor added(int64_t block, Site, const at::Tensor& stream, const at::Tensor&,
                   const Pass& pass) const override {
    return blocks_[static_cast<size_t>(block)]->forward(stream, &at::relu, config_.scale,
                                                        config_.dropout, pass);
  }
  /// Both sides of the activation.
  int64_t kept_values(int64_t block) const override {
    return adds(block, Site::mlp) ? 2 * config_.width : 0;
  }

 private:
  void visit(const Each& each) override {
    for (size_t block = 0; block < blocks_.size(); ++block)
      if (blocks_[block])
        blocks_[block]->visit("blocks." + std::to_string(block) + ".adaptmlp.", each);
  }

  AdaptFormerConfig config_;
  std::vector<std::optional<Bottleneck>> blocks_;
};

}  // namespace

void fields(FieldVisitor& visitor, AdaptFormerConfig& config) {
  visitor.field("width", config.width, "channels of the bottleneck", {.min = 1, .max = 4096});
  visitor.field("scale", config.scale, "constant factor of what is added (s in the paper)");
  visitor.list_or_word("blocks", config.blocks, "all",
                       "blocks that get one, counted from 0; no graph is built below the lowest",
                       at_least(0));
  visitor.field("dropout", config.dropout, "elementwise dropout before the last projection",
                {.min = 0, .max = 0.99});
}

std::unique_ptr<Adapter> make_adaptformer(const AdaptFormerConfig& config, const Backbone& backbone,
                                          uint64_t seed) {
  return std::make_unique<AdaptFormer>(config, backbone, seed);
}

}  // namespace convpass
