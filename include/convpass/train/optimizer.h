#pragma once

#include <cstdint>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

enum class OptimizerType { adamw, adam, sgd };

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 1e-3;
  std::vector<double> betas{0.9, 0.999};
  double eps = 1e-8;
  double momentum = 0.9;
  double weight_decay = 1e-4;
  bool decay_norm_and_bias =
      true;                ///< Convpass decays everything; false: only tensors of 2+ dimensions
  double clip_norm = 0.0;  ///< of the whole gradient; 0 = off
};
void fields(FieldVisitor& visitor, OptimizerConfig& config);

/// AdamW, Adam (L2 in the gradient) and SGD with momentum, equal to torch.optim; LibTorch's fused
/// kernels.
class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, NamedTensors parameters);
  void zero_grad();
  /// Clips the gradient as configured; returns its norm before clipping (torch's clip_grad_norm_).
  double clip();
  void step(double learning_rate);
  /// Moments and step count under "<state>.<parameter>", for resuming.
  TensorMap state() const;
  void load_state(const TensorMap& state);

 private:
  struct Group {
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters, first, second, steps;
    double weight_decay = 0;
  };
  OptimizerConfig config_;
  std::vector<Group> groups_;
};

}  // namespace convpass
