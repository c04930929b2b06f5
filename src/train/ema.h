#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// What the average keeps of itself at the `step`-th update, counted from 1. Source: timm 1.0
/// ModelEmaV3.get_decay.
inline double decay_at(const EmaConfig& config, int64_t step) {
  if (config.form == EmaForm::v2) return config.decay;
  const auto since = static_cast<double>(step - config.start - 1);
  if (since <= 0) return 0;
  constexpr double kPower = 2.0 / 3.0;
  return config.warmup ? std::min(config.decay, 1 - std::pow(1 + since, -kPower)) : config.decay;
}

/// Exponential moving average of weights and buffers, without bias correction: it starts at the
/// initial ones and after each step becomes decay * average + (1 - decay) * weight. Buffers of
/// whole numbers are truncated after that (timm's ModelEmaV2) or copied (ModelEmaV3).
class Ema {
 public:
  /// `buffers` may be empty. Both share their storage with the model's.
  Ema(const EmaConfig& config, NamedTensors weights, NamedTensors buffers = {})
      : config_(config), tensors_(std::move(weights)), weights_(tensors_.size()) {
    for (auto& buffer : buffers) tensors_.push_back(std::move(buffer));
    for (const auto& [name, tensor] : tensors_) averages_.push_back(tensor.detach().clone());
  }

  /// After the optimiser's `step`, which counts from 1.
  void update(int64_t step) {
    at::NoGradGuard no_grad;
    const double decay = decay_at(config_, step);
    for (size_t i = 0; i < averages_.size(); ++i) {
      const at::Tensor& weight = tensors_[i].second;
      const bool copied = config_.form == EmaForm::v3 &&
                          (!weight.is_floating_point() || (i >= weights_ && config_.copy_buffers));
      if (copied)
        averages_[i].copy_(weight);
      else if (weight.is_floating_point())
        averages_[i].mul_(decay).add_(weight, 1 - decay);
      else if (!at::equal(averages_[i], weight))  // a constant would be rounded off itself
        averages_[i].copy_(averages_[i] * decay + weight * (1 - decay));
    }
  }
  /// Exchanges weights and averages; a second call undoes it.
  void swap() {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < averages_.size(); ++i) {
      const at::Tensor weight = tensors_[i].second.detach().clone();
      tensors_[i].second.copy_(averages_[i]);
      averages_[i].copy_(weight);
    }
  }

  TensorMap state() const {
    TensorMap map;
    for (size_t i = 0; i < averages_.size(); ++i) map.tensors[tensors_[i].first] = averages_[i];
    return map;
  }
  /// Errors: Error.
  void load_state(const TensorMap& state) {
    for (size_t i = 0; i < averages_.size(); ++i) {
      const std::string& name = tensors_[i].first;
      auto found = state.tensors.find(name);
      if (found == state.tensors.end() || found->second.sizes() != averages_[i].sizes() ||
          found->second.is_floating_point() != averages_[i].is_floating_point())
        throw Error("checkpoint: the average of " + name +
                    " is missing or of another shape or type");
      averages_[i].copy_(found->second);
    }
  }

 private:
  EmaConfig config_;
  NamedTensors tensors_;  ///< weights, then buffers
  size_t weights_;
  std::vector<at::Tensor> averages_;
};

}  // namespace convpass
