#pragma once

#include <cstdint>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;

enum class OptimizerType {
  adamw,            ///< torch.optim.AdamW
  adam,             ///< torch.optim.Adam: weight decay is added to the gradient
  sgd,              ///< torch.optim.SGD with momentum
  big_vision_adam,  ///< FunMatch's: see Optimizer
};

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 1e-3;
  std::vector<double> betas{0.9, 0.999};
  double eps = 1e-8;
  double momentum = 0.9;
  double weight_decay = 1e-4;
  bool decay_norm_and_bias =
      true;                ///< Convpass decays everything; false: kernels alone, so neither
                           ///< tensors of one dimension nor tokens and positions (timm)
  double clip_norm = 0.0;  ///< of the whole gradient; 0 = off
};
void fields(FieldVisitor& visitor, OptimizerConfig& config);

/// AdamW, Adam (L2 in the gradient) and SGD with momentum, equal to torch.optim; LibTorch's fused
/// kernels.
///
/// big_vision_adam is the chain of big_vision (optax): the gradient is clipped to exactly
/// clip_norm; Adam with bias correction keeps its first moment in bfloat16; weight decay does not
/// scale with the base rate but with the schedule alone: w -= f (lr adam + decay w), f = rate / lr.
class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, NamedTensors parameters);
  void zero_grad();
  /// Clips the gradient as configured; returns its norm before clipping (torch's clip_grad_norm_).
  double clip();
  /// Leaves a parameter without gradient alone, its moments too.
  void step(double learning_rate);
  /// Moments and step count under "<state>.<parameter>", for resuming.
  TensorMap state() const;
  void load_state(const TensorMap& state);

 private:
  struct Group {
    void add(const std::string& name, const at::Tensor& tensor, OptimizerType type);
    /// The same tensors, without names.
    Group with_gradients() const;

    std::vector<std::string> names{};
    std::vector<at::Tensor> parameters{}, first{}, second{}, steps{};
    double weight_decay = 0;
  };
  void step_big_vision(Group& group, const std::vector<at::Tensor>& gradients,
                       double learning_rate) const;

  OptimizerConfig config_;
  std::vector<Group> groups_;
};

}  // namespace convpass
