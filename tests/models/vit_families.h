#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/models/vit_checkpoint.h"

// The folders of tests/data/vit (made by tests/reference/vit_features.py) and what is known of
// each.
namespace convpass {

struct VitFamily {
  const char* name;
  const char* file;
  VitFormat format;
  VitConfig config;
  Normalization normalization;
};

inline std::filesystem::path family_folder(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "vit" / name;
}
inline std::filesystem::path family_file(const VitFamily& family) {
  return family_folder(family.name) / family.file;
}

inline VitConfig tiny_vit(void (*change)(VitConfig&)) {
  VitConfig config;
  config.width = 32;
  config.depth = config.heads = 2;
  config.hidden = 64;
  config.patch = config.grid_height = config.grid_width = 4;
  change(config);
  return config;
}

inline const std::vector<VitFamily>& vit_families() {
  using C = VitConfig&;
  using F = VitFormat;
  using P = PositionResize;
  static const Normalization imagenet{}, half{{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}},
      clip{{0.48145466, 0.4578275, 0.40821073}, {0.26862954, 0.26130258, 0.27577711}};
  static constexpr auto plain = [](C) {};
  static constexpr auto distilled = [](C c) { c.distillation_token = true; };
  static constexpr auto deit3 = [](C c) {
    c.layer_scale = true;
    c.prefix_positions = false;
  };
  static constexpr auto registers = [](C c) {
    deit3(c);
    c.registers = 4;
  };
  static constexpr auto mean = [](C c) {
    c.class_token = false;
    c.pool = Pool::mean;
  };
  static constexpr auto clip_tower = [](C c) {
    c.pre_norm = true;
    c.patch_bias = false;
    c.eps = 1e-5;
  };
  static constexpr auto hf = [](C c) {
    c.eps = 1e-12;
    c.position_resize = P::bicubic;
  };
  static constexpr auto hf_distilled = [](C c) {
    hf(c);
    c.distillation_token = true;
  };
  static constexpr auto hf_dino = [](C c) {
    c.layer_scale = true;
    c.position_resize = P::bicubic;
  };
  static constexpr auto hf_clip = [](C c) {
    clip_tower(c);
    c.activation = Activation::quick_gelu;
    c.position_resize = P::bicubic;
  };
  static constexpr auto dino = [](C c) {
    c.layer_scale = true;
    c.position_resize = P::dinov2_scale_offset;
  };
  static constexpr auto bilinear = [](C c) { c.position_resize = P::bilinear; };
  static constexpr auto big_vision = [](C c) {
    c.prefix_positions = false;
    c.activation = Activation::gelu_tanh;
    c.position_resize = P::spline_order1;
  };
  const char* safetensors = "model.safetensors";
  const char* dino_file = "dinov2_vitb14_pretrain.pth";
  static const std::vector<VitFamily> families{
      {"timm_vit", safetensors, F::timm, tiny_vit(plain), half},
      {"timm_vit_fc_norm", safetensors, F::timm, tiny_vit([](C c) {
         c.pool = Pool::mean;
         c.pooled_norm = true;
       }),
       half},
      {"timm_vit_gap", safetensors, F::timm, tiny_vit(mean), half},
      {"timm_deit_distilled", safetensors, F::timm, tiny_vit(distilled), imagenet},
      {"timm_deit3", safetensors, F::timm, tiny_vit(deit3), imagenet},
      {"timm_dinov2", safetensors, F::timm, tiny_vit([](C c) { c.layer_scale = true; }), imagenet},
      {"timm_dinov2_reg4", safetensors, F::timm, tiny_vit(registers), imagenet},
      {"timm_swiglu", safetensors, F::timm, tiny_vit([](C c) {
         c.layer_scale = true;
         c.activation = Activation::swiglu;
         c.hidden = 48;
       }),
       imagenet},
      {"timm_clip_quickgelu", safetensors, F::timm, tiny_vit([](C c) {
         clip_tower(c);
         c.activation = Activation::quick_gelu;
       }),
       clip},
      {"timm_clip", safetensors, F::timm, tiny_vit(clip_tower), clip},
      {"timm_reg1_gap", safetensors, F::timm, tiny_vit([](C c) {
         mean(c);
         c.pooled_norm = true;
         c.layer_scale = true;
         c.registers = 1;
       }),
       half},
      {"google_original", "ViT-B_16.npz", F::google_npz, tiny_vit(bilinear), half},
      {"google_opt_target", "ViT-B_16.npz", F::google_npz, tiny_vit(bilinear), half},
      {"google_big_vision", "checkpoint.npz", F::google_npz, tiny_vit(big_vision), half},
      {"google_scan", "checkpoint.npz", F::google_npz, tiny_vit([](C c) {
         mean(c);
         big_vision(c);
         c.prefix_positions = true;
       }),
       half},
      {"hf_vit", safetensors, F::hf_vit, tiny_vit(hf), half},
      {"hf_vit_classifier", safetensors, F::hf_vit, tiny_vit(hf), half},
      {"hf_vit_v5", safetensors, F::hf_vit, tiny_vit(hf), half},
      {"hf_deit_bare", safetensors, F::hf_deit, tiny_vit(hf_distilled), imagenet},
      {"hf_deit_classifier", safetensors, F::hf_deit, tiny_vit(hf_distilled), imagenet},
      {"hf_deit_distilled", safetensors, F::hf_deit, tiny_vit(hf_distilled), imagenet},
      {"hf_dinov2", safetensors, F::hf_dinov2, tiny_vit(hf_dino), imagenet},
      {"hf_dinov2_classifier", safetensors, F::hf_dinov2, tiny_vit(hf_dino), imagenet},
      {"hf_dinov2_v5", safetensors, F::hf_dinov2, tiny_vit(hf_dino), imagenet},
      {"hf_dinov2_registers", safetensors, F::hf_dinov2, tiny_vit(registers), imagenet},
      {"hf_dinov2_swiglu", safetensors, F::hf_dinov2, tiny_vit([](C c) {
         hf_dino(c);
         c.activation = Activation::swiglu;
         c.hidden = 48;
       }),
       imagenet},
      {"hf_clip", safetensors, F::hf_clip, tiny_vit(hf_clip), clip},
      {"hf_clip_vision", safetensors, F::hf_clip, tiny_vit(hf_clip), clip},
      {"openai_clip", "ViT-B-16.pt", F::clip, tiny_vit([](C c) {
         clip_tower(c);
         c.activation = Activation::quick_gelu;
         c.width = 64;
         c.hidden = 128;
         c.heads = 1;
       }),
       clip},
      {"open_clip", "open_clip_pytorch_model.bin", F::clip, tiny_vit(clip_tower), clip},
      {"deit_distilled", "deit_base_distilled.pth", F::timm, tiny_vit(distilled), imagenet},
      {"deit3", "deit_3_base_224_1k.pth", F::timm, tiny_vit(deit3), imagenet},
      {"dinov2", dino_file, F::dinov2, tiny_vit(dino), imagenet},
      {"dinov2_registers", dino_file, F::dinov2, tiny_vit(registers), imagenet},
      {"dinov2_swiglu", dino_file, F::dinov2, tiny_vit([](C c) {
         dino(c);
         c.activation = Activation::swiglu;
         c.hidden = 48;
       }),
       imagenet},
      {"dinov2_teacher", dino_file, F::dinov2, tiny_vit(dino), imagenet},
  };
  return families;
}

inline std::string family_name(const testing::TestParamInfo<VitFamily>& info) {
  return info.param.name;
}
inline void PrintTo(const VitFamily& family, std::ostream* out) { *out << family.name; }

}  // namespace convpass
