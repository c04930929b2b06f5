#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace convpass {

class FieldVisitor;

/// The loss on the labels.
struct LossConfig {
  double label_weight = 1.0;  ///< 0: labels are not looked at, nor needed
  double label_smoothing = 0.0;
};

/// What a feature of the student is compared by with the teacher's.
enum class FeatureDistance { cosine, mse };

/// Weights of the distillation terms, which are summed; 0 leaves a term out.
struct DistillTerms {
  double temperature = 1.0;         ///< of `kl` and `soft_cross_entropy`
  double kl = 1.0;                  ///< T^2 KL(teacher || student)
  double soft_cross_entropy = 0.0;  ///< T^2 times the cross-entropy on the teacher's probabilities
  double mse = 0.0;                 ///< mean squared difference of the logits
  double hard = 0.0;                ///< cross-entropy on the teacher's best class (DeiT)
  double feature = 0.0;             ///< distance of features, through a trainable projection
  FeatureDistance feature_distance = FeatureDistance::cosine;
};

void fields(FieldVisitor& visitor, LossConfig& config);
void fields(FieldVisitor& visitor, DistillTerms& config);

/// Losses of student logits `[B, K]`, float32, with a graph. Teacher logits have the same shape and
/// none. All are means over the batch.

/// T^2 KL(softmax(teacher / T) || softmax(student / T)); the teacher's logarithm is taken of
/// max(p, 1e-8). Source: big_vision, trainers/proj/distill/distance.py; Beyer et al. 2021.
at::Tensor kl_loss(const at::Tensor& student, const at::Tensor& teacher, double temperature);
/// The same without the teacher's entropy: equal gradients.
at::Tensor soft_cross_entropy_loss(const at::Tensor& student, const at::Tensor& teacher,
                                   double temperature);
/// Cross-entropy on target probabilities `[B, K]`, such as mixed labels.
at::Tensor target_loss(const at::Tensor& student, const at::Tensor& targets);
/// Features `[B, D]`: 1 - cosine, or the mean squared difference.
at::Tensor feature_loss(const at::Tensor& student, const at::Tensor& teacher,
                        FeatureDistance distance);

/// What teachers say about one batch. Features only where they are asked for.
struct TeacherOutput {
  at::Tensor logits;    ///< [B, K] float32
  at::Tensor features;  ///< [B, D] float32, or undefined
};

/// The weighted sum of the terms on the logits against each teacher, added up over the teachers.
at::Tensor distillation_loss(const DistillTerms& terms, const at::Tensor& student,
                             const std::vector<TeacherOutput>& teachers);

/// How far the student is from the teacher, one value an image `[B]`, at T = 1 (big_vision's
/// distances): kl; euclidean = sqrt(sum of squared logit differences + 1e-12); agree@k = 1 where
/// the teacher's best class is among the student's best k.
struct Distances {
  at::Tensor kl, euclidean, agree1, agree5;
};
Distances teacher_distances(const at::Tensor& student, const at::Tensor& teacher);

}  // namespace convpass
