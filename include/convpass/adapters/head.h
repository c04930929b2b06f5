#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace convpass {

class FieldVisitor;
struct TextEmbeddings;

enum class HeadType {
  linear,
  distilled,  ///< DeiT's two linear heads, on class and distillation token
  none,       ///< the backbone's output is the logits: a TorchScript classifier
  cosine,     ///< CLIP's: on directions, from embeddings of the classes' names
};
enum class HeadInit { torch_default, zero, xavier };

/// Classifier on the backbone's features.
struct HeadConfig {
  HeadType type = HeadType::linear;
  HeadInit init = HeadInit::torch_default;  ///< default: weight and bias uniform in +-1/sqrt(D)
  std::filesystem::path text{};             ///< cosine: the class-text embeddings it starts from
};
void fields(FieldVisitor& visitor, HeadConfig& config);

struct Head {
  at::Tensor weight;  ///< [K, D] (cosine: [K, P]), float32; undefined: the features are the logits
  at::Tensor bias;    ///< [K], float32
  /// The second head of DeiT (Touvron et al. 2021, arXiv 2012.12877), on the distillation token;
  /// undefined otherwise.
  at::Tensor distilled_weight{}, distilled_bias{};
  /// Cosine: the features, projected into the space of the embeddings and brought to the length
  /// `scale`, are what `weight` and `bias` see, as in CLIP (Radford et al. 2021, arXiv 2103.00020).
  /// Neither trains.
  at::Tensor projection{};  ///< [P, D]; undefined: the features are in that space
  at::Tensor scale{};       ///< []; undefined: another type

  /// What the two heads say, `[B, K]` float32 each; the same twice where there is one.
  struct Answers {
    at::Tensor labels;   ///< learns from the labels
    at::Tensor teacher;  ///< learns from the teachers
  };
  /// features `[B, D]` (two heads: `[B, 2 D]`) of any float type.
  Answers answers(const at::Tensor& features) const;
  /// The logits `[B, K]` in float32: of two heads the mean.
  at::Tensor forward(const at::Tensor& features) const;

  using Tensors = std::vector<std::pair<std::string, at::Tensor*>>;
  /// What trains, under its names in the adapter file ("head.weight", "head_dist.weight", ...).
  Tensors tensors();
  /// What never does: "head.projection", "head.scale".
  Tensors constants();
};
/// Fresh weights, for every type but cosine. Errors: Error for HeadType::none where the features
/// are not as many as the classes.
Head make_head(const HeadConfig& config, int64_t features, int64_t classes, uint64_t seed);
/// HeadType::cosine with the embeddings as its weight and no bias: before any training it answers
/// as zero-shot CLIP. Errors: Error where the embeddings are not one for each class, or neither
/// they nor their projection are as wide as the features.
Head make_cosine_head(const TextEmbeddings& text, int64_t features, int64_t classes);

}  // namespace convpass
