// Time of the parts of a training step: one bypass, the whole model, checkpoint loading. Names end
// in the case's arguments; those with "tiny" run in a moment and are what continuous integration
// runs.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <benchmark/benchmark.h>

#include <filesystem>

#include "convpass/adapters/tuned_model.h"
#include "convpass/core/rng.h"
#include "convpass/models/vit_checkpoint.h"
#include "convpass/train/optimizer.h"

namespace convpass {
namespace {

VitConfig tiny_variant() {
  VitConfig config;
  config.width = 64;
  config.depth = config.heads = 2;
  config.hidden = 256;
  config.grid_height = config.grid_width = 4;
  return config;
}

VitConfig variant_named(const std::string& name) {
  return name == "tiny" ? tiny_variant() : vit_variant(name);
}

std::unique_ptr<Vit> random_vit(const VitConfig& config, Precision precision, double drop_path) {
  auto vit = std::make_unique<Vit>(config, Vit::random_weights(config, 1),
                                   Vit::Options{.image_size = {config.grid_height * config.patch,
                                                               config.grid_width * config.patch},
                                                .drop_path = drop_path});
  vit->to(at::kCPU, precision);
  return vit;
}

TunedModel random_model(const std::string& variant, bool adapter, Precision precision) {
  const VitConfig config = variant_named(variant);
  TunedModel model;
  model.backbone = random_vit(config, precision, 0.1);
  if (adapter)
    model.adapter = make_adapter(ConvpassConfig{.conv_init = ConvInit::xavier}, *model.backbone, 1);
  model.head = make_head({}, config.width, 100, 2);
  model.to(at::kCPU, precision);
  return model;
}

/// One bypass on tokens [batch, 1 + grid^2, dim].
void BM_Bypass(benchmark::State& state, bool backward, const std::string& variant, int64_t batch,
               int64_t width, Precision precision) {
  auto vit = random_vit(variant_named(variant), precision, 0);
  const TokenLayout layout = vit->layout();
  Convpass adapter(ConvpassConfig{.width = width}, *vit, 1);
  adapter.to(at::kCPU);
  at::Tensor tokens =
      at::randn({batch, layout.tokens(), vit->feature_dim()}).to(dtype_of(precision));
  at::Tensor gradient = at::randn_like(tokens);
  tokens.set_requires_grad(backward);
  for (auto _ : state) {
    at::AutoGradMode graph(backward);
    at::Tensor output = adapter.beside(0, Site::attn, tokens, layout, Pass{});
    if (backward) output.backward(gradient);
    benchmark::DoNotOptimize(output.data_ptr());
  }
  state.SetItemsProcessed(state.iterations() * batch);
}

/// Features without a graph, or a whole training step with AdamW.
void BM_Model(benchmark::State& state, bool training, const std::string& variant, int64_t batch,
              bool adapter, Precision precision) {
  TunedModel model = random_model(variant, adapter, precision);
  const auto size = model.backbone->image_size();
  at::Tensor images = at::randn({batch, 3, size[0], size[1]});
  at::Tensor labels = at::randint(100, {batch}, at::kLong);
  Optimizer optimizer({}, model.trainable());
  uint64_t step = 0;
  for (auto _ : state) {
    if (training) {
      optimizer.zero_grad();
      const Pass pass{seeded_generator(random_key(0, step++, 0, Purpose::model))};
      at::cross_entropy_loss(model.logits(images, pass), labels).backward();
      optimizer.step(1e-3);
    } else {
      at::NoGradGuard no_grad;
      benchmark::DoNotOptimize(model.logits(images, Pass{}).data_ptr());
    }
  }
  state.SetItemsProcessed(state.iterations() * batch);
}

void BM_LoadCheckpoint(benchmark::State& state, const std::string& variant) {
  const auto file =
      std::filesystem::temp_directory_path() / ("convpass_bench_" + variant + ".safetensors");
  save_safetensors(file, Vit::random_weights(variant_named(variant), 1));
  int64_t bytes = 0;
  for (auto _ : state) {
    VitCheckpoint checkpoint = load_vit_checkpoint(file);
    bytes += static_cast<int64_t>(std::filesystem::file_size(file));
    benchmark::DoNotOptimize(checkpoint.hash.data());
  }
  state.SetBytesProcessed(bytes);
  std::filesystem::remove(file);
}

const char* text(Precision precision) { return precision == Precision::f32 ? "f32" : "bf16"; }

const int registered = [] {
  for (const char* variant : {"tiny", "vit_small_patch14_98", "vit_base_patch16"})
    for (int64_t batch : {1, 16})
      for (int64_t width : {8, 32})
        for (Precision precision : {Precision::f32, Precision::bf16})
          for (bool backward : {false, true})
            benchmark::RegisterBenchmark(
                ("bypass/" + std::string(backward ? "backward/" : "forward/") + variant +
                 "/batch:" + std::to_string(batch) + "/h:" + std::to_string(width) + "/" +
                 text(precision))
                    .c_str(),
                [=](benchmark::State& state) {
                  BM_Bypass(state, backward, variant, batch, width, precision);
                })
                ->Unit(benchmark::kMillisecond)
                ->UseRealTime();
  for (const char* variant : {"tiny", "vit_small_patch16", "vit_base_patch16"}) {
    for (bool adapter : {false, true})
      for (Precision precision : {Precision::f32, Precision::bf16})
        for (bool training : {false, true})
          benchmark::RegisterBenchmark(
              ("model/" + std::string(training ? "step/" : "inference/") + variant + "/batch:16/" +
               (adapter ? "convpass" : "plain") + "/" + text(precision))
                  .c_str(),
              [=](benchmark::State& state) {
                BM_Model(state, training, variant, 16, adapter, precision);
              })
              ->Unit(benchmark::kMillisecond)
              ->UseRealTime();
    benchmark::RegisterBenchmark(
        ("load_checkpoint/" + std::string(variant)).c_str(),
        [=](benchmark::State& state) { BM_LoadCheckpoint(state, variant); })
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  return 0;
}();

}  // namespace
}  // namespace convpass
