#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/core/tensor_map.h"

namespace convpass {

/// `adapter.safetensors`: the trained tensors and all that is needed to use them rightly.
struct AdapterFile {
  static constexpr int kVersion = 1;

  TensorMap weights;  ///< names as in TunedModel::state()
  BackboneIdentity backbone;
  std::array<int64_t, 2> image_size{224, 224};
  std::string pool = "auto";
  AdapterConfig adapter;
  HeadType head = HeadType::linear;
  std::string preprocessing;  ///< JSON text of the resolved input config (the engine's)
  std::vector<std::string> classes;
  std::string recipe_hash;
};

/// Writes safetensors, whole or not at all; equal content gives equal bytes.
void save_adapter(const std::filesystem::path& file, const AdapterFile& adapter);

/// Errors: FileError (damaged, not an adapter of ours, a newer version, tensors that do not fit).
AdapterFile load_adapter(const std::filesystem::path& file);

/// Errors: Error when the backbone is another than the file's (both names and hashes are shown).
void check_backbone(const AdapterFile& file, const BackboneIdentity& backbone);

/// Puts the weights of the file into a model built for it. Errors: Error when the backbone is
/// another (both names and hashes are shown), or a tensor is missing, left over or of another
/// shape.
void apply_adapter(const AdapterFile& file, TunedModel& model);

}  // namespace convpass
