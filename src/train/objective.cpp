#include "convpass/train/objective.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "convpass/core/fields.h"

namespace convpass {
namespace {

constexpr double kLeastProbability = 1e-8;

/// KL of each row `[B]`.
at::Tensor kl_rows(const at::Tensor& student, const at::Tensor& teacher, double temperature) {
  const at::Tensor p = at::softmax(teacher / temperature, 1);
  const at::Tensor log_p = p.clamp_min(kLeastProbability).log();
  return (p * (log_p - at::log_softmax(student / temperature, 1))).sum(1);
}

/// 1 where the teacher's best class is among the student's best k.
at::Tensor agreement(const at::Tensor& student, const at::Tensor& teacher, int64_t k) {
  const at::Tensor best = std::get<1>(student.topk(std::min(k, student.size(1)), 1));  // [B, k]
  return best.eq(teacher.argmax(1, /*keepdim=*/true)).any(1).to(at::kFloat);
}

}  // namespace

void fields(FieldVisitor& visitor, LossConfig& config) {
  visitor.field("label_weight", config.label_weight,
                "weight of the cross-entropy on labels; 0: labels are not needed", at_least(0));
  visitor.field("label_smoothing", config.label_smoothing,
                "probability that is spread over all classes", {.min = 0, .max = 0.999});
}

void fields(FieldVisitor& visitor, DistillTerms& config) {
  const Bounds weight = between(0, 1e6);
  visitor.field("temperature", config.temperature,
                "T: logits of teacher and student are divided by it in kl and soft_cross_entropy",
                between(1e-3, 1e3));
  visitor.field("kl", config.kl, "weight of T^2 KL(teacher || student)", weight);
  visitor.field("soft_cross_entropy", config.soft_cross_entropy,
                "weight of T^2 times the cross-entropy on the teacher's probabilities", weight);
  visitor.field("mse", config.mse, "weight of the mean squared difference of the logits", weight);
  visitor.field("hard", config.hard,
                "weight of the cross-entropy on the teacher's best class (DeiT)", weight);
  visitor.field("feature", config.feature,
                "weight of the distance of the features, through a trainable projection", weight);
  visitor.choice("feature_distance", config.feature_distance, {"cosine", "mse"},
                 "cosine: 1 - cosine; mse: mean squared difference");
}

at::Tensor kl_loss(const at::Tensor& student, const at::Tensor& teacher, double temperature) {
  return kl_rows(student, teacher, temperature).mean() * (temperature * temperature);
}

at::Tensor soft_cross_entropy_loss(const at::Tensor& student, const at::Tensor& teacher,
                                   double temperature) {
  return target_loss(student / temperature, at::softmax(teacher / temperature, 1)) *
         (temperature * temperature);
}

at::Tensor target_loss(const at::Tensor& student, const at::Tensor& targets) {
  return -(targets * at::log_softmax(student, 1)).sum(1).mean();
}

at::Tensor feature_loss(const at::Tensor& student, const at::Tensor& teacher,
                        FeatureDistance distance) {
  if (distance == FeatureDistance::mse) return at::mse_loss(student, teacher);
  return 1 - at::cosine_similarity(student, teacher, 1).mean();
}

at::Tensor distillation_loss(const DistillTerms& terms, const at::Tensor& student,
                             const std::vector<TeacherOutput>& teachers) {
  at::Tensor sum = at::zeros({}, student.options());
  for (const TeacherOutput& teacher : teachers) {
    if (terms.kl > 0) sum = sum + terms.kl * kl_loss(student, teacher.logits, terms.temperature);
    if (terms.soft_cross_entropy > 0)
      sum = sum + terms.soft_cross_entropy *
                      soft_cross_entropy_loss(student, teacher.logits, terms.temperature);
    if (terms.mse > 0) sum = sum + terms.mse * at::mse_loss(student, teacher.logits);
    if (terms.hard > 0)
      sum = sum + terms.hard * at::cross_entropy_loss(student, teacher.logits.argmax(1));
  }
  return sum;
}

Distances teacher_distances(const at::Tensor& student, const at::Tensor& teacher) {
  return {.kl = kl_rows(student, teacher, 1.0),
          .euclidean = ((student - teacher).square().sum(1) + 1e-12).sqrt(),
          .agree1 = agreement(student, teacher, 1),
          .agree5 = agreement(student, teacher, 5)};
}

}  // namespace convpass
