#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "convpass/core/rng.h"
#include "convpass/core/tensor_map.h"
#include "convpass/train/recipe.h"
#include "convpass/train/trainer.h"
#include "tests/core/temp_folder.h"

namespace convpass {

/// A scratch folder with 60 small images in three classes, a tiny ViT file and a recipe that uses
/// them.
class TinyRun : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ / "weights");
    for (const auto& [split, images] : {std::pair{"train", 12}, {"val", 4}, {"test", 4}})
      for (int label = 0; label < 3; ++label) {
        const auto to = folder_ / "images" / split / std::string(1, static_cast<char>('a' + label));
        std::filesystem::create_directories(to);
        for (int i = 0; i < images; ++i)
          write_bmp(to / (std::to_string(i) + ".bmp"), label, Rng(label * 1000 + i));
      }
    VitConfig config;
    config.width = 32;
    config.depth = config.heads = 2;
    config.hidden = 64;
    config.patch = config.grid_height = config.grid_width = 4;
    TensorMap map = Vit::random_weights(config, 3);
    for (auto& [name, tensor] : map.tensors)
      if (tensor.dim() > 1) tensor.mul_(8);
    save_safetensors(weights(), map);
    std::ofstream(folder_ / "weights/config.json") << R"({"model_args": {"num_heads": 2}})";
    std::ofstream(folder_ / "recipe.json") << R"({
      "backbone": {"weights": "weights/tiny.safetensors", "drop_path": 0.1},
      "adapter": {"type": "convpass", "width": 4, "conv_init": "xavier"},
      "data": {"train": {"format": "folder", "path": "images/train"},
               "val": {"format": "folder", "path": "images/val"},
               "test": {"format": "folder", "path": "images/test"}},
      "optimizer": {"lr": 0.01},
      "train": {"epochs": 3, "batch_size": 8, "device": "cpu"}
    })";
  }

  const std::filesystem::path& folder() const { return folder_.path(); }
  std::filesystem::path weights() const { return folder_ / "weights/tiny.safetensors"; }
  Recipe tiny_recipe(const std::vector<std::string>& sets = {}) const {
    return load_recipe(folder_ / "recipe.json", sets);
  }

  /// Leaves in `out` what a kill right after the checkpoint of `step` would: the recipe, what the
  /// run is made from and that checkpoint, caught from a run while it goes on.
  void leave_killed_run(const Recipe& recipe, const std::filesystem::path& out,
                        int64_t step) const {
    for (int attempt = 0; attempt < 50; ++attempt) {
      const std::filesystem::path live = out.string() + "_live" + std::to_string(attempt);
      std::filesystem::remove_all(out);
      std::filesystem::create_directories(out);
      std::atomic<bool> caught = false;
      std::jthread catcher([&](std::stop_token stop) {
        std::error_code none;
        while (!caught && !stop.stop_requested()) {
          if (!std::filesystem::exists(live / "checkpoint.pt")) continue;
          std::filesystem::copy_file(live / "checkpoint.pt", out / "checkpoint.pt", none);
          caught = !none;
        }
      });
      train(recipe, live, false);
      catcher.request_stop();
      catcher.join();
      if (!caught) continue;
      const at::Tensor progress = load_tensors(out / "checkpoint.pt").at("progress");
      if (static_cast<int64_t>(progress[0].item<double>()) != step) continue;
      for (const char* name : {"recipe.json", "made_from.json"})
        std::filesystem::copy_file(live / name, out / name);
      return;
    }
    FAIL() << "no checkpoint of step " << step << " could be caught";
  }

 private:
  /// 20x16 pixels, 24-bit BMP: a colour that depends on the label, with noise.
  static void write_bmp(const std::filesystem::path& file, int label, Rng rng) {
    constexpr uint32_t kWidth = 20, kHeight = 16, kBytes = kWidth * kHeight * 3;
    std::string bytes = "BM";
    auto word = [&](uint32_t value) { bytes.append(reinterpret_cast<const char*>(&value), 4); };
    word(54 + kBytes), word(0), word(54), word(40), word(kWidth), word(kHeight);
    word(1 | 24 << 16), word(0), word(kBytes), word(2835), word(2835), word(0), word(0);
    for (uint32_t i = 0; i < kWidth * kHeight; ++i)
      for (int channel = 0; channel < 3; ++channel)
        bytes += static_cast<char>((channel == label ? 120 : 60) + rng.below(100));
    std::ofstream(file, std::ios::binary) << bytes;
  }

  TempFolder folder_;
};

}  // namespace convpass
