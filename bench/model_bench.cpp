// Time of the parts of a training step: one bypass, one block, the whole model, checkpoint loading.
// Names hold the case's arguments; those with "tiny" run in a moment and are what continuous
// integration runs.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <benchmark/benchmark.h>

#include <filesystem>

#include "convpass/adapters/tuned_model.h"
#include "convpass/core/rng.h"
#include "convpass/models/bit_resnet.h"
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

struct BypassCase {
  int64_t dim, grid, batch, width;  ///< of tokens [batch, 1 + grid^2, dim] and bottleneck
};

/// One bypass beside a branch that does nothing, its addition to the residual stream included.
void BM_Bypass(benchmark::State& state, const BypassCase& size, bool backward,
               Precision precision) {
  VitConfig config = tiny_variant();
  config.width = size.dim;
  config.depth = 1;
  auto vit = random_vit(config, precision, 0);
  const TokenLayout layout{.prefix = 1, .height = size.grid, .width = size.grid};
  Convpass adapter(ConvpassConfig{.width = size.width}, *vit, 1);
  adapter.to(at::kCPU);
  const at::Tensor tokens =
      at::randn({size.batch, layout.tokens(), size.dim}).to(dtype_of(precision));
  const at::Tensor gradient = at::randn_like(tokens), branch = at::randn_like(tokens);
  for (auto _ : state) {
    at::AutoGradMode graph(backward);
    at::Tensor normed = tokens.detach().set_requires_grad(backward);
    const at::Tensor begun = adapter.begin_beside(0, Site::attn, normed, layout);
    const at::Tensor sum =
        adapter.add_beside(0, Site::attn, {tokens, branch, normed, begun, 0}, layout, Pass{});
    if (backward) sum.backward(gradient);
    benchmark::DoNotOptimize(sum.data_ptr());
  }
  state.SetItemsProcessed(state.iterations() * size.batch);
}

/// Patch embedding, one block and the final norm, with bypasses or without: forward, or forward and
/// backward.
void BM_Block(benchmark::State& state, bool backward, const std::string& variant, bool adapter,
              Precision precision) {
  constexpr int64_t kBatch = 16;
  VitConfig config = variant_named(variant);
  config.depth = 1;
  auto vit = random_vit(config, precision, 0);
  std::unique_ptr<Adapter> bypasses;
  if (adapter) {
    bypasses = make_adapter(ConvpassConfig{}, *vit, 1);
    bypasses->to(at::kCPU);
  }
  const auto size = vit->image_size();
  at::Tensor images = at::randn({kBatch, 3, size[0], size[1]}).to(dtype_of(precision));
  images.set_requires_grad(backward);
  at::Tensor gradient;
  for (auto _ : state) {
    at::AutoGradMode graph(backward);
    at::Tensor tokens = vit->forward_tokens(images, bypasses.get(), Pass{});
    if (!gradient.defined()) gradient = at::randn_like(tokens);
    if (backward) tokens.backward(gradient);
    benchmark::DoNotOptimize(tokens.data_ptr());
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
}

/// A BiT that trains whole, or is frozen; "tiny" has two units.
TunedModel random_bit(const std::string& variant, bool trainable, Precision precision) {
  BitConfig config;
  if (variant == "tiny") {
    config.units = {1, 1};
    config.root = 32;
    config.widths = {128, 256};
  } else {
    config = bit_variant(variant);
  }
  const int64_t side = variant == "tiny" ? 32 : 224;
  TunedModel model;
  model.backbone = std::make_unique<BitResnet>(config, BitResnet::random_weights(config, 1),
                                               BitResnet::Options{.image_size = {side, side}});
  model.backbone_trainable = trainable;
  model.head = make_head({.init = HeadInit::zero}, config.widths.back(), 100, 2);
  model.to(at::kCPU, precision);
  return model;
}

/// Features without a graph, or a whole training step with AdamW.
void BM_Model(benchmark::State& state, bool training, int64_t batch, TunedModel model) {
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

void add(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMillisecond)->UseRealTime();
}

void add_bypass(const std::string& name, const BypassCase& size) {
  for (Precision precision : {Precision::f32, Precision::bf16})
    for (bool backward : {false, true})
      add("bypass/" + std::string(backward ? "backward/" : "forward/") + name + "/" +
              text(precision),
          [=](benchmark::State& state) { BM_Bypass(state, size, backward, precision); });
}

void add_models(const std::string& variant) {
  for (bool adapter : {false, true})
    for (Precision precision : {Precision::f32, Precision::bf16})
      for (bool backward : {false, true}) {
        const std::string end =
            "/" + variant + "/batch:16/" + (adapter ? "convpass/" : "plain/") + text(precision);
        add("block/" + std::string(backward ? "backward" : "forward") + end,
            [=](benchmark::State& state) {
              BM_Block(state, backward, variant, adapter, precision);
            });
        add("model/" + std::string(backward ? "step" : "inference") + end,
            [=](benchmark::State& state) {
              BM_Model(state, backward, 16, random_model(variant, adapter, precision));
            });
      }
  add("load_checkpoint/" + variant,
      [=](benchmark::State& state) { BM_LoadCheckpoint(state, variant); });
}

const int registered = [] {
  add_bypass("tiny", {.dim = 64, .grid = 4, .batch = 16, .width = 8});
  for (int64_t dim : {384, 768})
    for (int64_t grid : {7, 14, 32})
      for (int64_t batch : {1, 16})
        for (int64_t width : {8, 32})
          add_bypass("dim:" + std::to_string(dim) + "/tokens:" + std::to_string(1 + grid * grid) +
                         "/batch:" + std::to_string(batch) + "/h:" + std::to_string(width),
                     {.dim = dim, .grid = grid, .batch = batch, .width = width});
  for (const char* variant : {"tiny", "vit_small_patch16", "vit_base_patch16"}) add_models(variant);
  for (const char* variant : {"tiny", "resnetv2_50x1_bit"})
    for (const auto& [training, precision] :
         {std::pair{true, Precision::f32}, {false, Precision::f32}, {false, Precision::bf16}})
      add("bit/" + std::string(training ? "step/" : "inference/") + variant + "/batch:8/" +
              text(precision),
          [=, training = training, precision = precision](benchmark::State& state) {
            BM_Model(state, training, 8, random_bit(variant, training, precision));
          });
  return 0;
}();

}  // namespace
}  // namespace convpass
