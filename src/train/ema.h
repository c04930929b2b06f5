#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

/// Exponential moving average of weights and buffers, as timm's ModelEmaV2: it starts at the initial
/// ones and after each step becomes decay * average + (1 - decay) * weight; no warm-up, no bias
/// correction.
class Ema {
 public:
  Ema(double decay, NamedTensors weights) : decay_(decay), weights_(std::move(weights)) {
    for (const auto& [name, tensor] : weights_) averages_.push_back(tensor.detach().clone());
  }

  void update() {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < averages_.size(); ++i)
      averages_[i].mul_(decay_).add_(weights_[i].second, 1 - decay_);
  }
  /// Exchanges weights and averages; a second call undoes it.
  void swap() {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < averages_.size(); ++i) {
      const at::Tensor weight = weights_[i].second.detach().clone();
      weights_[i].second.copy_(averages_[i]);
      averages_[i].copy_(weight);
    }
  }

  TensorMap state() const {
    TensorMap map;
    for (size_t i = 0; i < averages_.size(); ++i) map.tensors[weights_[i].first] = averages_[i];
    return map;
  }
  /// Errors: Error.
  void load_state(const TensorMap& state) {
    for (size_t i = 0; i < averages_.size(); ++i) {
      const std::string& name = weights_[i].first;
      auto found = state.tensors.find(name);
      if (found == state.tensors.end() || found->second.sizes() != averages_[i].sizes() ||
          !found->second.is_floating_point())
        throw Error("checkpoint: the average of " + name + " is missing or of another shape");
      averages_[i].copy_(found->second);
    }
  }

 private:
  double decay_;
  NamedTensors weights_;  ///< share their storage with the model's
  std::vector<at::Tensor> averages_;
};

}  // namespace convpass
