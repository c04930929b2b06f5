#include "convpass/adapters/tuned_model.h"

#include <ATen/ATen.h>

#include "adapters/parts.h"

namespace convpass {

at::Tensor TunedModel::features(const at::Tensor& images, const Pass& pass) const {
  // A backbone in which nothing trains gains nothing from stochastic depth: its features are
  // constants.
  const bool learns = adapter != nullptr || backbone_trainable;
  return backbone->forward(images, acting_adapter(), learns ? pass : Pass{});
}

at::Tensor TunedModel::stem(const at::Tensor& images) const {
  return backbone->stem(images, acting_adapter());
}

at::Tensor TunedModel::after_stem(const at::Tensor& stem, const Pass& pass) const {
  return backbone->after_stem(stem, acting_adapter(), pass);
}

at::Tensor TunedModel::logits(const at::Tensor& images, const Pass& pass) const {
  return head.forward(features(images, pass));
}

NamedTensors TunedModel::trainable() const {
  NamedTensors all;
  if (adapter) all = adapter->parameters();
  Head shared = head;  // the same tensors
  for (const auto& [name, tensor] : shared.tensors()) all.emplace_back(name, *tensor);
  if (backbone_trainable)
    for (auto& [name, tensor] : backbone->parameters())
      all.emplace_back("backbone." + name, tensor);
  return all;
}

NamedTensors TunedModel::buffers() const {
  NamedTensors all;
  if (backbone_trainable)
    for (auto& [name, tensor] : backbone->buffers()) all.emplace_back("backbone." + name, tensor);
  return all;
}

NamedTensors TunedModel::constants() const {
  NamedTensors all;
  Head shared = head;
  for (const auto& [name, tensor] : shared.constants()) all.emplace_back(name, *tensor);
  return all;
}

NamedTensors TunedModel::state() const {
  NamedTensors all = trainable();
  for (const NamedTensors& more : {buffers(), constants()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

void TunedModel::merge_adapter() {
  if (!adapter || backbone_trainable || adapter_merged) return;
  Weights weights = weights_of(*backbone);
  for (auto& [name, tensor] : weights) tensor = tensor.detach().to(at::kFloat);
  if (!adapter->merge_into(weights)) return;
  adapter_merged = backbone->replace_parameters(weights_for(*backbone, weights));
}

void TunedModel::freeze_backbone() {
  backbone_trainable = false;
  backbone->set_trainable(false);
}

void TunedModel::to(c10::Device device, Precision precision) {
  backbone->to(device, backbone_trainable ? Precision::f32 : precision);
  backbone->set_trainable(backbone_trainable);
  if (backbone_trainable) backbone->compute_in(precision);
  if (adapter) adapter->to(device);
  for (const auto& [name, tensor] : head.tensors())
    *tensor = tensor->detach().to(device).set_requires_grad(true);
  for (const auto& [name, tensor] : head.constants()) *tensor = tensor->to(device);
}

namespace {
int64_t count(const NamedTensors& tensors) {
  int64_t sum = 0;
  for (const auto& [name, tensor] : tensors) sum += tensor.numel();
  return sum;
}
}  // namespace

int64_t TunedModel::trainable_parameters() const { return count(trainable()); }

int64_t TunedModel::total_parameters() const {
  return count(trainable()) + count(constants()) +
         (backbone_trainable ? 0 : backbone->size().values);
}

int64_t TunedModel::classes() const {
  return head.weight.defined() ? head.weight.size(0) : backbone->feature_dim();
}

c10::Device TunedModel::device() const {
  return head.weight.defined() ? head.weight.device()
                               : backbone->parameters().front().second.device();
}

}  // namespace convpass
