#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "convpass/core/device.h"
#include "convpass/data/pipeline.h"
#include "convpass/train/objective.h"

namespace convpass {

class FieldVisitor;

/// A model of ours: an adapter file (or a run folder) and its backbone.
struct AdapterTeacher {
  std::filesystem::path adapter;
  std::filesystem::path backbone;  ///< empty: as the recipe.json beside the adapter says
};
/// A classifier of timm, Hugging Face or Google with its head in the file.
struct CheckpointTeacher {
  std::filesystem::path weights;
  std::vector<int64_t> image_size;       ///< empty = the checkpoint's own
  std::vector<std::string> class_names;  ///< empty = 0, 1, 2, ...
  InputConfig input;                     ///< its evaluation view
};
/// A TorchScript file whose `forward` maps images `[B, 3, H, W]` to logits `[B, K]`, with a `.json`
/// of the same stem beside it: {"classes": [names], "input": {size, mean, std, ...}} (scripts/
/// export_torchscript.py writes both).
struct TorchScriptTeacher {
  std::filesystem::path file;
};

struct TeacherConfig {
  std::variant<AdapterTeacher, CheckpointTeacher, TorchScriptTeacher> source;
  Precision precision = Precision::f32;  ///< bf16: its weights and activations, logits stay f32
};
void fields(FieldVisitor& visitor, AdapterTeacher& source);
void fields(FieldVisitor& visitor, CheckpointTeacher& source);
void fields(FieldVisitor& visitor, TorchScriptTeacher& source);
void fields(FieldVisitor& visitor, TeacherConfig& config);

/// A network that is asked and never trained: evaluation mode, no graph, no part of any checkpoint.
class Teacher {
 public:
  virtual ~Teacher() = default;
  /// images `[B, 3, H, W]` float32 of the size and normalisation of input(), on the teacher's
  /// device. `features` asks for TeacherOutput::features too.
  virtual TeacherOutput ask(const at::Tensor& images, bool features) const = 0;
  /// Width of the features, 0 when it has none to give.
  virtual int64_t feature_dim() const = 0;
  virtual int64_t weight_bytes() const = 0;
  /// Its own evaluation view; size, mean and std are set.
  const InputConfig& input() const { return input_; }
  const std::vector<std::string>& classes() const { return classes_; }
  /// Changes whenever its predictions could: a hash of its weights.
  const std::string& identity() const { return identity_; }

 protected:
  InputConfig input_;
  std::vector<std::string> classes_;
  std::string identity_;
};

/// Errors: FileError, Error (no file, no TorchScript, wrong output shape, wrong backbone).
std::unique_ptr<Teacher> load_teacher(const TeacherConfig& config, DeviceChoice device);

/// Images normalised with `from`'s mean and std as `to`'s would have them:
/// (x std_from + mean_from - mean_to) / std_to, channel by channel.
at::Tensor renormalized(const at::Tensor& images, const InputConfig& from, const InputConfig& to);

}  // namespace convpass
