#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "convpass/models/bit_checkpoint.h"

// How the BiT files of other projects name and lay out their tensors (spec: checkpoints.md). Every
// format has the tensors of timm, one for one, in units that are counted by stage and unit; so a
// table of its own is smaller than what names.h has for ViTs.
namespace convpass {

inline constexpr int64_t kMostUnits = 1024;  // a longer network is no model but a bad file

/// One source format.
struct BitNameTable {
  using Names = std::map<std::string, std::string>;  ///< here: timm's

  BitFormat format = BitFormat::timm;
  const char* name = "";
  double standardization_eps = 1e-8;  ///< of the code that the names belong to
  PoolPadding pool_padding = PoolPadding::zero;
  bool flax = false;            ///< kernels HWIO, dense layers [in, out]
  int64_t norm_dimensions = 1;  ///< of a norm's vectors
  int64_t head_dimensions = 4;  ///< of the old head's weight
  bool head_outside = false;    ///< the old head stands without the prefix, which is there for it
  std::vector<std::string> prefixes;
  /// A file is of this format when, behind one of the prefixes, it has one of these names.
  std::vector<std::string> signatures;
  /// A unit: before_stage S before_unit U after_unit, both counted from `first`, U in `digits`.
  std::string before_stage, before_unit, after_unit;
  int64_t first = 0;
  size_t digits = 1;
  Names rules, unit_rules, head_rules;       ///< unit_rules relative to the unit
  std::vector<std::string> ignored_outside;  ///< beginnings of names without the prefix

  std::string unit(int64_t stage, int64_t index) const;
};

const std::vector<BitNameTable>& bit_name_tables();
const BitNameTable& bit_name_table(BitFormat format);

/// The prefix behind which `tensors` has a signature of the table.
std::optional<std::string> matching_prefix(const BitNameTable& table, const TensorMap& tensors);

/// A file in timm's names, before anyone has asked whether all that belongs to a model is there.
struct RenamedBit {
  std::map<std::string, at::Tensor> backbone, head;  ///< f32
  std::map<std::string, std::string> origin;  ///< timm name -> name in the file, for messages
  std::vector<std::string> left_over;         ///< names that nothing knows
  std::vector<int64_t> units;                 ///< of each stage: one more than the highest
};

/// Errors: FileError for a tensor whose type or number of dimensions no such tensor has.
RenamedBit bit_to_timm(const BitNameTable& table, const std::string& prefix,
                       const TensorMap& tensors, const std::filesystem::path& file);

std::map<std::string, at::Tensor> bit_from_timm(const BitNameTable& table,
                                                const BitCheckpoint& checkpoint);

/// The name behind `prefix` of a tensor of timm's.
std::string bit_source_name(const BitNameTable& table, const std::string& prefix,
                            const std::string& target);

/// What a configuration file beside the weights says.
struct BitFacts {
  std::optional<int64_t> groups;
  std::optional<Normalization> normalization;
};
/// Errors: FileError for a file that is no JSON, whose values are of a wrong type, or of a Hugging
/// Face model that is another network.
BitFacts read_bit_facts(BitFormat format, const std::filesystem::path& weights);

}  // namespace convpass
