#include "convpass/adapters/lora.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "adapters/parts.h"
#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"

namespace convpass {
namespace {

/// A part of a dense layer that can have an A and a B of its own.
struct Target {
  const char* word;  // in the recipe
  const char* name;  // in the file
  Layer layer;
  int64_t first;  // of its thirds of the layer's output rows; -1: all rows
};
constexpr Target kTargets[] = {
    {"q", "attn.q", Layer::qkv, 0},         {"k", "attn.k", Layer::qkv, 1},
    {"v", "attn.v", Layer::qkv, 2},         {"qkv", "attn.qkv", Layer::qkv, -1},
    {"proj", "attn.proj", Layer::proj, -1}, {"fc1", "mlp.fc1", Layer::fc1, -1},
    {"fc2", "mlp.fc2", Layer::fc2, -1},
};

struct Pair {
  const Target* target;
  at::Tensor a, b;  // [rank, in], [out, rank]
};

class Lora final : public ListedAdapter {
 public:
  Lora(const LoraConfig& config, const Backbone& backbone, uint64_t seed);

  bool changes_layers(int64_t block) const override {
    return !blocks_.at(static_cast<size_t>(block)).empty();
  }
  at::Tensor after(int64_t block, Layer layer, const at::Tensor& input, at::Tensor output,
                   const Pass& pass) const override;
  int64_t kept_values(int64_t block) const override;
  bool merge_into(Weights& weights) const override;

 private:
  void visit(const Each& each) override;
  std::vector<const Pair*> pairs_of(int64_t block, Layer layer) const;

  LoraConfig config_;
  std::vector<std::vector<Pair>> blocks_;
};

std::vector<const Target*> chosen_targets(const std::vector<std::string>& words) {
  if (words.empty())
    throw Error("adapter.layers: got an empty list, wanted some of q, k, v, qkv, proj, fc1, fc2");
  for (size_t i = 0; i < words.size(); ++i) {
    auto known = [&](const Target& target) { return words[i] == target.word; };
    if (std::none_of(std::begin(kTargets), std::end(kTargets), known))
      throw Error("adapter.layers: got " + json_quote(words[i]) +
                  ", wanted q, k, v, qkv, proj, fc1 or fc2");
    if (std::count(words.begin(), words.end(), words[i]) > 1)
      throw Error("adapter.layers: \"" + words[i] + "\" stands there twice");
  }
  auto has = [&](const char* word) {
    return std::find(words.begin(), words.end(), word) != words.end();
  };
  if (has("qkv") && (has("q") || has("k") || has("v")))
    throw Error("adapter.layers: got \"qkv\" beside q, k or v, wanted the one or the others");
  std::vector<const Target*> chosen;
  for (const Target& target : kTargets)
    if (has(target.word)) chosen.push_back(&target);
  return chosen;
}

Lora::Lora(const LoraConfig& config, const Backbone& backbone, uint64_t seed)
    : config_(config), blocks_(static_cast<size_t>(backbone.depth())) {
  at::Generator generator = seeded_generator(seed);
  const Weights weights = weights_of(backbone);
  for (int64_t block : chosen_blocks("lora", config.blocks, backbone))
    for (const Target* target : chosen_targets(config.layers)) {
      const auto [out, in] = dense_shape(weights, block, target->layer);
      const int64_t rows = target->first < 0 ? out : out / 3;
      blocks_[static_cast<size_t>(block)].push_back(
          {target, torch_uniform({config.rank, in}, in, generator),
           at::zeros({rows, config.rank})});
    }
}

std::vector<const Pair*> Lora::pairs_of(int64_t block, Layer layer) const {
  std::vector<const Pair*> pairs;
  for (const Pair& pair : blocks_.at(static_cast<size_t>(block)))
    if (pair.target->layer == layer) pairs.push_back(&pair);
  return pairs;
}

at::Tensor Lora::after(int64_t block, Layer layer, const at::Tensor& input, at::Tensor output,
                       const Pass& pass) const {
  if (block == kOutside) return output;
  const std::vector<const Pair*> pairs = pairs_of(block, layer);
  if (pairs.empty()) return output;
  // All that reads this input as one product: the As one above the other, the Bs on a diagonal.
  std::vector<at::Tensor> all_a;
  for (const Pair* pair : pairs) all_a.push_back(pair->a);
  at::Tensor a = all_a.size() == 1 ? all_a[0] : at::cat(all_a);  // [R, in]
  at::Tensor b = pairs[0]->b;                                    // [out, R]
  if (pairs[0]->target->first >= 0) {
    const int64_t rows = output.size(-1) / 3, total = a.size(0);
    std::vector<at::Tensor> thirds(3);
    for (size_t i = 0; i < pairs.size(); ++i) {
      const int64_t before = static_cast<int64_t>(i) * config_.rank;
      thirds[static_cast<size_t>(pairs[i]->target->first)] =
          at::constant_pad_nd(pairs[i]->b, {before, total - before - config_.rank});
    }
    for (at::Tensor& third : thirds)
      if (!third.defined()) third = at::zeros({rows, total}, b.options());
    b = at::cat(thirds);
  }
  const at::Tensor z = at::linear(dropout(input, config_.dropout, pass), a.to(input.options()));
  return add_product(output, z, (b * config_.scale()).to(input.options()));
}

int64_t Lora::kept_values(int64_t block) const {
  int64_t kept = 0;
  for (Layer layer : kBlockLayers) {
    const std::vector<const Pair*> pairs = pairs_of(block, layer);
    if (pairs.empty()) continue;
    // The input of the As, with dropout its mask and what is left of it, and the As' output.
    const int64_t in = pairs[0]->a.size(1);
    kept += config_.dropout > 0 ? 2 * in : in;
    kept += static_cast<int64_t>(pairs.size()) * config_.rank;
  }
  return kept;
}

bool Lora::merge_into(Weights& weights) const {
  at::NoGradGuard no_grad;
  for (size_t block = 0; block < blocks_.size(); ++block)
    for (const Pair& pair : blocks_[block]) {
      at::Tensor& weight =
          weights.at(layer_name(static_cast<int64_t>(block), pair.target->layer) + ".weight");
      const at::Tensor change = at::mm(pair.b, pair.a) * config_.scale();
      weight = weight.clone();
      const int64_t rows = change.size(0), first = std::max<int64_t>(pair.target->first, 0) * rows;
      weight.narrow(0, first, rows).add_(change);
    }
  return true;
}

void Lora::visit(const Each& each) {
  for (size_t block = 0; block < blocks_.size(); ++block)
    for (Pair& pair : blocks_[block]) {
      const std::string name = "blocks." + std::to_string(block) + "." + pair.target->name;
      each(name + ".lora_A.weight", pair.a);
      each(name + ".lora_B.weight", pair.b);
    }
}

}  // namespace

double LoraConfig::scale() const {
  const auto r = static_cast<double>(rank);
  return alpha / (rank_stabilized ? std::sqrt(r) : r);
}

void fields(FieldVisitor& visitor, LoraConfig& config) {
  visitor.field("rank", config.rank, "rows of A and columns of B", {.min = 1, .max = 4096});
  visitor.field("alpha", config.alpha, "the factor of B A is alpha / rank");
  visitor.field("rank_stabilized", config.rank_stabilized,
                "alpha / sqrt(rank) instead (PEFT's use_rslora)");
  visitor.field("layers", config.layers,
                "dense layers that get an A and a B: of \"q\", \"k\", \"v\", \"proj\", \"fc1\", "
                "\"fc2\"; \"qkv\" is one pair for the three");
  visitor.list_or_word("blocks", config.blocks, "all",
                       "blocks that get them, counted from 0; no graph is built below the lowest",
                       at_least(0));
  visitor.field("dropout", config.dropout, "elementwise dropout of the input of A",
                {.min = 0, .max = 0.99});
}

std::unique_ptr<Adapter> make_lora(const LoraConfig& config, const Backbone& backbone,
                                   uint64_t seed) {
  return std::make_unique<Lora>(config, backbone, seed);
}

}  // namespace convpass
