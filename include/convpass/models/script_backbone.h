#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <string>

#include "convpass/models/backbone.h"

namespace convpass {

class FieldVisitor;
class ScriptModule;

/// What an adapter file says of a TorchScript backbone; its code is in the file alone.
struct ScriptConfig {
  std::string name;                             ///< the file's stem
  std::array<int64_t, 2> image_size{224, 224};  ///< height, width it is meant for

  bool operator==(const ScriptConfig&) const = default;
};
void fields(FieldVisitor& visitor, ScriptConfig& config);

/// SHA-1 of a TorchScript file, code and weights. Errors: FileError.
std::string script_hash(const std::filesystem::path& file);

/// Any network as a TorchScript module from images to features `[B, N]`: PyTorch's own code runs,
/// so what it computes is its author's affair. No adapter can stand beside it. Parameters and
/// buffers carry the module's own names.
///
/// A file that torch.jit.trace made has its batch norms and dropouts as they were traced; one that
/// torch.jit.script made can train.
class ScriptBackbone final : public Backbone {
 public:
  struct Options {
    std::array<int64_t, 2> image_size{224, 224};  ///< height, width
  };

  /// Runs the module a few times. Errors: FileError for a file that is no TorchScript, does not
  /// make features of such images, or makes others of the same image in another batch.
  ScriptBackbone(const std::filesystem::path& file, const Options& options);
  ~ScriptBackbone() override;

  /// Dropout inside draws from LibTorch's default generator, which `pass.random` seeds.
  at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                     const Pass& pass) const override;

  int64_t feature_dim() const override { return features_; }
  int64_t depth() const override { return 0; }
  /// Counted: the outputs of all operators on one image, or the largest of them.
  int64_t step_values(const Adapter* adapter, bool trainable) const override {
    return trainable ? all_values_ : most_values_;
  }
  std::array<int64_t, 2> image_size() const override { return options_.image_size; }
  NamedTensors parameters() const override;
  NamedTensors buffers() const override;
  void to(c10::Device device, Precision precision) override;
  /// Errors: FileError for a module without parameters, for one whose batch norms were traced in
  /// evaluation mode, and for one whose features carry no gradient.
  void set_trainable(bool trainable) override;
  std::string describe() const override;

 private:
  void run_once();
  bool passes_gradients() const;

  Options options_;
  std::unique_ptr<ScriptModule> module_;
  c10::ScalarType dtype_ = c10::kFloat;
  bool trainable_ = false;
  int64_t features_, all_values_ = 0, most_values_ = 0;
};

}  // namespace convpass
