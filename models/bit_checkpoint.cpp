#include "convpass/models/bit_checkpoint.h"

#include <ATen/ATen.h>

#include <numeric>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/vit_checkpoint.h"
#include "models/bit_shapes.h"
#include "models/names.h"
#include "models/names_bit.h"
#include "models/tensor_text.h"

namespace convpass {
namespace {

constexpr Normalization kHalf{{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}};
constexpr const char* kConfigKey = "bit_config";

/// Reads one checkpoint; the members are what the steps share.
class Reader {
 public:
  Reader(const BitNameTable& table, const TensorMap& source, const std::filesystem::path& file,
         const BitFacts& facts)
      : table_(table), source_(source), file_(file), facts_(facts) {}

  BitCheckpoint read() {
    prefix_ = *matching_prefix(table_, source_);
    renamed_ = bit_to_timm(table_, prefix_, source_, file_);
    BitCheckpoint out;
    out.format = table_.format;
    out.normalization = facts_.normalization.value_or(kHalf);
    read_config();
    read_declared(out.normalization);
    check_names();
    check_numbers();
    check_shapes();
    out.config = config_;
    out.backbone.tensors = std::move(renamed_.backbone);
    out.backbone.format = out.head.format = source_.format;
    out.head.tensors = std::move(renamed_.head);
    out.hash = weights_hash(out.backbone);
    return out;
  }

 private:
  /// Length of an axis, or 0 when the tensor is not there; check_names() says what is missing.
  int64_t extent(const std::string& name, int64_t axis) const {
    auto found = renamed_.backbone.find(name);
    if (found == renamed_.backbone.end() || found->second.dim() <= axis) return 0;
    return found->second.size(axis);
  }

  void read_config() {
    config_.root = extent("stem.conv.weight", 0);
    config_.units = renamed_.units;
    config_.widths.clear();
    for (size_t stage = 0; stage < config_.units.size(); ++stage) {
      // A stage that is not there at all misses at least one unit.
      config_.units[stage] = std::max<int64_t>(config_.units[stage], 1);
      const std::string first = "stages." + std::to_string(stage) + ".blocks.0.";
      config_.widths.push_back(extent(first + "conv3.weight", 0));
    }
    config_.groups = facts_.groups.value_or(config_.groups);
    config_.standardization_eps = table_.standardization_eps;
    config_.pool_padding = table_.pool_padding;
    // The JAX port of 2020, whose pool is big_transfer's.
    if (source_.has(prefix_ + "conv_head/kernel")) config_.pool_padding = PoolPadding::zero;
  }

  /// What a file of our own declares.
  void read_declared(Normalization& normalization) {
    if (auto text = source_.metadata.find(kConfigKey); text != source_.metadata.end()) {
      read_json_fields(text->second, config_, file_);
      check_numbers();
    }
    if (auto text = source_.metadata.find(kNormalizationKey); text != source_.metadata.end())
      normalization = normalization_from(text->second, file_);
  }

  void check_names() {
    std::vector<std::string> missing, left_over = renamed_.left_over;
    const auto shapes = wanted_shapes();
    for (const auto& [name, shape] : shapes)
      if (renamed_.backbone.count(name) == 0)
        missing.push_back(bit_source_name(table_, prefix_, name));
    for (const char* name : {"head.weight", "head.bias"})
      if (!renamed_.head.empty() && renamed_.head.count(name) == 0)
        missing.push_back(bit_source_name(table_, prefix_, name));
    for (const auto& [name, tensor] : renamed_.backbone)
      if (shapes.count(name) == 0) left_over.push_back(renamed_.origin.at(name));
    const std::string kind = std::string(" of a ") + table_.name + " BiT ResNet";
    if (!missing.empty()) throw FileError(file_, "misses " + count_and_names(missing) + kind);
    if (!left_over.empty())
      throw FileError(file_, "has, beside those" + kind + ", " + count_and_names(left_over));
  }

  void check_numbers() const {
    try {
      convpass::check(config_);
    } catch (const Error& error) {
      throw FileError(file_, std::string(error.what()) +
                                 (facts_.groups ? ""
                                                : ", which num_groups in a config.json beside it "
                                                  "would set"));
    }
  }

  void check_shapes() {
    auto shapes = wanted_shapes();
    if (auto head = renamed_.head.find("head.weight"); head != renamed_.head.end()) {
      const int64_t classes = head->second.dim() > 0 ? head->second.size(0) : 1;
      shapes["head.weight"] = {classes, config_.widths.back()};
      shapes["head.bias"] = {classes};
    }
    for (const auto& [name, shape] : shapes) {
      const auto& tensors = name.starts_with("head.") ? renamed_.head : renamed_.backbone;
      const at::Tensor& tensor = tensors.at(name);
      if (tensor.sizes() != at::IntArrayRef(shape))
        throw FileError(file_, "tensor " + renamed_.origin.at(name) + ": got shape " +
                                   shape_text(tensor.sizes()) + " in timm's layout, wanted " +
                                   shape_text(shape));
    }
  }

  std::map<std::string, std::vector<int64_t>> wanted_shapes() const {
    if (config_.units.empty())
      throw FileError(file_, std::string("holds no unit of a ") + table_.name + " BiT ResNet");
    if (std::accumulate(config_.units.begin(), config_.units.end(), int64_t{0}) > kMostUnits)
      throw FileError(file_, "names more than " + std::to_string(kMostUnits) + " units");
    return bit_shapes(config_);
  }

  const BitNameTable& table_;
  const TensorMap& source_;
  const std::filesystem::path& file_;
  const BitFacts& facts_;
  std::string prefix_;
  RenamedBit renamed_;
  BitConfig config_;
};

const BitNameTable* table_of(const TensorMap& tensors) {
  for (const BitNameTable& table : bit_name_tables())
    if (matching_prefix(table, tensors)) return &table;
  return nullptr;
}

}  // namespace

bool is_bit_checkpoint(const TensorMap& tensors) { return table_of(tensors) != nullptr; }

BitCheckpoint load_bit_checkpoint(const std::filesystem::path& file) {
  return bit_checkpoint_from(load_tensors(file), file);
}

BitCheckpoint bit_checkpoint_from(const TensorMap& tensors, const std::filesystem::path& file) {
  const BitNameTable* table = table_of(tensors);
  if (table == nullptr)
    throw FileError(file,
                    "holds no BiT ResNet of a known naming (big_transfer, big_vision, timm, "
                    "Hugging Face)");
  const BitFacts facts = read_bit_facts(table->format, file);
  return Reader(*table, tensors, file, facts).read();
}

TensorMap bit_checkpoint_as(const BitCheckpoint& checkpoint, BitFormat format) {
  TensorMap out;
  out.tensors = bit_from_timm(bit_name_table(format), checkpoint);
  out.format = checkpoint.backbone.format;
  out.metadata[kConfigKey] = write_json_fields(checkpoint.config);
  out.metadata[kNormalizationKey] = normalization_text(checkpoint.normalization);
  return out;
}

std::string_view bit_format_name(BitFormat format) { return bit_name_table(format).name; }

std::optional<BitFormat> bit_format_named(std::string_view name) {
  for (const BitNameTable& table : bit_name_tables())
    if (name == table.name) return table.format;
  return std::nullopt;
}

}  // namespace convpass
