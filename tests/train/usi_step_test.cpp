#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convpass/data/mixing.h"
#include "convpass/data/pipeline.h"
#include "convpass/models/script_backbone.h"
#include "convpass/train/objective.h"
#include "convpass/train/optimizer.h"
#include "convpass/train/teacher.h"
#include "src/train/ema.h"

namespace convpass {
namespace {

const std::filesystem::path kData = CONVPASS_TEST_DATA;

/// Bytes [B, 3, H, W] as one network sees them.
at::Tensor network_input(const at::Tensor& images, const InputConfig& input) {
  const ImagePipeline pipeline(input, AugmentConfig{});
  at::Tensor out = at::empty(images.sizes(), at::kFloat);
  for (int64_t i = 0; i < images.size(0); ++i) {
    const at::Tensor pixels = images[i].permute({1, 2, 0}).contiguous();  // [H, W, 3]
    const auto* first = pixels.const_data_ptr<uint8_t>();
    pipeline.normalise(
        {pixels.size(0), pixels.size(1), std::vector<uint8_t>(first, first + pixels.numel())},
        out.mutable_data_ptr<float>() + i * out.stride(0));
  }
  return out;
}

/// The mixing of tests/reference/usi_step.py: mixup, CutMix, mixup with the batch reversed.
MixDraw draw_of(int64_t step) {
  const MixBox box{.top = 3, .left = 2, .bottom = 8, .right = 8};
  const double lambdas[] = {0.7, 1 - 5 * 6 / 256.0, 0.4};
  MixDraw draw;
  for (int64_t row = 0; row < 4; ++row)
    draw.push_back({.partner = 3 - row,
                    .lambda = lambdas[step],
                    .cutmix = step == 1,
                    .box = step == 1 ? box : MixBox{}});
  return draw;
}

void expect_state(const NamedTensors& tensors, const TensorMap& wanted, const std::string& part) {
  for (const auto& [name, tensor] : tensors)
    EXPECT_TRUE(at::allclose(tensor.detach(), wanted.at(part + "/" + name), 1e-5, 1e-5))
        << part << " " << name << " "
        << (tensor.detach() - wanted.at(part + "/" + name)).abs().max();
}

TEST(UsiStep, ThreeEqualTheirTranscription) {
  const TensorMap map = load_tensors(kData / "usi/steps.safetensors");
  TeacherConfig config;
  config.source = TorchScriptTeacher{kData / "teacher/tiny.pt"};
  const auto teacher = load_teacher(config, DeviceChoice::cpu);
  InputConfig theirs = teacher->input();
  theirs.size = {16, 16};
  InputConfig ours = theirs;
  ours.mean = {0.5, 0.45, 0.4};
  ours.std = {0.25, 0.3, 0.2};

  TunedModel model;
  model.backbone = std::make_unique<ScriptBackbone>(
      kData / "usi/student.pt", ScriptBackbone::Options{.image_size = {16, 16}});
  model.head = {map.at("head.weight").clone(), map.at("head.bias").clone()};
  model.backbone_trainable = true;
  model.to(at::kCPU, Precision::f32);
  Optimizer optimizer({.type = OptimizerType::adamw,
                       .lr = 2e-3,
                       .weight_decay = 2e-2,
                       .decay_norm_and_bias = false},
                      model.trainable());
  Ema average({.decay = 0.9}, model.trainable(), model.buffers());

  const at::Tensor student_images = network_input(map.at("images"), ours);
  const at::Tensor teacher_images = network_input(map.at("images"), theirs);
  const at::Tensor labels = at::tensor({2, 0, 1, 1}, at::kLong);
  for (int64_t step = 0; step < 3; ++step) {
    const MixDraw draw = draw_of(step);
    const at::Tensor answers = teacher->ask(mix_images(teacher_images, draw), false).logits;
    const at::Tensor logits =
        model.logits(mix_images(student_images, draw), Pass{seeded_generator(step)});
    const at::Tensor loss = target_loss(logits, mix_targets(soft_targets(labels, 3, 0), draw)) +
                            5 * kl_loss(logits, answers, 1);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step(2e-3);
    average.update(step + 1);
    EXPECT_NEAR(loss.item<double>(), map.at("losses")[step].item<double>(), 1e-5);
  }
  expect_state(model.state(), map, "after");
  NamedTensors averages;
  for (const auto& [name, tensor] : average.state().tensors) averages.emplace_back(name, tensor);
  EXPECT_EQ(averages.size(), model.state().size());
  expect_state(averages, map, "average");
}

}  // namespace
}  // namespace convpass
