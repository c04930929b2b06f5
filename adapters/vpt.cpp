#include "convpass/adapters/vpt.h"

#include <ATen/ATen.h>

#include <cmath>

#include "adapters/parts.h"
#include "convpass/core/fields.h"

namespace convpass {
namespace {

class Vpt final : public ListedAdapter {
 public:
  Vpt(const VptConfig& config, const Backbone& backbone, uint64_t seed) : config_(config) {
    require_one_stage("vpt", backbone, "its windows have no place for prompts");
    at::Generator generator = seeded_generator(seed);
    const int64_t dim = backbone.token_dim(0), above = backbone.depth() - 1;
    const at::Tensor patch = weights_of(backbone).at("patch_embed.proj.weight");  // [D, 3, p, p]
    const double bound = std::sqrt(6.0 / static_cast<double>(patch[0].numel() + dim));
    auto uniform = [&](int64_t count) {
      return at::empty({count, config.tokens, dim}, at::kFloat).uniform_(-bound, bound, generator);
    };
    first_ = uniform(1);
    if (config.deep && above > 0) deep_ = uniform(above);
  }

  int64_t prompts() const override { return config_.tokens; }

  at::Tensor prompt(int64_t block, int64_t batch, const Pass& pass) const override {
    if (block > 0 && !deep_.defined()) return {};
    const at::Tensor here = block == 0 ? first_ : deep_.narrow(0, block - 1, 1);
    return dropout(here.expand({batch, -1, -1}), config_.dropout, pass);
  }

 private:
  void visit(const Each& each) override {
    each("prompt_embeddings", first_);
    if (deep_.defined()) each("deep_prompt_embeddings", deep_);
  }

  VptConfig config_;
  at::Tensor first_, deep_;  // [1, P, D], [depth - 1, P, D]
};

}  // namespace

void fields(FieldVisitor& visitor, VptConfig& config) {
  visitor.field("tokens", config.tokens, "prompts in a block", {.min = 1, .max = 4096});
  visitor.field("deep", config.deep,
                "fresh prompts in every block (VPT-deep), else in the first alone (VPT-shallow)");
  visitor.field("dropout", config.dropout, "elementwise dropout of the prompts",
                {.min = 0, .max = 0.99});
}

std::unique_ptr<Adapter> make_vpt(const VptConfig& config, const Backbone& backbone,
                                  uint64_t seed) {
  return std::make_unique<Vpt>(config, backbone, seed);
}

}  // namespace convpass
