#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"
#include "convpass/models/layers.h"

namespace convpass {

class FieldVisitor;

/// The architecture of a Swin transformer (Liu et al. 2021, arXiv 2103.14030), as read off a
/// checkpoint or a variant's name. The defaults are swin_tiny_patch4_window7.
struct SwinConfig {
  int64_t width = 96;  ///< of a token in the first stage; each stage doubles it
  std::vector<int64_t> depths{2, 2, 6, 2};  ///< blocks of each stage
  std::vector<int64_t> heads{3, 6, 12, 24};
  /// Side of the windows in each stage. Where the grid is no larger than the window, the window is
  /// the grid, and the weights hold relative positions for no other.
  std::vector<int64_t> windows{7, 7, 7, 7};
  int64_t patch = 4;
  int64_t expansion = 4;  ///< MLP width in multiples of a token's
  bool qkv_bias = true;

  size_t stages() const { return depths.size(); }
  int64_t dim(size_t stage) const { return width << stage; }
  /// Pixels along the side of a token.
  int64_t stride(size_t stage) const { return patch << stage; }
  bool operator==(const SwinConfig&) const = default;
};

void fields(FieldVisitor& visitor, SwinConfig& config);

/// Errors: Error for numbers that make no network: lists of other lengths, heads that do not divide
/// the width.
void check(const SwinConfig& config);

/// "swin_base_patch4_window7" for tiny, small, base, large and windows of 7 and 12 (any number); a
/// name of timm's with pixels and tag, too ("swin_base_patch4_window7_224.ms_in22k"); or any size
/// as "swin width 32 depths 1-2 heads 1-2 windows 4-4 patch 4". Errors: Error naming the nearest
/// known variant.
SwinConfig swin_variant(const std::string& name);

/// The variant name that fits, or "swin width 32 depths 1-2 ..." when none does.
std::string swin_name(const SwinConfig& config);

/// The image size that the windows of the last stage fill with one window: 224 for windows of 7.
std::array<int64_t, 2> own_image_size(const SwinConfig& config);

/// The same network with the windows that it has when it begins with such images: no larger than
/// the grid. Errors: Error as check_image_size.
SwinConfig fitted_to(SwinConfig config, const std::array<int64_t, 2>& image_size);

/// Errors: Error for sides that the stages do not divide, or in whose grids the windows do not
/// stand: relative positions are not resized. Says which sizes are possible.
void check_image_size(const SwinConfig& config, const std::array<int64_t, 2>& image_size);

struct SwinStage;

/// Swin transformer (reference: timm 1.0, models/swin_transformer.py): attention within windows,
/// moved by half a window in every other block, and patches merged two by two between stages. Its
/// feature is the mean of the normalised tokens. Parameter names are timm's.
///
/// Blocks are numbered through over the stages, and each has the grid and the width of its stage.
/// Within attention an adapter sees the tokens window by window (Layer::qkv), elsewhere row by row.
class Swin final : public Backbone {
 public:
  struct Options {
    std::array<int64_t, 2> image_size{224, 224};  ///< height, width
    double drop_path = 0.0;                       ///< rate of the last block; linear from 0
  };

  /// Takes the weights (timm names, shapes as in the config; checked, leftovers are an error). f32.
  Swin(const SwinConfig& config, const TensorMap& weights, const Options& options);
  ~Swin() override;
  /// Random weights, truncated normal 0.02 as in timm, from `seed`.
  static TensorMap random_weights(const SwinConfig& config, uint64_t seed);

  at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                     const Pass& pass) const override;
  /// Tokens of the last stage after the final norm, `[B, H W, D]`.
  at::Tensor forward_tokens(const at::Tensor& images, const Adapter* adapter,
                            const Pass& pass) const;

  int64_t feature_dim() const override { return config_.dim(config_.stages() - 1); }
  int64_t token_dim(int64_t block) const override;
  int64_t depth() const override;
  bool has_stages() const override { return true; }
  std::string block_name(int64_t block) const override;
  int64_t step_values(const Adapter* adapter, bool trainable) const override;
  void set_recomputed(int64_t blocks) override { recomputed_ = blocks; }
  std::array<int64_t, 2> image_size() const override { return options_.image_size; }
  NamedTensors parameters() const override;
  Size size() const override;
  bool replace_parameters(const std::map<std::string, at::Tensor>& weights) override;
  void to(c10::Device device, Precision precision) override;
  void set_trainable(bool trainable) override;
  std::string describe() const override;
  const SwinConfig& config() const { return config_; }

 private:
  /// `[B, H W, D]`, what enters the first block.
  at::Tensor embed(const at::Tensor& images, const Adapter* adapter, const Pass& pass) const;
  const SwinStage& stage_of(int64_t block) const;
  /// Every weight that there is, under timm's name.
  void visit(const std::function<void(const std::string&, at::Tensor&)>& each);

  SwinConfig config_;
  Options options_;
  at::Tensor patch_weight_, patch_bias_;
  LayerNorm patch_norm_, norm_;
  std::vector<std::unique_ptr<SwinStage>> stages_;
  Precision precision_ = Precision::f32;
  int64_t recomputed_ = 0;
};

}  // namespace convpass
