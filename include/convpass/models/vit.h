#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"
#include "convpass/models/layers.h"

namespace convpass {

class FieldVisitor;

enum class Activation { gelu, gelu_tanh, quick_gelu, swiglu };
enum class Pool {
  automatic,
  cls,
  mean,
  cls_and_distillation,  ///< both tokens side by side, `[B, 2 D]`: what DeiT's two heads look at
};

/// The architecture of a plain vision transformer, as read off a checkpoint or a variant's name.
struct VitConfig {
  int64_t width = 768;
  int64_t depth = 12;
  int64_t heads = 12;
  int64_t hidden = 3072;  ///< MLP width; for SwiGLU the width of one half
  int64_t patch = 16;
  int64_t grid_height = 14, grid_width = 14;  ///< patches of the stored position embedding
  bool class_token = true;
  bool distillation_token = false;
  int64_t registers = 0;
  bool prefix_positions = true;  ///< class (and distillation) tokens have rows in pos_embed
  bool layer_scale = false;
  bool pre_norm = false;   ///< CLIP's norm before the blocks
  bool patch_bias = true;  ///< CLIP's patch embedding has none
  bool qkv_bias = true;
  bool pooled_norm = false;  ///< `fc_norm` after pooling in place of `norm` on the tokens
  Activation activation = Activation::gelu;
  Pool pool = Pool::cls;
  double eps = 1e-6;  ///< of every LayerNorm
  PositionResize position_resize = PositionResize::bicubic_antialias;

  /// Tokens before the patches: class, distillation, registers.
  int64_t prefix() const {
    return (class_token ? 1 : 0) + (distillation_token ? 1 : 0) + registers;
  }
  /// Rows of pos_embed before the grid.
  int64_t position_prefix() const {
    return prefix_positions ? (class_token ? 1 : 0) + (distillation_token ? 1 : 0) : 0;
  }
  bool operator==(const VitConfig&) const = default;
};

void fields(FieldVisitor& visitor, VitConfig& config);

/// "vit_small_patch14", "vit_base_patch16", ... for Ti, S, B, L, H, g with any patch size; a name
/// may carry
/// "_reg4" and a trailing size ("_224", "_518": the grid). Errors: Error naming the nearest known
/// variant.
VitConfig vit_variant(const std::string& name);

/// The variant name that fits, or "vit width 32 depth 2 heads 2 patch 4" when none does.
std::string vit_name(const VitConfig& config);

struct VitBlock;

/// Vision transformer (Dosovitskiy et al., 2021) with every prefix token, norm and activation that
/// the supported checkpoints have. Parameter names and layouts are timm's.
class Vit final : public Backbone {
 public:
  struct Options {
    std::array<int64_t, 2> image_size{224, 224};  ///< height, width; multiples of the patch
    Pool pool = Pool::automatic;                  ///< automatic = the config's
    double drop_path = 0.0;  ///< rate of the last block; linear from 0 (DropPath)
  };

  /// Takes the weights (timm names, shapes as in the config; checked, leftovers are an error). f32.
  Vit(const VitConfig& config, const TensorMap& weights, const Options& options);
  ~Vit() override;
  /// Random weights, truncated normal 0.02 as in timm, from `seed`: for benchmarks and tests.
  static TensorMap random_weights(const VitConfig& config, uint64_t seed);

  at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                     const Pass& pass) const override;
  bool has_stem(const Adapter* adapter) const override;
  at::Tensor stem(const at::Tensor& images, const Adapter* adapter) const override;
  at::Tensor after_stem(const at::Tensor& stem, const Adapter* adapter,
                        const Pass& pass) const override;
  /// Tokens after the final norm, `[B, prefix + H W, D]`.
  at::Tensor forward_tokens(const at::Tensor& images, const Adapter* adapter,
                            const Pass& pass) const;

  int64_t feature_dim() const override {
    return (options_.pool == Pool::cls_and_distillation ? 2 : 1) * config_.width;
  }
  int64_t token_dim(int64_t /*block*/) const override { return config_.width; }
  int64_t depth() const override { return config_.depth; }
  int64_t step_values(const Adapter* adapter, bool trainable) const override;
  void set_recomputed(int64_t blocks) override { recomputed_ = blocks; }
  TokenLayout layout() const;
  std::array<int64_t, 2> image_size() const override { return options_.image_size; }
  NamedTensors parameters() const override;
  Size size() const override;
  bool replace_parameters(const std::map<std::string, at::Tensor>& weights) override;
  void to(c10::Device device, Precision precision) override;
  void set_trainable(bool trainable) override;
  void compute_in(Precision precision) override;
  std::string describe() const override;
  const VitConfig& config() const { return config_; }

 private:
  /// `[B, prefix + H W, D]`, what enters the blocks, an adapter's prompts aside.
  at::Tensor embed(const at::Tensor& images, const Adapter* adapter, const Pass& pass) const;
  /// The final norm of tokens or of what was pooled.
  at::Tensor normed(const at::Tensor& x, const Adapter* adapter, const Pass& pass) const;
  /// The lowest block that the adapter touches; the depth where there is none.
  int64_t lowest_touched(const Adapter* adapter) const;
  struct Blocks {
    int64_t begin = 0, end = 0;
    bool prefix_only = false;  ///< the last block of all computes the prefix tokens alone
  };
  /// Tokens after some of the blocks, without an adapter's prompts, before the final norm.
  at::Tensor run_blocks(at::Tensor x, const Blocks& blocks, const Adapter* adapter,
                        const Pass& pass) const;
  /// The features, of the tokens that enter a block.
  at::Tensor forward_from(int64_t block, const at::Tensor& tokens, const Adapter* adapter,
                          const Pass& pass) const;
  /// Every weight that there is, under timm's name.
  void visit(const std::function<void(const std::string&, at::Tensor&)>& each);

  VitConfig config_;
  Options options_;
  at::Tensor patch_weight_, patch_bias_, cls_token_, dist_token_, reg_token_, pos_embed_;
  LayerNorm norm_pre_, norm_;
  std::vector<std::unique_ptr<VitBlock>> blocks_;
  Precision precision_ = Precision::f32;
  int64_t recomputed_ = 0;
};

}  // namespace convpass
