#pragma once

#include <filesystem>
#include <string>

#include "convpass/core/tensor_map.h"
#include "convpass/models/tresnet.h"

namespace convpass {

/// The naming conventions of TResNet files.
enum class TResnetFormat {
  timm,  ///< body.layer1.0.conv1.conv.weight
  miil,  ///< the authors' (Alibaba-MIIL), and timm's before 0.9: body.layer1.0.conv1.0.weight
};

/// A TResNet checkpoint brought to the reference naming.
struct TResnetCheckpoint {
  TResnetFormat format = TResnetFormat::timm;
  TResnetConfig config;
  TensorMap backbone;  ///< timm names, f32, what TResnet takes, no head
  TensorMap head;      ///< head.weight [K, D], head.bias [K] that were in the file, or none
  Normalization normalization;  ///< mean 0 and std 1 unless a file beside it says otherwise
  std::string hash;             ///< of the backbone tensors
};

/// Whether some name is one of a TResNet file.
bool is_tresnet_checkpoint(const TensorMap& tensors);

/// Reads either naming: depth, width and kind of blocks are those of the tensors. The authors'
/// norms are in-place activated ones, whose weight w becomes |w| + 1e-5, as timm converts them.
/// Counters of batches are dropped. A `config.json` beside it may tell mean and std.
///
/// Errors: FileError naming missing and left-over tensors and those of a wrong shape or type.
TResnetCheckpoint load_tresnet_checkpoint(const std::filesystem::path& file);

/// The same from tensors already read; `file` is for messages and for config.json.
TResnetCheckpoint tresnet_checkpoint_from(const TensorMap& tensors,
                                          const std::filesystem::path& file);

/// The inverse, in timm's names; the metadata tells mean and std.
TensorMap tresnet_checkpoint_as_timm(const TResnetCheckpoint& checkpoint);

std::string_view tresnet_format_name(TResnetFormat format);  ///< "timm", "miil"

}  // namespace convpass
