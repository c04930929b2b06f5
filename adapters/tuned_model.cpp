#include "convpass/adapters/tuned_model.h"

#include <ATen/ATen.h>

#include <cmath>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {

void fields(FieldVisitor& visitor, HeadConfig& config) {
  visitor.choice("type", config.type, {"linear", "none"},
                 "kind of classifier; none: the backbone's output is the logits (TorchScript)");
  visitor.choice("init", config.init, {"default", "zero", "xavier"},
                 "initial weights: uniform in +-1/sqrt(D) (torch), zero (BiT), or Xavier-uniform");
}

at::Tensor Head::forward(const at::Tensor& features) const {
  if (!weight.defined()) return features.to(at::kFloat);
  return at::linear(features.to(weight.scalar_type()), weight, bias);  // [B, K]
}

Head make_head(const HeadConfig& config, int64_t features, int64_t classes, uint64_t seed) {
  TORCH_CHECK(features > 0 && classes > 0, "head of ", features, " features, ", classes,
              " classes");
  if (config.type == HeadType::none) {
    if (features != classes)
      throw Error("got \"none\" with a backbone that puts out " + std::to_string(features) +
                  " values, wanted \"linear\": there are " + std::to_string(classes) + " classes");
    return {};
  }
  at::Generator generator = seeded_generator(seed);
  Head head{at::zeros({classes, features}), at::zeros({classes})};
  switch (config.init) {
    case HeadInit::torch_default: {
      const double bound = 1.0 / std::sqrt(static_cast<double>(features));
      head.weight.uniform_(-bound, bound, generator);
      head.bias.uniform_(-bound, bound, generator);
      break;
    }
    case HeadInit::zero:
      break;
    case HeadInit::xavier: {
      const double bound = std::sqrt(6.0 / static_cast<double>(features + classes));
      head.weight.uniform_(-bound, bound, generator);
      break;
    }
  }
  return head;
}

at::Tensor TunedModel::features(const at::Tensor& images, const Pass& pass) const {
  // A backbone in which nothing trains gains nothing from stochastic depth: its features are
  // constants.
  const bool learns = adapter != nullptr || backbone_trainable;
  return backbone->forward(images, adapter.get(), learns ? pass : Pass{});
}

at::Tensor TunedModel::logits(const at::Tensor& images, const Pass& pass) const {
  return head.forward(features(images, pass));
}

NamedTensors TunedModel::trainable() const {
  NamedTensors all;
  if (adapter) all = adapter->parameters();
  if (head.weight.defined()) {
    all.emplace_back("head.weight", head.weight);
    all.emplace_back("head.bias", head.bias);
  }
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

NamedTensors TunedModel::state() const {
  NamedTensors all = trainable();
  for (auto& buffer : buffers()) all.push_back(std::move(buffer));
  return all;
}

void TunedModel::to(c10::Device device, Precision precision) {
  backbone->to(device, precision);
  backbone->set_trainable(backbone_trainable);
  if (adapter) adapter->to(device);
  for (at::Tensor* tensor : {&head.weight, &head.bias})
    if (tensor->defined()) *tensor = tensor->detach().to(device).set_requires_grad(true);
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
  return count(trainable()) + (backbone_trainable ? 0 : count(backbone->parameters()));
}

int64_t TunedModel::classes() const {
  return head.weight.defined() ? head.weight.size(0) : backbone->feature_dim();
}

c10::Device TunedModel::device() const {
  return head.weight.defined() ? head.weight.device()
                               : backbone->parameters().front().second.device();
}

}  // namespace convpass
