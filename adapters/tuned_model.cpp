#include "convpass/adapters/tuned_model.h"

#include <ATen/ATen.h>

#include <cmath>

#include "adapters/parts.h"
#include "convpass/core/error.h"
#include "convpass/core/fields.h"

namespace convpass {

void fields(FieldVisitor& visitor, HeadConfig& config) {
  visitor.choice(
      "type", config.type, {"linear", "distilled", "none"},
      "kind of classifier; distilled: DeiT's two, of which the one on the distillation token "
      "learns from the teachers; none: the backbone's output is the logits "
      "(TorchScript)");
  visitor.choice("init", config.init, {"default", "zero", "xavier"},
                 "initial weights: uniform in +-1/sqrt(D) (torch), zero (BiT), or Xavier-uniform");
}

Head::Answers Head::answers(const at::Tensor& features) const {
  if (!weight.defined()) return {features.to(at::kFloat), features.to(at::kFloat)};
  const at::Tensor x = features.to(weight.scalar_type());
  if (!distilled_weight.defined()) {
    const at::Tensor logits = at::linear(x, weight, bias);  // [B, K]
    return {logits, logits};
  }
  const int64_t dim = weight.size(1);
  return {at::linear(x.narrow(1, 0, dim), weight, bias),
          at::linear(x.narrow(1, dim, dim), distilled_weight, distilled_bias)};
}

at::Tensor Head::forward(const at::Tensor& features) const {
  const Answers both = answers(features);
  return distilled_weight.defined() ? (both.labels + both.teacher) / 2 : both.labels;
}

std::vector<std::pair<std::string, at::Tensor*>> Head::tensors() {
  std::vector<std::pair<std::string, at::Tensor*>> all;
  for (auto& [name, tensor] : {std::pair{"head.weight", &weight},
                               {"head.bias", &bias},
                               {"head_dist.weight", &distilled_weight},
                               {"head_dist.bias", &distilled_bias}})
    if (tensor->defined()) all.emplace_back(name, tensor);
  return all;
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
  auto linear = [&](int64_t inputs, at::Tensor& weight, at::Tensor& bias) {
    weight = at::zeros({classes, inputs});
    bias = at::zeros({classes});
    const auto dim = static_cast<double>(inputs);
    const double uniform = 1.0 / std::sqrt(dim);
    const double xavier = std::sqrt(6.0 / (dim + static_cast<double>(classes)));
    switch (config.init) {
      case HeadInit::torch_default:
        weight.uniform_(-uniform, uniform, generator);
        bias.uniform_(-uniform, uniform, generator);
        break;
      case HeadInit::zero:
        break;
      case HeadInit::xavier:
        weight.uniform_(-xavier, xavier, generator);
        break;
    }
  };
  Head head;
  const bool two = config.type == HeadType::distilled;
  linear(two ? features / 2 : features, head.weight, head.bias);
  if (two) linear(features / 2, head.distilled_weight, head.distilled_bias);
  return head;
}

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

NamedTensors TunedModel::state() const {
  NamedTensors all = trainable();
  for (auto& buffer : buffers()) all.push_back(std::move(buffer));
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
  return count(trainable()) + (backbone_trainable ? 0 : backbone->size().values);
}

int64_t TunedModel::classes() const {
  return head.weight.defined() ? head.weight.size(0) : backbone->feature_dim();
}

c10::Device TunedModel::device() const {
  return head.weight.defined() ? head.weight.device()
                               : backbone->parameters().front().second.device();
}

}  // namespace convpass
