#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/train/schedule.h"
#include "src/train/ema.h"

namespace convpass {
namespace {

/// What tests/reference/timm_training.py found timm to do.
const nlohmann::json& timm() {
  static const nlohmann::json data = [] {
    std::ifstream file(std::filesystem::path(CONVPASS_TEST_DATA) / "timm_training.json");
    return nlohmann::json::parse(file);
  }();
  return data;
}

EmaConfig config_of(const nlohmann::json& settings) {
  return {.decay = 0.9,
          .form = settings.at("form") == "v2" ? EmaForm::v2 : EmaForm::v3,
          .start = settings.value("start", int64_t{0}),
          .warmup = settings.value("warmup", false),
          .copy_buffers = settings.value("copy_buffers", false)};
}

TEST(Ema, EqualsTimmsOfWeightsAndBuffers) {
  for (const auto& settings : timm().at("average")) {
    const at::Tensor weight = at::tensor({1.0f, -2.0f}), mean = at::tensor({0.5f});
    const at::Tensor batches = at::zeros({}, at::kLong);
    Ema ema(config_of(settings), {{"weight", weight}}, {{"mean", mean}, {"batches", batches}});
    int64_t step = 0;
    for (const auto& wanted : settings.at("steps")) {
      ++step;
      weight.copy_(at::tensor({1.0f + static_cast<float>(step), static_cast<float>(step) * -0.5f}));
      mean.fill_(static_cast<double>(step) * 0.25);
      batches.add_(7);
      ema.update(step);
      const TensorMap state = ema.state();
      const auto weights = wanted.at("weight").get<std::vector<float>>();
      EXPECT_TRUE(at::allclose(state.at("weight"), at::tensor(weights), 1e-6, 1e-7)) << settings;
      EXPECT_NEAR(state.at("mean").item<double>(), wanted.at("mean").at(0).get<double>(), 1e-6);
      EXPECT_EQ(state.at("batches").item<int64_t>(), wanted.at("batches").get<int64_t>())
          << settings.at("form") << " step " << step;
    }
  }
}

TEST(Ema, DecayStartsLateAndWarmsUpAsTimms) {
  EmaConfig late{.decay = 0.9999, .form = EmaForm::v3, .start = 3};
  EmaConfig warm{.decay = 0.9999, .form = EmaForm::v3, .warmup = true};
  const auto& wanted = timm().at("decay");
  for (int64_t step = 1; step <= 8; ++step)
    EXPECT_DOUBLE_EQ(decay_at(late, step), wanted.at("late").at(step - 1).get<double>());
  const int64_t steps[] = {1, 2, 3, 10, 1000, 1'000'000, 10'000'000};
  for (size_t i = 0; i < std::size(steps); ++i)
    EXPECT_NEAR(decay_at(warm, steps[i]), wanted.at("warm").at(i).get<double>(), 1e-15);
}

TEST(Ema, StateComesBackAndAnotherTypeIsRefused) {
  const NamedTensors weights{{"w", at::ones({2})}}, buffers{{"n", at::zeros({}, at::kLong)}};
  Ema ema({.decay = 0.5}, weights, buffers);
  TensorMap state = ema.state();
  state.tensors["w"] = at::full({2}, 9.0);
  ema.load_state(state);
  EXPECT_TRUE(at::equal(ema.state().at("w"), at::full({2}, 9.0f)));
  state.tensors["n"] = at::zeros({});
  EXPECT_THROW(ema.load_state(state), Error);
}

TEST(Schedule, EqualsTimmsOfUsi) {
  const ScheduleConfig config{.type = ScheduleType::cosine,
                              .unit = ScheduleUnit::epoch,
                              .warmup = 5,
                              .warmup_lr = 1e-4,
                              .min_lr = 1e-6,
                              .cooldown = 10,
                              .warmup_prefix = false};
  const auto rates = timm().at("schedule").get<std::vector<double>>();
  ASSERT_EQ(rates.size(), 310u);
  constexpr int64_t kSteps = 7;  // an epoch
  for (size_t epoch = 0; epoch < rates.size(); ++epoch)
    for (int64_t step : {int64_t{0}, kSteps - 1})
      EXPECT_NEAR(learning_rate(config, 2e-3, static_cast<int64_t>(epoch) * kSteps + step, kSteps,
                                310 * kSteps),
                  rates[epoch], 1e-12)
          << epoch;
}

}  // namespace
}  // namespace convpass
