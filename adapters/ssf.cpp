#include "convpass/adapters/ssf.h"

#include <ATen/ATen.h>

#include "adapters/parts.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

/// What stands before and after "scale" or "shift" in the authors' name.
struct SsfName {
  std::string start, end;
};

SsfName ssf_name(int64_t block, Layer layer) {
  const std::string start = "blocks." + std::to_string(block) + ".";
  switch (layer) {
    case Layer::patch_embed:
      return {"patch_embed.ssf_", "_1"};
    case Layer::norm_pre:
      return {"patch_embed.ssf_", "_2"};
    case Layer::norm1:
      return {start + "ssf_", "_1"};
    case Layer::norm2:
      return {start + "ssf_", "_2"};
    case Layer::qkv:
      return {start + "attn.ssf_", "_1"};
    case Layer::proj:
      return {start + "attn.ssf_", "_2"};
    case Layer::fc1:
      return {start + "mlp.ssf_", "_1"};
    case Layer::fc2:
      return {start + "mlp.ssf_", "_2"};
    case Layer::norm:
      return {"ssf_", "_1"};
  }
  TORCH_CHECK(false, "unknown layer");
}

class Ssf final : public ListedAdapter {
 public:
  Ssf(const Backbone& backbone, uint64_t seed) {
    require_one_stage("ssf", backbone, "the layers that merge its patches are out of reach");
    at::Generator generator = seeded_generator(seed);
    const Weights weights = weights_of(backbone);
    auto add = [&](int64_t block, Layer layer) {
      auto found = weights.find(layer_name(block, layer) + ".weight");
      if (found == weights.end()) return;  // norm_pre, which most have not
      const int64_t size = found->second.size(0);
      at::Tensor scale = at::empty({size}, at::kFloat).normal_(1, kStd, generator);
      at::Tensor shift = at::empty({size}, at::kFloat).normal_(0, kStd, generator);
      places_.push_back({block, layer, std::move(scale), std::move(shift)});
    };
    add(kOutside, Layer::patch_embed);
    add(kOutside, Layer::norm_pre);
    for (int64_t block = 0; block < backbone.depth(); ++block)
      for (Layer layer : kBlockLayers) add(block, layer);
    add(kOutside, Layer::norm);
    for (size_t i = 0; i < places_.size(); ++i) index_[{places_[i].block, places_[i].layer}] = i;
  }

  bool changes_layers(int64_t) const override { return true; }

  at::Tensor after(int64_t block, Layer layer, const at::Tensor&, at::Tensor output,
                   const Pass&) const override {
    const Place& place = places_[index_.at({block, layer})];
    return at::addcmul(place.shift.to(output.options()), output, place.scale.to(output.options()));
  }

  /// The outputs of the layers as they were before scale and shift.
  int64_t kept_values(int64_t block) const override {
    int64_t kept = 0;
    for (Layer layer : kBlockLayers) kept += places_[index_.at({block, layer})].scale.size(0);
    return kept;
  }

  bool merge_into(Weights& weights) const override {
    for (const Place& place : places_)
      if (weights.count(layer_name(place.block, place.layer) + ".bias") == 0) return false;
    at::NoGradGuard no_grad;
    for (const Place& place : places_) {
      const std::string name = layer_name(place.block, place.layer);
      at::Tensor &weight = weights.at(name + ".weight"), &bias = weights.at(name + ".bias");
      std::vector<int64_t> rows(static_cast<size_t>(weight.dim()), 1);
      rows[0] = -1;
      weight = weight * place.scale.view(rows);
      bias = bias * place.scale + place.shift;
    }
    return true;
  }

 private:
  static constexpr double kStd = 0.02;
  struct Place {
    int64_t block;
    Layer layer;
    at::Tensor scale, shift;
  };

  void visit(const Each& each) override {
    for (Place& place : places_) {
      const SsfName name = ssf_name(place.block, place.layer);
      each(name.start + "scale" + name.end, place.scale);
      each(name.start + "shift" + name.end, place.shift);
    }
  }

  std::vector<Place> places_;
  std::map<std::pair<int64_t, Layer>, size_t> index_;
};

}  // namespace

void fields(FieldVisitor&, SsfConfig&) {}

std::unique_ptr<Adapter> make_ssf(const SsfConfig&, const Backbone& backbone, uint64_t seed) {
  return std::make_unique<Ssf>(backbone, seed);
}

}  // namespace convpass
