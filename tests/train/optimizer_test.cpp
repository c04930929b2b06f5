// Steps, the optimiser and the schedule beside PyTorch's and timm's.

#include "convpass/train/optimizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/train/build.h"
#include "convpass/train/schedule.h"
#include "src/train/ema.h"
#include "tests/adapters/reference.h"

namespace convpass {
namespace {

class TrainingSteps : public ::testing::TestWithParam<const char*> {};

TEST_P(TrainingSteps, EqualTheOfficialFormulaOverTenAdamwSteps) {
  const TensorMap map =
      load_tensors(reference_file(std::string("steps_") + GetParam() + ".safetensors"));
  ConvpassConfig config;
  config.width = std::stoll(map.metadata.at("width"));
  config.scale = std::stod(map.metadata.at("scale"));
  if (std::string(GetParam()) == "convpass_attn") config.sites = {"attn"};
  TensorMap weights = load_tensors(reference_file("vit_tiny.safetensors"));
  VitConfig vit = tiny_config();
  vit.hidden = weights.at("blocks.0.mlp.fc1.weight").size(0);
  TunedModel model;
  model.backbone = std::make_unique<Vit>(vit, weights, Vit::Options{.image_size = {16, 16}});
  model.adapter = make_adapter(config, *model.backbone, 1);
  model.head = make_head({}, vit.width, 5, 2);
  model.to(at::kCPU, Precision::f32);
  set_trainable_values(model, map, "initial/");

  Optimizer optimizer({.lr = 1e-3, .weight_decay = 1e-4}, model.trainable());
  for (int step = 1; step <= 10; ++step) {
    optimizer.zero_grad();
    at::Tensor logits = model.logits(map.at("images"), Pass{});
    at::Tensor loss = at::cross_entropy_loss(logits, map.at("labels"));
    loss.backward();
    EXPECT_NEAR(loss.item<double>(), map.at("losses")[step - 1].item<double>(), 1e-4) << step;
    if (step == 1) {
      EXPECT_TRUE(close(logits, map.at("logits"), 1e-5));
      for (const auto& [name, tensor] : model.trainable()) {
        const at::Tensor& wanted = map.at("grad/" + name);
        const at::Tensor got = tensor.grad().defined() ? tensor.grad() : at::zeros_like(tensor);
        EXPECT_TRUE(close(got, wanted, 1e-5 * std::max(1.0, wanted.abs().max().item<double>())))
            << name;
      }
    }
    optimizer.step(1e-3);
    if (step != 1 && step != 10) continue;
    for (const auto& [name, tensor] : model.trainable()) {
      EXPECT_TRUE(close(tensor, map.at("after" + std::to_string(step) + "/" + name), 1e-4)) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TrainingSteps,
                         ::testing::Values("convpass", "convpass_attn", "convpass_h4"));

TEST(Optimizer, EqualsTorchOverTenSteps) {
  const TensorMap map = load_tensors(reference_file("optimizers.safetensors"));
  const std::map<std::string, OptimizerConfig> kinds{
      {"adamw", {.lr = 1e-2, .weight_decay = 0.1}},
      {"adamw_betas", {.lr = 1e-2, .betas = {0.8, 0.95}, .eps = 1e-4, .weight_decay = 0}},
      {"adam", {.type = OptimizerType::adam, .lr = 1e-2, .weight_decay = 0}},
      {"adam_decay", {.type = OptimizerType::adam, .lr = 1e-2, .weight_decay = 0.1}},
      {"sgd", {.type = OptimizerType::sgd, .lr = 1e-2, .momentum = 0, .weight_decay = 0}},
      {"sgd_momentum",
       {.type = OptimizerType::sgd, .lr = 1e-2, .momentum = 0.9, .weight_decay = 0}},
      {"sgd_momentum_decay",
       {.type = OptimizerType::sgd, .lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1}}};
  for (const auto& [kind, config] : kinds) {
    NamedTensors parameters;
    for (const char* name : {"matrix", "vector"})
      parameters.emplace_back(
          name, map.at(std::string("initial/") + name).clone().set_requires_grad(true));
    Optimizer optimizer(config, parameters);
    for (int64_t step = 0; step < 10; ++step) {
      for (auto& [name, tensor] : parameters)
        tensor.mutable_grad() = map.at("gradients/" + name)[step].clone();
      optimizer.step(config.lr);
      for (auto& [name, tensor] : parameters)
        EXPECT_TRUE(close(tensor, map.at(kind + "/" + name)[step], 1e-6))
            << kind << " " << name << " " << step;
    }
  }
}

TEST(Optimizer, ClipsAsTorchDoes) {
  const TensorMap map = load_tensors(reference_file("optimizers.safetensors"));
  for (std::string kind : {"clip_above", "clip_below"}) {
    NamedTensors parameters;
    for (const char* name : {"matrix", "vector"}) {
      parameters.emplace_back(
          name, map.at(std::string("initial/") + name).clone().set_requires_grad(true));
      parameters.back().second.mutable_grad() = map.at(std::string("gradients/") + name)[0].clone();
    }
    Optimizer optimizer({.clip_norm = map.at(kind + "/max_norm").item<double>()}, parameters);
    EXPECT_NEAR(optimizer.clip(), map.at(kind + "/norm").item<double>(), 1e-5);
    for (auto& [name, tensor] : parameters)
      EXPECT_TRUE(close(tensor.grad(), map.at(kind + "/" + name), 1e-6));
  }
}

TEST(Optimizer, SparesNormsAndBiasesWhenAsked) {
  NamedTensors parameters{
      {"w", at::ones({2, 2}).set_requires_grad(true)},
      {"b", at::ones({2}).set_requires_grad(true)},
      {"a.attention_biases", at::ones({2, 2}).set_requires_grad(true)},
      {"a.relative_position_bias_table", at::ones({2, 2}).set_requires_grad(true)}};
  for (auto& [name, tensor] : parameters) tensor.mutable_grad() = at::zeros_like(tensor);
  Optimizer({.weight_decay = 0.5, .decay_norm_and_bias = false}, parameters).step(1.0);
  EXPECT_TRUE(close(parameters[0].second, at::full({2, 2}, 0.5), 1e-6));
  for (size_t i = 1; i < 4; ++i)
    EXPECT_TRUE(close(parameters[i].second, at::ones_like(parameters[i].second), 0)) << i;
}

TEST(Average, OfConstantsIsTheConstants) {
  const at::Tensor weight = at::zeros({1}), indices = at::arange(400);
  Ema average({.decay = 0.9999, .form = EmaForm::v2}, {{"w", weight}}, {{"indices", indices}});
  for (int64_t step = 1; step <= 20; ++step) average.update(step);
  average.swap();
  EXPECT_TRUE(at::equal(indices, at::arange(400)));
}

TEST(Optimizer, LeavesAParameterWithoutGradientAloneAsTorchDoes) {
  for (OptimizerType type : {OptimizerType::adamw, OptimizerType::adam, OptimizerType::sgd,
                             OptimizerType::big_vision_adam}) {
    NamedTensors parameters{{"used", at::ones({2, 2}).set_requires_grad(true)},
                            {"unused", at::ones({2, 2}).set_requires_grad(true)}};
    const OptimizerConfig config{.type = type, .lr = 0.1, .weight_decay = 0.5};
    Optimizer optimizer(config, parameters);
    parameters[0].second.mutable_grad() = at::ones({2, 2});
    parameters[1].second.mutable_grad() = at::ones({2, 2});
    optimizer.step(0.1);  // leaves moments, which do not act without a gradient either
    const at::Tensor before = parameters[1].second.detach().clone();
    parameters[1].second.mutable_grad().reset();
    optimizer.step(0.1);
    EXPECT_TRUE(at::equal(parameters[1].second, before));
    EXPECT_FALSE(at::equal(parameters[0].second, before));
    Optimizer(config, parameters).load_state(optimizer.state());  // all of it is there
  }
}

TEST(Schedule, EqualsTheOfficialLoopWithItsOffByOne) {
  const auto json = nlohmann::json::parse(std::ifstream(reference_file("schedules.json")));
  const std::vector<double> wanted = json["official_vtab"]["values"];
  const ScheduleConfig config{.unit = ScheduleUnit::epoch,
                              .warmup = 10,
                              .warmup_lr = 1e-6,
                              .min_lr = 1e-5,
                              .warmup_prefix = false,
                              .off_by_one = true};
  for (int64_t epoch = 0; epoch < 100; ++epoch)
    for (int64_t step : {epoch * 15, epoch * 15 + 14})
      EXPECT_NEAR(learning_rate(config, 1e-3, step, 15, 1500), wanted[static_cast<size_t>(epoch)],
                  1e-12);
}

TEST(Schedule, EqualsTimmsCosineAndTorchsMultiStep) {
  const auto json = nlohmann::json::parse(std::ifstream(reference_file("schedules.json")));
  for (const auto& c : json["timm_cosine"]) {
    ScheduleConfig config{.warmup = c["warmup_t"],
                          .warmup_lr = c["warmup_lr_init"],
                          .min_lr = c["lr_min"],
                          .warmup_prefix = c["warmup_prefix"]};
    config.total = c["t_initial"].get<double>() + (config.warmup_prefix ? config.warmup : 0);
    const std::vector<double> wanted = c["values"];
    for (size_t t = 0; t < wanted.size(); ++t)
      EXPECT_NEAR(learning_rate(config, c["lr"], static_cast<int64_t>(t), 1, 1000), wanted[t],
                  1e-12)
          << c << t;
  }
  for (const auto& c : json["torch_multi_step"]) {
    const ScheduleConfig config{
        .type = ScheduleType::steps, .milestones = c["milestones"], .decay = c["decay"]};
    const std::vector<double> wanted = c["values"];
    for (size_t t = 0; t < wanted.size(); ++t)
      EXPECT_NEAR(learning_rate(config, c["lr"], static_cast<int64_t>(t), 1, 1000), wanted[t],
                  1e-12);
  }
}

TEST(Schedule, CoolsDownAtTheMinimum) {
  const ScheduleConfig config{.min_lr = 1e-6, .cooldown = 10};
  EXPECT_GT(learning_rate(config, 1e-3, 89, 1, 100), 1e-6);
  for (int64_t step = 90; step < 100; ++step)
    EXPECT_EQ(learning_rate(config, 1e-3, step, 1, 100), 1e-6);
}

}  // namespace
}  // namespace convpass
