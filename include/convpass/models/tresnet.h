#pragma once

#include <functional>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// The architecture of a TResNet (Ridnik et al., 2020, arXiv 2003.13630). The defaults are
/// tresnet_m.
struct TResnetConfig {
  std::vector<int64_t> layers{3, 4, 11, 3};  ///< blocks of each of the four stages
  int64_t width = 64;  ///< channels of the stem, and inside the first stage's blocks
  bool v2 = false;     ///< bottlenecks in every stage; else basic blocks in the first two

  bool bottleneck(size_t stage) const { return v2 || stage >= 2; }
  /// Channels inside the blocks of a stage, and those that it puts out.
  int64_t inside(size_t stage) const { return width << stage; }
  int64_t outside(size_t stage) const { return inside(stage) * (bottleneck(stage) ? 4 : 1); }
  bool operator==(const TResnetConfig&) const = default;
};

void fields(FieldVisitor& visitor, TResnetConfig& config);

/// Errors: Error for numbers that make no network: other than four stages, no block, no channel.
void check(const TResnetConfig& config);

/// "tresnet_m", "tresnet_l", "tresnet_xl", "tresnet_v2_l" (timm's spelling); or any size as
/// "tresnet width 16 layers 1-1-1-1" or "tresnet v2 width 16 layers 1-1-1-1". Errors: Error naming
/// the nearest known variant.
TResnetConfig tresnet_variant(const std::string& name);

/// The variant name that fits, or "tresnet width 16 layers 1-1-1-1" when none does.
std::string tresnet_name(const TResnetConfig& config);

/// Residual network whose strides blur, with squeeze-and-excitation in the first three stages
/// (reference: timm 1.0, models/tresnet.py). Parameter names are timm's. No adapter can stand
/// beside it.
///
/// It trains and, until it is frozen, computes in float32. Training normalises by the batch and
/// moves the running statistics towards it by a tenth a step. Frozen, they are folded into the
/// convolutions, which may then be bf16.
class TResnet final : public Backbone {
 public:
  static constexpr int64_t kSideUnit = 4;    ///< of which a side of an image is a multiple
  static constexpr int64_t kLeastSide = 20;  ///< else a blur would have nothing to mirror

  struct Options {
    std::array<int64_t, 2> image_size{224, 224};  ///< height, width
    /// Stochastic depth of the last block; it grows linearly from 0 in the first.
    double drop_path = 0;
  };

  /// Takes the weights and running statistics (timm names, shapes as in the config; checked,
  /// leftovers are an error). Errors: Error, also for an image size that it cannot take.
  TResnet(const TResnetConfig& config, const TensorMap& weights, const Options& options);
  /// Random weights from `seed` as timm begins: kernels normal with variance 2 / (outputs of a
  /// kernel), the biases of the excitation as torch's, the last norm of each block 0, others 1.
  static TensorMap random_weights(const TResnetConfig& config, uint64_t seed);

  /// Errors: Error when it trains on a batch of one value a channel, which has no variance.
  at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                     const Pass& pass) const override;

  int64_t feature_dim() const override { return config_.outside(3); }
  int64_t depth() const override { return 0; }
  int64_t step_values(const Adapter* adapter, bool trainable) const override;
  std::array<int64_t, 2> image_size() const override { return options_.image_size; }
  /// Frozen, the folded kernels in the place of the stored ones, and no weights of norms, whose
  /// biases are then those of the convolutions.
  NamedTensors parameters() const override;
  NamedTensors buffers() const override;  ///< none once it is frozen
  void to(c10::Device device, Precision precision) override;
  /// Freezing is final: it lets go of the stored kernels and of the running statistics.
  void set_trainable(bool trainable) override;
  std::string describe() const override;
  const TResnetConfig& config() const { return config_; }

 private:
  /// A convolution of stride 1 and its BatchNorm. Frozen, `shift` is the convolution's bias and
  /// the rest of the norm is gone.
  struct ConvNorm {
    at::Tensor kernel, scale, shift, mean, variance;
  };
  /// Squeeze-and-excitation; undefined in the last stage.
  struct Excitation {
    at::Tensor weight1, bias1, weight2, bias2;
  };
  struct Block {
    std::string name;  ///< "body.layer1.0."
    ConvNorm conv1, conv2;
    ConvNorm conv3;       ///< of a bottleneck, or undefined
    ConvNorm downsample;  ///< of most stages' first block, or undefined
    Excitation excitation;
    bool bottleneck = false;
    int64_t stride = 1;
    double drop_rate = 0;
  };
  enum class Role { kernel, norm, statistic, excitation };

  at::Tensor convolve(const at::Tensor& input, const ConvNorm& layer, const Pass& pass) const;
  at::Tensor excite(const at::Tensor& input, const Excitation& excitation) const;
  at::Tensor blur(const at::Tensor& input) const;
  at::Tensor forward_branch(const at::Tensor& input, const Block& block, const Pass& pass) const;
  at::Tensor forward_block(const at::Tensor& input, const Block& block, const Pass& pass) const;
  void fold(ConvNorm& layer) const;
  /// Every tensor that there may be, under timm's name.
  void visit(const std::function<void(const std::string&, at::Tensor&, Role)>& each);
  NamedTensors held(bool statistics) const;

  TResnetConfig config_;
  Options options_;
  ConvNorm stem_;
  std::vector<Block> blocks_;
  at::Tensor blur_;  ///< `[1, 1, 3, 3]`
  c10::ScalarType dtype_ = c10::kFloat;
  bool trainable_ = false, folded_ = false;
};

}  // namespace convpass
