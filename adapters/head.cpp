#include "convpass/adapters/head.h"

#include <ATen/ATen.h>

#include <cmath>

#include "convpass/adapters/text_embeddings.h"
#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/models/backbone.h"

namespace convpass {
namespace {

Head::Tensors defined(Head::Tensors all) {
  std::erase_if(all, [](const auto& entry) { return !entry.second->defined(); });
  return all;
}

}  // namespace

void fields(FieldVisitor& visitor, HeadConfig& config) {
  visitor.choice(
      "type", config.type, {"linear", "distilled", "none", "cosine"},
      "kind of classifier; distilled: DeiT's two, of which the one on the distillation token "
      "learns from the teachers; none: the backbone's output is the logits (TorchScript); cosine: "
      "CLIP's, from the embeddings of the class names in `text`");
  visitor.choice("init", config.init, {"default", "zero", "xavier"},
                 "initial weights: uniform in +-1/sqrt(D) (torch), zero (BiT), or Xavier-uniform");
  visitor.field("text", config.text,
                "cosine: file of class-text embeddings (scripts/clip_text_head.py writes it)");
}

Head::Answers Head::answers(const at::Tensor& features) const {
  if (!weight.defined()) return {features.to(at::kFloat), features.to(at::kFloat)};
  at::Tensor x = features.to(weight.scalar_type());
  if (projection.defined()) x = at::linear(x, projection);  // [B, P]
  if (scale.defined()) x = x / x.norm(2, /*dim=*/1, /*keepdim=*/true) * scale;
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

Head::Tensors Head::tensors() {
  return defined({{"head.weight", &weight},
                  {"head.bias", &bias},
                  {"head_dist.weight", &distilled_weight},
                  {"head_dist.bias", &distilled_bias}});
}

Head::Tensors Head::constants() {
  return defined({{"head.projection", &projection}, {"head.scale", &scale}});
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

Head make_cosine_head(const TextEmbeddings& text, int64_t features, int64_t classes) {
  const int64_t rows = text.embeddings.size(0), width = text.embeddings.size(1);
  if (rows != classes)
    throw Error("got embeddings of " + std::to_string(rows) + " classes, wanted " +
                std::to_string(classes));
  const int64_t inputs = text.projection.defined() ? text.projection.size(1) : width;
  if (inputs != features)
    throw Error(text.projection.defined()
                    ? "got a projection from " + std::to_string(inputs) +
                          " features, wanted one from the backbone's " + std::to_string(features)
                    : "got embeddings of width " + std::to_string(width) + ", wanted " +
                          std::to_string(features) +
                          " like the backbone's features, or a projection of these");
  Head head;
  auto copy = [](const at::Tensor& tensor) {
    return tensor.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  };
  head.weight = copy(text.embeddings);
  head.bias = at::zeros({classes});
  if (text.projection.defined()) head.projection = copy(text.projection);
  head.scale = copy(text.scale);
  return head;
}

}  // namespace convpass
