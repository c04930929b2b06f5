#include "convpass/adapters/bitfit.h"

#include <ATen/ATen.h>

#include "adapters/parts.h"
#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

class BitFit final : public ListedAdapter {
 public:
  explicit BitFit(const Backbone& backbone) : blocks_(static_cast<size_t>(backbone.depth())) {
    require_one_stage("bitfit", backbone, "the layers that merge its patches are out of reach");
    const Weights weights = weights_of(backbone);
    auto add = [&](int64_t block, Layer layer) {
      const std::string name = layer_name(block, layer) + ".bias";
      auto found = weights.find(name);
      if (found == weights.end()) return;
      index_[{block, layer}] = biases_.size();
      if (block != kOutside) blocks_[static_cast<size_t>(block)] = true;
      const at::Tensor frozen = found->second.detach().to(at::kFloat).clone();
      biases_.push_back({name, frozen, frozen.clone()});
    };
    add(kOutside, Layer::patch_embed);
    add(kOutside, Layer::norm_pre);
    for (int64_t block = 0; block < backbone.depth(); ++block)
      for (Layer layer : kBlockLayers) add(block, layer);
    add(kOutside, Layer::norm);
    if (biases_.empty())
      throw Error("adapter.type: got \"bitfit\", wanted another: " + backbone.describe() +
                  " has no biases");
  }

  bool changes_layers(int64_t block) const override {
    return blocks_.at(static_cast<size_t>(block));
  }

  at::Tensor after(int64_t block, Layer layer, const at::Tensor&, at::Tensor output,
                   const Pass&) const override {
    auto found = index_.find({block, layer});
    if (found == index_.end()) return output;
    const Bias& bias = biases_[found->second];
    return output + (bias.trained - bias.frozen).to(output.options());
  }

  bool merge_into(Weights& weights) const override {
    for (const Bias& bias : biases_) weights.at(bias.name) = bias.trained.detach().clone();
    return true;
  }

  void to(c10::Device device) override {
    ListedAdapter::to(device);
    for (Bias& bias : biases_) bias.frozen = bias.frozen.to(device);
  }

 private:
  struct Bias {
    std::string name;
    at::Tensor frozen;  // the backbone's, which its layers add
    at::Tensor trained;
  };

  void visit(const Each& each) override {
    for (Bias& bias : biases_) each(bias.name, bias.trained);
  }

  std::vector<bool> blocks_;
  std::vector<Bias> biases_;
  std::map<std::pair<int64_t, Layer>, size_t> index_;
};

}  // namespace

void fields(FieldVisitor&, BitFitConfig&) {}

std::unique_ptr<Adapter> make_bitfit(const BitFitConfig&, const Backbone& backbone) {
  return std::make_unique<BitFit>(backbone);
}

}  // namespace convpass
