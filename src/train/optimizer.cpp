#include "convpass/train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {

void fields(FieldVisitor& visitor, OptimizerConfig& config) {
  visitor.choice("type", config.type, {"adamw", "adam", "sgd", "big_vision_adam"},
                 "adam adds weight decay to the gradient (L2), adamw shrinks the weights directly, "
                 "big_vision_adam (FunMatch) shrinks them by the schedule alone, whatever lr");
  visitor.field("lr", config.lr, "peak learning rate", above(0));
  visitor.field("betas", config.betas, "adamw, adam, big_vision_adam: decay of the two moments",
                {.min = 0, .max = 0.999999999});
  visitor.field("eps", config.eps, "added to the root of the second moment", above(0));
  visitor.field("momentum", config.momentum, "sgd: momentum", between(0, 0.9999));
  visitor.field("weight_decay", config.weight_decay, "weight decay", at_least(0));
  visitor.field("decay_norm_and_bias", config.decay_norm_and_bias,
                "whether norms, biases, tokens and positions decay too (Convpass: yes)");
  visitor.field("clip_norm", config.clip_norm,
                "largest norm of the whole gradient; 0 = no clipping", at_least(0));
}

namespace {

bool is_kernel(const std::string& name, const at::Tensor& tensor) {
  for (const char* end : {"pos_embed", "cls_token", "dist_token", "reg_token", "attention_biases",
                          "relative_position_bias_table"})
    if (name.ends_with(end)) return false;
  return tensor.dim() > 1;
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, NamedTensors parameters) : config_(config) {
  groups_.resize(2);  // what decays, what does not
  groups_[0].weight_decay = config.weight_decay;
  for (const auto& [name, tensor] : parameters)
    groups_[config.decay_norm_and_bias || is_kernel(name, tensor) ? 0 : 1].add(name, tensor,
                                                                               config.type);
}

void Optimizer::Group::add(const std::string& name, const at::Tensor& tensor, OptimizerType type) {
  names.push_back(name);
  parameters.push_back(tensor);
  const bool half = type == OptimizerType::big_vision_adam;
  first.push_back(at::zeros_like(tensor, half ? at::kBFloat16 : at::kFloat).detach());
  if (type == OptimizerType::sgd) return;
  second.push_back(at::zeros_like(tensor).detach());
  steps.push_back(at::zeros({}, tensor.options().dtype(at::kFloat)).detach());
}

Optimizer::Group Optimizer::Group::with_gradients() const {
  Group some{.weight_decay = weight_decay};
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].grad().defined()) continue;
    some.parameters.push_back(parameters[i]);
    some.first.push_back(first[i]);
    if (second.empty()) continue;
    some.second.push_back(second[i]);
    some.steps.push_back(steps[i]);
  }
  return some;
}

void Optimizer::zero_grad() {
  for (Group& group : groups_)
    for (at::Tensor& parameter : group.parameters) parameter.mutable_grad().reset();
}

double Optimizer::clip() {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients, norms;
  for (Group& group : groups_)
    for (at::Tensor& parameter : group.parameters)
      if (parameter.grad().defined()) {
        gradients.push_back(parameter.grad());
        norms.push_back(at::linalg_vector_norm(parameter.grad(), 2));
      }
  if (norms.empty()) return 0;
  const double norm = at::linalg_vector_norm(at::stack(norms), 2).item<double>();
  // torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm that it divides by, optax nothing.
  const double factor =
      config_.clip_norm / (norm + (config_.type == OptimizerType::big_vision_adam ? 0.0 : 1e-6));
  if (config_.clip_norm > 0 && factor < 1)
    for (at::Tensor& gradient : gradients) gradient.mul_(factor);
  return norm;
}

void Optimizer::step(double learning_rate) {
  at::NoGradGuard no_grad;
  for (const Group& all : groups_) {
    Group group = all.with_gradients();
    if (group.parameters.empty()) continue;
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& parameter : group.parameters) gradients.push_back(parameter.grad());
    for (at::Tensor& count : group.steps) count.add_(1);  // the kernels expect the new count
    switch (config_.type) {
      case OptimizerType::adamw:
        at::_fused_adamw_(group.parameters, gradients, group.first, group.second, {}, group.steps,
                          learning_rate, config_.betas[0], config_.betas[1], group.weight_decay,
                          config_.eps, /*amsgrad=*/false, /*maximize=*/false);
        break;
      case OptimizerType::adam:
        at::_fused_adam_(group.parameters, gradients, group.first, group.second, {}, group.steps,
                         learning_rate, config_.betas[0], config_.betas[1], group.weight_decay,
                         config_.eps, /*amsgrad=*/false, /*maximize=*/false);
        break;
      case OptimizerType::sgd:
        // A zero buffer gives the same first step as torch's copy of the gradient: m * 0 + g = g.
        // The kernel wants no buffers where there is no momentum.
        at::_fused_sgd_(group.parameters, gradients,
                        config_.momentum > 0 ? at::TensorList(group.first) : at::TensorList(),
                        group.weight_decay, config_.momentum, learning_rate, /*dampening=*/0,
                        /*nesterov=*/false,
                        /*maximize=*/false, /*is_first_step=*/false);
        break;
      case OptimizerType::big_vision_adam:
        step_big_vision(group, gradients, learning_rate);
        break;
    }
  }
}

void Optimizer::step_big_vision(Group& group, const std::vector<at::Tensor>& gradients,
                                double learning_rate) const {
  const double b1 = config_.betas[0], b2 = config_.betas[1];
  for (size_t i = 0; i < gradients.size(); ++i) {
    const double count = group.steps[i].item<double>();
    const at::Tensor first = group.first[i].to(at::kFloat).mul_(b1).add_(gradients[i], 1 - b1);
    at::Tensor second = group.second[i].mul_(b2).addcmul_(gradients[i], gradients[i], 1 - b2);
    const at::Tensor root = (second / (1 - std::pow(b2, count))).sqrt_().add_(config_.eps);
    group.first[i].copy_(first);  // rounded after it was used
    at::Tensor& weight = group.parameters[i];
    const at::Tensor decayed = weight * (learning_rate / config_.lr * group.weight_decay);
    weight.addcdiv_(first, root, -learning_rate / (1 - std::pow(b1, count))).sub_(decayed);
  }
}

TensorMap Optimizer::state() const {
  TensorMap map;
  for (const Group& group : groups_)
    for (size_t i = 0; i < group.names.size(); ++i) {
      map.tensors["first." + group.names[i]] = group.first[i];
      if (group.second.empty()) continue;
      map.tensors["second." + group.names[i]] = group.second[i];
      map.tensors["steps." + group.names[i]] = group.steps[i];
    }
  return map;
}

void Optimizer::load_state(const TensorMap& state) {
  at::NoGradGuard no_grad;
  auto load = [&](const std::string& name, at::Tensor& into) {
    auto found = state.tensors.find(name);
    if (found == state.tensors.end() || found->second.sizes() != into.sizes())
      throw Error("checkpoint: optimizer state " + name + " is missing or of another shape");
    into.copy_(found->second);
  };
  for (Group& group : groups_)
    for (size_t i = 0; i < group.names.size(); ++i) {
      load("first." + group.names[i], group.first[i]);
      if (group.second.empty()) continue;
      load("second." + group.names[i], group.second[i]);
      load("steps." + group.names[i], group.steps[i]);
    }
}

}  // namespace convpass
