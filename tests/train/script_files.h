#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <filesystem>
#include <string>

namespace convpass {

/// A TorchScript file that returns `expression` of images x [B, 3, H, W] and self.weight [3, 3].
inline void write_script(const std::filesystem::path& file, const std::string& expression,
                         c10::ScalarType type = at::kFloat) {
  torch::jit::Module module("tests.Tiny");
  at::manual_seed(0);
  module.register_parameter("weight", at::randn({3, 3}).to(type), /*is_buffer=*/false);
  module.define("def forward(self, x):\n  return " + expression + "\n");
  module.save(file.string());
}

}  // namespace convpass
