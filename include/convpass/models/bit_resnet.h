#pragma once

#include <functional>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

/// What surrounds the root's max-pool: zeros, which take part in the maximum (big_transfer, timm,
/// Hugging Face), or nothing (big_vision).
enum class PoolPadding { zero, minus_infinity };

/// The architecture of a BiT ResNet v2 (Kolesnikov et al., 2020, arXiv 1912.11370). The defaults
/// are R50x1 as big_transfer computes it; a width factor multiplies `root` and `widths`.
struct BitConfig {
  std::vector<int64_t> units{3, 4, 6, 3};             ///< bottleneck units of each stage
  int64_t root = 64;                                  ///< channels of the root convolution
  std::vector<int64_t> widths{256, 512, 1024, 2048};  ///< channels that each stage puts out
  int64_t groups = 32;                                ///< of every GroupNorm
  double eps = 1e-5;                                  ///< of every GroupNorm
  double standardization_eps = 1e-10;                 ///< added to the variance of a kernel
  PoolPadding pool_padding = PoolPadding::zero;

  /// Channels inside the units of a stage.
  int64_t bottleneck(size_t stage) const { return widths[stage] / 4; }
  bool operator==(const BitConfig&) const = default;
};

void fields(FieldVisitor& visitor, BitConfig& config);

/// Errors: Error for numbers that make no network: no stage, lists of unequal length, channels that
/// the groups do not divide.
void check(const BitConfig& config);

/// "resnetv2_50x1_bit" (timm's spelling) or "R50x1", with 50, 101 or 152 layers and any width
/// factor from 1 to 9; or any size as "bit root 32 widths 128-256 units 1-1". Errors: Error naming
/// the nearest known variant.
BitConfig bit_variant(const std::string& name);

/// The variant name that fits, or "bit root 8 widths 32-64 units 2-1" when none does.
std::string bit_name(const BitConfig& config);

/// Pre-activation bottleneck ResNet with GroupNorm and weight-standardised convolutions (reference:
/// google-research/big_transfer, bit_pytorch/models.py). Kernels are standardised in float32,
/// whatever the precision: over and over while they are trainable, once when they are frozen.
/// Parameter names are timm's. No adapter can stand beside it.
class BitResnet final : public Backbone {
 public:
  struct Options {
    std::array<int64_t, 2> image_size{224, 224};  ///< height, width; any
  };

  /// Takes the weights (timm names, shapes as in the config; checked, leftovers are an error). f32.
  BitResnet(const BitConfig& config, const TensorMap& weights, const Options& options);
  /// Random weights from `seed`: kernels normal with variance 2 / (outputs of a kernel), norms 1
  /// and 0, as timm begins.
  static TensorMap random_weights(const BitConfig& config, uint64_t seed);

  at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                     const Pass& pass) const override;

  int64_t feature_dim() const override { return config_.widths.back(); }
  int64_t depth() const override { return 0; }
  int64_t step_values(const Adapter* adapter, bool trainable) const override;
  std::array<int64_t, 2> image_size() const override { return options_.image_size; }
  /// Frozen, the standardised kernels, which stand in the place of the stored ones.
  NamedTensors parameters() const override;
  void to(c10::Device device, Precision precision) override;
  /// Freezing is final: it lets go of the stored kernels.
  void set_trainable(bool trainable) override;
  void compute_in(Precision precision) override;
  std::string describe() const override;
  const BitConfig& config() const { return config_; }

 private:
  struct Norm {
    at::Tensor weight, bias;
  };
  struct Unit {
    Norm norm1, norm2, norm3;
    at::Tensor conv1, conv2, conv3;
    at::Tensor downsample;  ///< of a stage's first unit, or undefined
    int64_t stride = 1;
  };
  at::Tensor kernel(const at::Tensor& weight) const;
  at::Tensor root(const at::Tensor& images) const;
  at::Tensor normalize(const at::Tensor& input, const Norm& norm) const;
  at::Tensor forward_unit(const at::Tensor& input, const Unit& unit) const;
  /// Every weight under timm's name, and whether it is a kernel.
  void visit(const std::function<void(const std::string&, at::Tensor&, bool)>& each);

  BitConfig config_;
  Options options_;
  at::Tensor root_;
  std::vector<Unit> units_;
  Norm norm_;
  c10::ScalarType dtype_ = c10::kFloat;
  bool standardized_ = false;
};

}  // namespace convpass
