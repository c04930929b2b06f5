#include "adapters/parts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "convpass/core/error.h"
#include "convpass/core/json.h"

namespace convpass {
namespace {

/// What adapters call a weight of the backbone.
std::string adapters_name(const Backbone& backbone, const std::string& name) {
  if (name.starts_with("fc_norm.")) return name.substr(3);
  for (int64_t block = 0; block < backbone.depth(); ++block)
    if (const std::string start = backbone.block_name(block); name.starts_with(start))
      return "blocks." + std::to_string(block) + "." + name.substr(start.size());
  return name;
}

}  // namespace

NamedTensors ListedAdapter::parameters() const {
  NamedTensors all;
  const_cast<ListedAdapter*>(this)->visit(
      [&](const std::string& name, at::Tensor& tensor) { all.emplace_back(name, tensor); });
  return all;
}

void ListedAdapter::to(c10::Device device) {
  visit([&](const std::string&, at::Tensor& tensor) {
    tensor = tensor.detach().to(device).set_requires_grad(true);
  });
}

void require_blocks(const std::string& type, const Backbone& backbone) {
  if (backbone.depth() == 0)
    throw Error("adapter.type: got \"" + type + "\", wanted \"none\": " + backbone.describe() +
                " has no blocks of tokens, beside or in which an adapter could stand");
}

void require_one_stage(const std::string& type, const Backbone& backbone, const std::string& why) {
  require_blocks(type, backbone);
  if (backbone.has_stages())
    throw Error("adapter.type: got \"" + type + "\", wanted another for " + backbone.describe() +
                ": " + why);
}

std::vector<int64_t> chosen_blocks(const std::string& type, const std::vector<int64_t>& blocks,
                                   const Backbone& backbone) {
  require_blocks(type, backbone);
  std::vector<int64_t> chosen = blocks;
  if (chosen.empty())
    for (int64_t block = 0; block < backbone.depth(); ++block) chosen.push_back(block);
  std::sort(chosen.begin(), chosen.end());
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (chosen[i] < 0 || chosen[i] >= backbone.depth())
      throw Error("adapter.blocks: got " + std::to_string(chosen[i]) + ", wanted 0 to " +
                  std::to_string(backbone.depth() - 1));
    if (i > 0 && chosen[i - 1] == chosen[i])
      throw Error("adapter.blocks: " + std::to_string(chosen[i]) + " stands there twice");
  }
  return chosen;
}

const char* site_name(Site site) { return site == Site::attn ? "attn" : "mlp"; }

std::array<bool, 2> chosen_sites(const std::vector<std::string>& sites) {
  if (sites.empty()) throw Error("adapter.sites: got an empty list, wanted \"attn\", \"mlp\"");
  std::array<bool, 2> chosen{};
  for (const std::string& name : sites) {
    if (name != "attn" && name != "mlp")
      throw Error("adapter.sites: got " + json_quote(name) + ", wanted \"attn\" or \"mlp\"");
    if (std::exchange(chosen[name == "mlp"], true))
      throw Error("adapter.sites: \"" + name + "\" stands there twice");
  }
  return chosen;
}

std::string layer_name(int64_t block, Layer layer) {
  const std::string start = "blocks." + std::to_string(block) + ".";
  switch (layer) {
    case Layer::patch_embed:
      return "patch_embed.proj";
    case Layer::norm_pre:
      return "norm_pre";
    case Layer::norm1:
      return start + "norm1";
    case Layer::qkv:
      return start + "attn.qkv";
    case Layer::proj:
      return start + "attn.proj";
    case Layer::norm2:
      return start + "norm2";
    case Layer::fc1:
      return start + "mlp.fc1";
    case Layer::fc2:
      return start + "mlp.fc2";
    case Layer::norm:
      return "norm";
  }
  TORCH_CHECK(false, "unknown layer");
}

Weights weights_of(const Backbone& backbone) {
  Weights weights;
  for (auto& [name, tensor] : backbone.parameters())
    weights[adapters_name(backbone, name)] = tensor;
  return weights;
}

Weights weights_for(const Backbone& backbone, const Weights& weights) {
  Weights named;
  for (auto& [name, tensor] : backbone.parameters())
    named[name] = weights.at(adapters_name(backbone, name));
  return named;
}

std::array<int64_t, 2> dense_shape(const Weights& weights, int64_t block, Layer layer) {
  const std::string name = layer_name(block, layer) + ".weight";
  auto found = weights.find(name);
  TORCH_CHECK(found != weights.end() && found->second.dim() == 2, "no dense layer ", name);
  return {found->second.size(0), found->second.size(1)};
}

at::Tensor xavier_uniform(std::vector<int64_t> shape, int64_t fan_in, int64_t fan_out,
                          at::Generator& generator) {
  const double bound = std::sqrt(6.0 / static_cast<double>(fan_in + fan_out));
  return at::empty(shape, at::kFloat).uniform_(-bound, bound, generator);
}

at::Tensor torch_uniform(std::vector<int64_t> shape, int64_t fan_in, at::Generator& generator) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
  return at::empty(shape, at::kFloat).uniform_(-bound, bound, generator);
}

at::Tensor dropout_mask(at::IntArrayRef shape, double rate, const Pass& pass) {
  if (!pass.training() || rate <= 0) return {};
  const double keep = 1.0 - rate;
  return at::empty(shape, at::kFloat).bernoulli_(keep, pass.random).div_(keep);
}

at::Tensor dropout(const at::Tensor& input, double rate, const Pass& pass) {
  const at::Tensor mask = dropout_mask(input.sizes(), rate, pass);
  return mask.defined() ? input * mask.to(input.options()) : input;
}

at::Tensor add_product(const at::Tensor& sum, const at::Tensor& z, const at::Tensor& weight) {
  const int64_t out = weight.size(0);
  return at::addmm(sum.reshape({-1, out}), z.reshape({-1, weight.size(1)}), weight.t())
      .view(sum.sizes());
}

Bottleneck Bottleneck::fresh(int64_t dim, int64_t width, at::Generator& generator) {
  return {torch_uniform({width, dim}, dim, generator), at::zeros({width}), at::zeros({dim, width}),
          at::zeros({dim})};
}

at::Tensor Bottleneck::forward(const at::Tensor& x, at::Tensor (*activation)(const at::Tensor&),
                               double scale, double dropout_rate, const Pass& pass) const {
  auto cast = [&](const at::Tensor& parameter) { return parameter.to(x.options()); };
  at::Tensor z = activation(at::linear(x, cast(down_weight), cast(down_bias)));  // [B, N, h]
  z = dropout(z, dropout_rate, pass);
  // The constant scale goes into the small weight instead of over the large result.
  return at::linear(z, cast(up_weight * scale), cast(up_bias * scale));
}

void Bottleneck::visit(const std::string& prefix,
                       const std::function<void(const std::string&, at::Tensor&)>& each) {
  each(prefix + "down_proj.weight", down_weight);
  each(prefix + "down_proj.bias", down_bias);
  each(prefix + "up_proj.weight", up_weight);
  each(prefix + "up_proj.bias", up_bias);
}

}  // namespace convpass
