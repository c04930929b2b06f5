#include "convpass/train/objective.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convpass/core/tensor_map.h"
#include "convpass/train/optimizer.h"
#include "convpass/train/schedule.h"

namespace convpass {
namespace {

TensorMap part(const std::string& name) {
  TensorMap all = load_tensors(std::string(CONVPASS_TEST_DATA) + "/distillation.safetensors"), map;
  for (const auto& [key, tensor] : all.tensors)
    if (key.starts_with(name + "/")) map.tensors[key.substr(name.size() + 1)] = tensor;
  return map;
}

bool close(const at::Tensor& got, const at::Tensor& wanted, double tolerance) {
  return at::allclose(got.detach(), wanted, tolerance, tolerance);
}

TEST(Objective, EqualsTheTranscribedLosses) {
  const TensorMap map = part("losses");
  const at::Tensor student = map.at("student"), teacher = map.at("teacher");
  for (double t : {1.0, 2.0, 10.0}) {
    const std::string end = "_" + std::to_string(static_cast<int>(t));
    EXPECT_TRUE(close(kl_loss(student, teacher, t), map.at("kl" + end), 1e-5)) << t;
    EXPECT_TRUE(close(soft_cross_entropy_loss(student, teacher, t),
                      map.at("soft_cross_entropy" + end), 1e-5))
        << t;
  }
  auto only = [&](DistillTerms terms) {
    return distillation_loss(terms, student, {{.logits = teacher, .features = {}}});
  };
  EXPECT_TRUE(close(only({.kl = 0, .mse = 1}), map.at("mse"), 1e-5));
  EXPECT_TRUE(close(only({.kl = 0, .hard = 1}), map.at("hard"), 1e-5));
  EXPECT_TRUE(
      close(feature_loss(student, teacher, FeatureDistance::cosine), map.at("cosine"), 1e-5));
  EXPECT_TRUE(close(feature_loss(student, teacher, FeatureDistance::mse), map.at("mse"), 1e-5));
}

TEST(Objective, AddsTermsAndTeachers) {
  const TensorMap map = part("losses");
  const at::Tensor student = map.at("student"), teacher = map.at("teacher");
  const DistillTerms terms{.temperature = 2, .kl = 0.5, .mse = 3};
  const TeacherOutput one{.logits = teacher, .features = {}};
  const at::Tensor loss = distillation_loss(terms, student, {one, one});
  EXPECT_TRUE(close(loss, 2 * (0.5 * map.at("kl_2") + 3 * map.at("mse")), 1e-5));
}

TEST(Objective, SoftCrossEntropyHasTheGradientOfKl) {
  const TensorMap map = part("losses");
  auto gradient = [&](auto loss) {
    at::Tensor student = map.at("student").clone().set_requires_grad(true);
    loss(student, map.at("teacher"), 2.0).backward();
    return student.grad();
  };
  EXPECT_TRUE(close(gradient(kl_loss), gradient(soft_cross_entropy_loss), 1e-5));
}

TEST(Objective, MeasuresTheDistanceToTheTeacher) {
  const TensorMap map = part("losses");
  const Distances got = teacher_distances(map.at("student"), map.at("teacher"));
  EXPECT_TRUE(close(got.kl, map.at("distance/kl"), 1e-5));
  EXPECT_TRUE(close(got.euclidean, map.at("distance/euclidean"), 1e-5));
  EXPECT_TRUE(at::equal(got.agree1, map.at("distance/agree1")));
  EXPECT_TRUE(at::equal(got.agree5, map.at("distance/agree5")));
}

TEST(Optimizer, EqualsBigVisionsChainOverTenSteps) {
  const TensorMap map = part("funmatch");
  NamedTensors parameters;
  for (const char* name : {"kernel", "bias"})
    parameters.emplace_back(name,
                            map.at(std::string("initial/") + name).clone().set_requires_grad(true));
  const OptimizerConfig config{.type = OptimizerType::big_vision_adam,
                               .lr = 0.03,
                               .weight_decay = 3e-2,
                               .decay_norm_and_bias = false,
                               .clip_norm = 1};
  const ScheduleConfig schedule{.warmup = 3};
  Optimizer optimizer(config, parameters);
  for (int64_t step = 0; step < 10; ++step) {
    const std::string at = std::to_string(step) + "/";
    for (auto& [name, tensor] : parameters)
      tensor.mutable_grad() = map.at("gradient" + at + name).clone();
    optimizer.clip();
    optimizer.step(learning_rate(schedule, config.lr, step, 1, 10));
    for (auto& [name, tensor] : parameters)
      EXPECT_TRUE(close(tensor, map.at("after" + at + name), 1e-5)) << name << " " << step;
  }
}

TEST(Optimizer, ResumesBigVisionsMoments) {
  const TensorMap map = part("funmatch");
  auto weight = [&](bool resumed) {
    NamedTensors parameters{{"kernel", map.at("initial/kernel").clone().set_requires_grad(true)}};
    const OptimizerConfig config{.type = OptimizerType::big_vision_adam};
    auto optimizer = std::make_unique<Optimizer>(config, parameters);
    for (int64_t step = 0; step < 6; ++step) {
      if (resumed && step == 3) {
        const TensorMap state = optimizer->state();
        optimizer = std::make_unique<Optimizer>(config, parameters);
        optimizer->load_state(state);
      }
      parameters[0].second.mutable_grad() =
          map.at("gradient" + std::to_string(step) + "/kernel").clone();
      optimizer->step(1e-3);
    }
    return parameters[0].second.detach();
  };
  EXPECT_TRUE(at::equal(weight(false), weight(true)));
}

}  // namespace
}  // namespace convpass
