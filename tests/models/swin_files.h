#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "convpass/models/swin_checkpoint.h"

// The folders of tests/data/swin (made by tests/reference/swin_features.py) and what is known of
// them.
namespace convpass {

inline std::filesystem::path swin_file(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "swin" / name;
}

/// "shifted": the second block of the first stage moves its windows, the second stage is one window
/// at 32 pixels. "clipped": windows of 7, cut to the grids of the second and third stage.
inline SwinConfig tiny_swin(const std::string& name = "shifted") {
  if (name == "shifted") return {.width = 16, .depths = {2, 2}, .heads = {2, 4}, .windows = {4, 4}};
  return {.width = 8, .depths = {1, 2, 1}, .heads = {1, 2, 4}, .windows = {7, 4, 2}};
}

/// The images of the script.
inline at::Tensor swin_images(int64_t count, int64_t height, int64_t width) {
  const at::Tensor number = at::arange(count * 3 * height * width, at::kLong);
  return (number * number)
      .remainder(1009)
      .to(at::kFloat)
      .div(1009)
      .sub(0.5)
      .view({count, 3, height, width});
}

}  // namespace convpass
