#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "convpass/adapters/adapter.h"
#include "convpass/adapters/tuned_model.h"
#include "convpass/core/tensor_map.h"
#include "convpass/models/vit.h"

// What tests/reference/convpass_steps.py wrote, and the tiny models that it is compared with.
namespace convpass {

inline std::filesystem::path reference_file(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "convpass" / name;
}

inline ::testing::AssertionResult close(const at::Tensor& got, const at::Tensor& wanted,
                                        double tolerance) {
  if (got.sizes() != wanted.sizes())
    return ::testing::AssertionFailure() << got.sizes() << " against " << wanted.sizes();
  const double worst = (got.to(at::kDouble) - wanted.to(at::kDouble)).abs().max().item<double>();
  if (worst <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "differs by " << worst << ", allowed " << tolerance;
}

inline VitConfig tiny_config() {
  VitConfig config;
  config.width = 32;
  config.depth = config.heads = 2;
  config.hidden = 64;
  config.patch = config.grid_height = config.grid_width = 4;
  return config;
}

inline TunedModel tiny_model(const AdapterConfig& adapter, int64_t classes = 5,
                             const Vit::Options& options = {.image_size = {16, 16}}) {
  TunedModel model;
  VitConfig config = tiny_config();
  TensorMap weights = Vit::random_weights(config, 7);
  model.backbone = std::make_unique<Vit>(config, weights, options);
  model.identity = {.name = "tiny",
                    .format = "random",
                    .hash = "0123456789abcdef0123456789abcdef01234567",
                    .position_resize = "none",
                    .normalization = {},
                    .architecture = "{}"};
  model.adapter = make_adapter(adapter, *model.backbone, 1);
  model.head = make_head({}, config.width, classes, 2);
  model.to(at::kCPU, Precision::f32);
  return model;
}

/// The ViT of the reference files, not moved yet.
inline TunedModel reference_model(const AdapterConfig& adapter, Pool pool = Pool::cls) {
  VitConfig config = tiny_config();
  config.hidden = 4 * config.width;
  TunedModel model;
  TensorMap weights = load_tensors(reference_file("vit_tiny.safetensors"));
  weights.metadata.clear();
  model.backbone =
      std::make_unique<Vit>(config, weights, Vit::Options{.image_size = {16, 16}, .pool = pool});
  model.identity = {.name = "tiny",
                    .format = "timm",
                    .hash = "0123456789abcdef0123456789abcdef01234567",
                    .position_resize = "none",
                    .normalization = {},
                    .architecture = "{}"};
  model.adapter = make_adapter(adapter, *model.backbone, 1);
  model.head = make_head({}, config.width, 5, 2);
  return model;
}

/// Gives every trainable tensor the value that the map has under prefix + name.
inline void set_trainable_values(const TunedModel& model, const TensorMap& map,
                                 const std::string& prefix) {
  at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : model.trainable()) tensor.copy_(map.at(prefix + name));
}

}  // namespace convpass
