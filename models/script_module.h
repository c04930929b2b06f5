#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <filesystem>
#include <memory>

#include "convpass/models/backbone.h"

namespace convpass {

/// A TorchScript file, loaded: from images to one tensor. A TorchScript file is code.
class ScriptModule {
 public:
  /// Loaded on the CPU in evaluation mode and in float32. Errors: FileError for a file that is
  /// none.
  explicit ScriptModule(std::filesystem::path file);
  ~ScriptModule();

  /// The width N of its answers to images of this size. Errors: FileError where they depend on the
  /// other images of the batch: what torch.jit.trace saw in training mode.
  int64_t width(const std::array<int64_t, 2>& image_size) const;
  /// Moves all, and casts what is floating point.
  void to(c10::Device device, c10::ScalarType type);
  void train(bool on);
  NamedTensors parameters() const;
  NamedTensors buffers() const;
  /// Whether some batch norm was traced in evaluation mode, which no train() changes any more.
  bool norms_are_fixed() const;
  /// images `[B, 3, H, W]` of the module's type -> `[B, N]`. Where gradients are recorded, its
  /// operators run one by one as written, from the first call on: LibTorch would rewrite the code
  /// after it has watched some calls, so that a resumed run would differ from one that was never
  /// stopped. Errors: FileError when it fails or gives something else.
  at::Tensor forward(const at::Tensor& images) const;
  const std::filesystem::path& file() const { return file_; }

 private:
  struct Impl;
  std::filesystem::path file_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace convpass
