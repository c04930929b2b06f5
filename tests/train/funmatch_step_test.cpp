#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "convpass/data/mixing.h"
#include "convpass/data/pipeline.h"
#include "convpass/models/bit_checkpoint.h"
#include "convpass/train/optimizer.h"
#include "convpass/train/teacher.h"

namespace convpass {
namespace {

const std::filesystem::path kData = CONVPASS_TEST_DATA;

/// The boxes (top, left, height, width) and flips of tests/reference/funmatch_step.py.
constexpr int64_t kBoxes[4][4] = {{0, 0, 20, 28}, {3, 5, 11, 12}, {9, 1, 7, 20}, {2, 8, 17, 9}};
constexpr bool kFlips[4] = {false, true, true, false};

/// The images [4, 20, 28, 3] as one network sees them, mixed with the row before: [4, 3, S, S].
at::Tensor network_input(const at::Tensor& images, InputConfig input) {
  const ImagePipeline pipeline(input, AugmentConfig{});
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < 4; ++i) {
    const at::Tensor pixels = images[i].contiguous();
    const auto* first = pixels.const_data_ptr<uint8_t>();
    const Image whole{20, 28, std::vector<uint8_t>(first, first + pixels.numel())};
    const auto& [top, left, height, width] = kBoxes[i];
    const Image view = resize(crop(whole, top, left, height, width), input.size[0], input.size[1],
                              Interpolation::tf_bilinear);
    at::Tensor row = at::empty({3, input.size[0], input.size[1]});
    pipeline.normalise(view, row.mutable_data_ptr<float>());
    rows.push_back(kFlips[i] ? row.flip({2}) : row);
  }
  MixDraw mix;
  for (int64_t i = 0; i < 4; ++i) mix.push_back({.partner = (i + 3) % 4, .lambda = 0.7});
  return mix_images(at::stack(rows), mix);
}

bool close(const at::Tensor& got, const at::Tensor& wanted) {
  return at::allclose(got.detach(), wanted, 1e-5, 1e-5);
}

TEST(FunMatchStep, EqualsItsTranscription) {
  const TensorMap map = load_tensors(kData / "funmatch_step.safetensors");
  TeacherConfig config;
  config.source = TorchScriptTeacher{kData / "teacher/tiny.pt"};
  const auto teacher = load_teacher(config, DeviceChoice::cpu);
  const at::Tensor answers =
      teacher->ask(network_input(map.at("images"), teacher->input()), false).logits;
  EXPECT_TRUE(close(answers, map.at("teacher")));

  BitCheckpoint checkpoint = load_bit_checkpoint(kData / "bit/timm/model.safetensors");
  checkpoint.backbone.tensors["stem.conv.weight"] = map.at("stem.conv.weight");
  BitResnet student(checkpoint.config, checkpoint.backbone, {.image_size = {16, 16}});
  student.set_trainable(true);
  at::Tensor weight = map.at("head.weight").clone().set_requires_grad(true);
  at::Tensor bias = at::zeros({3}).set_requires_grad(true);
  NamedTensors trainable = student.parameters();
  trainable.emplace_back("head.weight", weight);
  trainable.emplace_back("head.bias", bias);
  Optimizer optimizer({.type = OptimizerType::big_vision_adam,
                       .lr = 0.03,
                       .eps = 1e-3,  // the script says why
                       .weight_decay = 3e-2,
                       .decay_norm_and_bias = false,
                       .clip_norm = 1},
                      trainable);

  InputConfig input;
  input.size = {16, 16};
  input.mean = input.std = {0.5, 0.5, 0.5};
  const at::Tensor images = network_input(map.at("images"), input);
  const at::Tensor logits = at::linear(student.forward(images, nullptr, Pass{}), weight, bias);
  const at::Tensor loss = kl_loss(logits, answers, 2.0);
  loss.backward();
  EXPECT_TRUE(close(logits, map.at("logits")));
  EXPECT_TRUE(close(loss, map.at("loss")));
  EXPECT_NEAR(optimizer.clip() / map.at("norm").item<double>(), 1, 1e-4);
  optimizer.step(0.03);
  for (const auto& [name, tensor] : trainable)
    EXPECT_TRUE(close(tensor, map.at("after/" + name)))
        << name << " " << (tensor.detach() - map.at("after/" + name)).abs().max();
}

}  // namespace
}  // namespace convpass
