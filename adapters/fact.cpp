#include "convpass/adapters/fact.h"

#include <ATen/ATen.h>

#include "adapters/parts.h"
#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

/// A core T `[out r, in r]` of a layer that is taken as out x in layers of D x D; q, k and v lie
/// one after the other in the output of qkv.
struct Core {
  const char* name;
  Layer layer;
};
constexpr Core kCores[] = {
    {"attn.q_FacTs", Layer::qkv},     {"attn.k_FacTs", Layer::qkv},  {"attn.v_FacTs", Layer::qkv},
    {"attn.proj_FacTs", Layer::proj}, {"mlp.fc1_FacTs", Layer::fc1}, {"mlp.fc2_FacTs", Layer::fc2},
};
constexpr size_t kCount = std::size(kCores);

class Fact final : public ListedAdapter {
 public:
  Fact(const FactConfig& config, const Backbone& backbone, uint64_t seed) : config_(config) {
    require_one_stage("fact", backbone, "its blocks share no width, and so no U and V");
    at::Generator generator = seeded_generator(seed);
    const int64_t dim = backbone.token_dim(0), rank = config.rank;
    const Weights weights = weights_of(backbone);
    u_ = torch_uniform({rank, dim}, dim, generator);
    v_ = at::zeros({dim, rank});
    for (int64_t block = 0; block < backbone.depth(); ++block) {
      auto& here = blocks_.emplace_back();
      for (size_t i = 0; i < kCount; ++i) {
        auto [out, in] = dense_shape(weights, block, kCores[i].layer);
        if (kCores[i].layer == Layer::qkv) out = dim;
        if (out % dim != 0 || in % dim != 0)
          throw Error("adapter.type: got \"fact\", wanted another: the MLP of " +
                      backbone.describe() + " is " + std::to_string(out % dim != 0 ? out : in) +
                      " wide, no multiple of its tokens' " + std::to_string(dim));
        here[i] = torch_uniform({out / dim * rank, in / dim * rank}, in / dim * rank, generator);
      }
    }
  }

  bool changes_layers(int64_t) const override { return true; }

  at::Tensor after(int64_t block, Layer layer, const at::Tensor& input, at::Tensor output,
                   const Pass& pass) const override {
    if (block == kOutside || layer == Layer::norm1 || layer == Layer::norm2) return output;
    auto cast = [&](const at::Tensor& parameter) { return parameter.to(input.options()); };
    const at::Tensor core = cast(core_of(block, layer));
    const int64_t batch = input.size(0), tokens = input.size(1), dim = u_.size(1),
                  rank = config_.rank;
    at::Tensor z = at::linear(input.reshape({batch, tokens, -1, dim}), cast(u_)).flatten(2);
    z = dropout(at::linear(z, core), config_.dropout, pass);  // [B, N, out r]
    at::Tensor sum = add_product(output.reshape({batch, tokens, -1, dim}),
                                 z.reshape({batch, tokens, -1, rank}), cast(v_ * config_.scale));
    return sum.flatten(2);
  }

  /// What U reads, and what it and T put out.
  int64_t kept_values(int64_t block) const override {
    int64_t kept = 0;
    for (Layer layer : {Layer::qkv, Layer::proj, Layer::fc1, Layer::fc2}) {
      const at::Tensor core = core_of(block, layer);
      kept += core.size(0) + core.size(1) + core.size(1) / config_.rank * u_.size(1);
    }
    return kept;
  }

  bool merge_into(Weights& weights) const override {
    at::NoGradGuard no_grad;
    const int64_t dim = u_.size(1), rank = config_.rank;
    for (size_t block = 0; block < blocks_.size(); ++block)
      for (Layer layer : {Layer::qkv, Layer::proj, Layer::fc1, Layer::fc2}) {
        const auto index = static_cast<int64_t>(block);
        const at::Tensor core = core_of(index, layer);
        const int64_t out = core.size(0) / rank, in = core.size(1) / rank;
        // [out, r, in, r] -> V on the left and U on the right of each r x r.
        at::Tensor change = at::matmul(
            at::matmul(v_, core.view({out, rank, in, rank}).transpose(1, 2)), u_);  // out,in,D,D
        at::Tensor& weight = weights.at(layer_name(index, layer) + ".weight");
        weight = weight + change.transpose(1, 2).reshape({out * dim, in * dim}) * config_.scale;
      }
    return true;
  }

 private:
  /// Those of q, k and v one above the other.
  at::Tensor core_of(int64_t block, Layer layer) const {
    std::vector<at::Tensor> cores;
    for (size_t i = 0; i < kCount; ++i)
      if (kCores[i].layer == layer) cores.push_back(blocks_.at(static_cast<size_t>(block))[i]);
    return cores.size() == 1 ? cores[0] : at::cat(cores);
  }

  void visit(const Each& each) override {
    each("FacTu.weight", u_);
    each("FacTv.weight", v_);
    for (size_t block = 0; block < blocks_.size(); ++block)
      for (size_t i = 0; i < kCount; ++i)
        each("blocks." + std::to_string(block) + "." + kCores[i].name + ".weight",
             blocks_[block][i]);
  }

  FactConfig config_;
  at::Tensor u_, v_;  // [r, D], [D, r]
  std::vector<std::array<at::Tensor, kCount>> blocks_;
};

}  // namespace

void fields(FieldVisitor& visitor, FactConfig& config) {
  visitor.field("rank", config.rank, "rank r of the shared U and V", {.min = 1, .max = 4096});
  visitor.field("scale", config.scale,
                "constant factor (s in the paper, which tries 0.01, 0.1, 1, 10, 100)");
  visitor.field("dropout", config.dropout, "elementwise dropout before the last projection",
                {.min = 0, .max = 0.99});
}

std::unique_ptr<Adapter> make_fact(const FactConfig& config, const Backbone& backbone,
                                   uint64_t seed) {
  return std::make_unique<Fact>(config, backbone, seed);
}

}  // namespace convpass
