#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "convpass/models/vit_checkpoint.h"

// How the ViT files of other projects name and lay out their tensors (spec: checkpoints.md). One
// table per format; names.cpp walks a table in both directions.
namespace convpass {

/// What a source tensor is in that format, and so how it becomes timm's.
enum class Layout {
  same,         ///< as it is
  transposed,   ///< [in, out] -> [out, in]
  convolution,  ///< HWIO -> OIHW
  vector,       ///< any shape -> [n]
  token,        ///< [D] -> [1, 1, D]
  table,        ///< [N, D] -> [1, N, D]
  heads_in,     ///< [D, heads, d] -> [heads d, D]
  heads_bias,   ///< [heads, d] -> [heads d]
  heads_out,    ///< [heads, d, D] -> [D, heads d]
};

/// When a rule is used in writing; in reading, the names that are there decide.
enum class When { always, gated, plain };

/// One tensor of timm's made of one source tensor, or of several stacked along the first axis.
struct NameRule {
  std::string target;
  std::vector<std::string> sources;
  Layout layout = Layout::same;
  When when = When::always;
};
using NameRules = std::vector<NameRule>;

/// A spelling that some files have, brought to the one that the rules use (an ECMAScript
/// expression).
struct Respelling {
  std::string pattern, replacement;
};

/// One source format.
struct NameTable {
  VitFormat format = VitFormat::timm;
  /// A file is of this format when, behind one of the prefixes, it has one of these names.
  std::vector<std::string> signatures;
  std::vector<std::string> prefixes;
  std::vector<Respelling> respellings;
  std::string block;  ///< what stands before the block number in this format
  std::string after_block = ".";
  std::string stacked;    ///< beginning of names whose tensors hold all blocks along a leading axis
  NameRules rules;        ///< outside the blocks
  NameRules block_rules;  ///< names relative to the block
  NameRules head_rules;   ///< old heads, with or without the prefix
  std::vector<std::string> ignored;          ///< beginnings of names behind the prefix
  std::vector<std::string> ignored_outside;  ///< beginnings of names without the prefix
  std::string written_prefix, written_prefix_with_head;
  bool head_inside = false;  ///< the old head stands behind the prefix
  bool prefix_rows = false;  ///< its position table always has rows for the prefix tokens
  std::vector<std::pair<std::string, std::vector<int64_t>>>
      fillers;  ///< zeros that writing adds; -1 = D
};

const NameTable& timm_names();
const NameTable& dinov2_names();
const NameTable& google_names();
const NameTable& hf_vit_names();
const NameTable& hf_deit_names();
const NameTable& hf_dinov2_names();
const NameTable& clip_names();
const NameTable& hf_clip_names();

/// In the order in which a file is tried: the special before the general.
const std::vector<const NameTable*>& all_name_tables();

/// `.weight` and `.bias` of a torch module, as they are.
void add_module(NameRules& rules, const std::string& target, const std::string& source,
                When when = When::always);

/// A file in timm's names, before anyone has asked whether all that belongs to a model is there.
struct RenamedTensors {
  std::map<std::string, at::Tensor> backbone, head;  ///< f32
  std::map<std::string, std::string> origin;  ///< timm name -> name in the file, for messages
  /// Stacked tensors of which some parts (q, k, v) are not there: timm name -> the parts' names.
  std::map<std::string, std::vector<std::string>> incomplete;
  std::vector<std::string> left_over;  ///< names that no rule and no ignore list knows
  int64_t depth = 0;
  std::optional<int64_t> heads;  ///< where the layout tells (Flax)
};

/// The prefix behind which `tensors` has a signature of the table.
std::optional<std::string> matching_prefix(const NameTable& table, const TensorMap& tensors);

RenamedTensors to_timm(const NameTable& table, const std::string& prefix, const TensorMap& tensors,
                       const std::filesystem::path& file);

/// Errors: Error naming the first tensor for which the format has no name.
std::map<std::string, at::Tensor> from_timm(const NameTable& table,
                                            const VitCheckpoint& checkpoint);

/// Names in the format's spelling under which a timm tensor would stand, for messages about missing
/// ones.
std::vector<std::string> source_names(const NameTable& table, const std::string& prefix,
                                      const std::string& target);

/// Every tensor of a backbone with its shape.
std::map<std::string, std::vector<int64_t>> vit_shapes(const VitConfig& config);

/// What a configuration file beside the weights says.
struct ConfigFacts {
  std::filesystem::path file;  ///< for messages
  std::optional<int64_t> width, heads, head_width, depth, registers;
  std::optional<double> eps;
  std::optional<Activation> activation;
  std::optional<Pool> pool;
  std::optional<std::array<int64_t, 2>> image_size;
  std::optional<Normalization> normalization;
};

/// Reads what that format keeps beside its weights: config.json and preprocessor_config.json
/// (Hugging Face), config.json (timm), open_clip_config.json. Nothing there: nothing known. Errors:
/// FileError for a file that is no JSON, or whose values are of a wrong type or unknown.
ConfigFacts read_config_facts(VitFormat format, const std::filesystem::path& weights);

/// What the config.json of timm's hub beside the weights says in its `pretrained_cfg`. Errors:
/// FileError for a file that is no JSON, or whose values are of a wrong type.
std::optional<Normalization> timm_normalization(const std::filesystem::path& weights);

/// Mean and std as a file of ours keeps them, under this key of its metadata.
inline constexpr const char* kNormalizationKey = "normalization";
std::string normalization_text(const Normalization& normalization);
/// Errors: FileError.
Normalization normalization_from(const std::string& text, const std::filesystem::path& file);

}  // namespace convpass
