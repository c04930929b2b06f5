#include "models/names_bit.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <regex>

#include "convpass/core/error.h"
#include "models/tensor_text.h"

namespace convpass {
namespace {

/// `.weight` and `.bias` of torch, or what a format calls them.
void add_norm(BitNameTable::Names& names, const std::string& target, const std::string& source,
              const std::pair<std::string, std::string>& leaves = {".weight", ".bias"}) {
  names[source + leaves.first] = target + ".weight";
  names[source + leaves.second] = target + ".bias";
}

BitNameTable big_transfer_npz() {
  BitNameTable t;
  t.format = BitFormat::big_transfer_npz;
  t.name = "big-transfer-npz";
  t.standardization_eps = 1e-10;
  t.flax = true;
  t.prefixes = {"resnet/"};
  t.signatures = {"root_block/standardized_conv2d/kernel", "group_norm/gamma"};
  t.before_stage = "block", t.before_unit = "/unit", t.after_unit = "/";
  t.first = 1, t.digits = 2;
  const std::pair<std::string, std::string> leaves{"gamma", "beta"};
  const std::string kernel = "standardized_conv2d/kernel";
  t.rules["root_block/" + kernel] = "stem.conv.weight";
  add_norm(t.rules, "norm", "group_norm/", leaves);
  for (const auto& [part, number] : {std::pair{"a/", "1"}, {"b/", "2"}, {"c/", "3"}}) {
    add_norm(t.unit_rules, std::string("norm") + number, std::string(part) + "group_norm/", leaves);
    t.unit_rules[part + kernel] = std::string("conv") + number + ".weight";
  }
  t.unit_rules["a/proj/" + kernel] = "downsample.conv.weight";
  t.head_rules = {{"head/conv2d/kernel", "head.weight"}, {"head/conv2d/bias", "head.bias"}};
  return t;
}

BitNameTable big_vision_npz() {
  BitNameTable t;
  t.format = BitFormat::big_vision_npz;
  t.name = "big-vision-npz";
  t.standardization_eps = 1e-10;
  t.pool_padding = PoolPadding::minus_infinity;
  t.flax = true;
  t.norm_dimensions = 4;
  t.head_dimensions = 2;
  t.prefixes = {"", "params/", "opt/target/"};
  t.signatures = {"root_block/conv_root/kernel", "norm-pre-head/scale"};
  t.before_stage = "block", t.before_unit = "/unit", t.after_unit = "/";
  t.first = 1, t.digits = 2;
  const std::pair<std::string, std::string> leaves{"scale", "bias"};
  t.rules["root_block/conv_root/kernel"] = "stem.conv.weight";
  add_norm(t.rules, "norm", "norm-pre-head/", leaves);
  for (const std::string number : {"1", "2", "3"}) {
    add_norm(t.unit_rules, "norm" + number, "gn" + number + "/", leaves);
    t.unit_rules["conv" + number + "/kernel"] = "conv" + number + ".weight";
  }
  t.unit_rules["conv_proj/kernel"] = "downsample.conv.weight";
  t.head_rules = {{"head/kernel", "head.weight"},
                  {"head/bias", "head.bias"},
                  {"conv_head/kernel", "head.weight"},
                  {"conv_head/bias", "head.bias"}};
  t.ignored_outside = {"opt/", "extra/"};
  return t;
}

BitNameTable timm() {
  BitNameTable t;
  t.format = BitFormat::timm;
  t.name = "timm";
  t.prefixes = {"", "module."};
  t.signatures = {"stages.0.blocks.0.conv1.weight", "stages.0.blocks.0.norm1.weight"};
  t.before_stage = "stages.", t.before_unit = ".blocks.", t.after_unit = ".";
  t.rules["stem.conv.weight"] = "stem.conv.weight";
  add_norm(t.rules, "norm", "norm");
  for (const std::string number : {"1", "2", "3"}) {
    add_norm(t.unit_rules, "norm" + number, "norm" + number);
    t.unit_rules["conv" + number + ".weight"] = "conv" + number + ".weight";
  }
  t.unit_rules["downsample.conv.weight"] = "downsample.conv.weight";
  add_norm(t.head_rules, "head", "head.fc");
  return t;
}

BitNameTable big_transfer() {
  BitNameTable t;
  t.format = BitFormat::big_transfer;
  t.name = "big-transfer";
  t.standardization_eps = 1e-10;
  t.prefixes = {"", "module."};
  t.signatures = {"root.conv.weight", "head.gn.weight"};
  t.before_stage = "body.block", t.before_unit = ".unit", t.after_unit = ".";
  t.first = 1, t.digits = 2;
  t.rules["root.conv.weight"] = "stem.conv.weight";
  add_norm(t.rules, "norm", "head.gn");
  for (const std::string number : {"1", "2", "3"}) {
    add_norm(t.unit_rules, "norm" + number, "gn" + number);
    t.unit_rules["conv" + number + ".weight"] = "conv" + number + ".weight";
  }
  t.unit_rules["downsample.weight"] = "downsample.conv.weight";
  add_norm(t.head_rules, "head", "head.conv");
  return t;
}

BitNameTable hugging_face() {
  BitNameTable t = timm();
  t.format = BitFormat::hf_bit;
  t.name = "hf-bit";
  t.head_dimensions = 2;
  t.head_outside = true;
  t.prefixes = {"bit.", ""};
  t.signatures = {"embedder.convolution.weight", "encoder.stages.0.layers.0.conv1.weight"};
  t.before_stage = "encoder.stages.", t.before_unit = ".layers.";
  t.rules.erase("stem.conv.weight");
  t.rules["embedder.convolution.weight"] = "stem.conv.weight";
  t.head_rules.clear();
  add_norm(t.head_rules, "head", "classifier.1");
  return t;
}

std::optional<std::string> find(const BitNameTable::Names& names, const std::string& name) {
  auto found = names.find(name);
  return found == names.end() ? std::nullopt : std::make_optional(found->second);
}

/// The name of a unit's tensor taken apart.
struct UnitName {
  int64_t stage = 0, index = 0;
  std::string rest;
};
std::optional<UnitName> unit_name(const BitNameTable& table, const std::string& name) {
  UnitName out;
  const char *at = name.data(), *const end = at + name.size();
  for (auto [text, number] :
       {std::pair{&table.before_stage, &out.stage}, {&table.before_unit, &out.index}}) {
    if (!std::string_view(at, end).starts_with(*text)) return std::nullopt;
    at += text->size();
    const auto [next, error] = std::from_chars(at, end, *number);
    *number -= table.first;
    if (error != std::errc() || *number < 0 || *number >= kMostUnits) return std::nullopt;
    at = next;
  }
  const std::string start = table.unit(out.stage, out.index);
  if (!name.starts_with(start)) return std::nullopt;  // "unit1" for "unit01"
  out.rest = name.substr(start.size());
  return out;
}

std::string timm_unit(int64_t stage, int64_t index) {
  return "stages." + std::to_string(stage) + ".blocks." + std::to_string(index) + ".";
}

/// A source tensor in timm's layout, the head's weight as a matrix.
at::Tensor to_timm_layout(const BitNameTable& table, const std::string& target, at::Tensor tensor) {
  if (target == "head.weight" && tensor.dim() == 2) return table.flax ? tensor.t() : tensor;
  if (tensor.dim() == 4 && target.ends_with(".weight") && table.flax &&
      target.find("norm") == std::string::npos)
    tensor = tensor.permute({3, 2, 0, 1});
  if (target == "head.weight" && tensor.dim() == 4 && tensor[0][0].numel() == 1)
    return tensor.flatten(1);
  // [1, 1, 1, C]
  if (table.flax && target.find("norm") != std::string::npos && tensor.dim() > 1 &&
      tensor.size(-1) == tensor.numel())
    return tensor.flatten();
  return tensor;
}

at::Tensor from_timm_layout(const BitNameTable& table, const std::string& target,
                            at::Tensor tensor) {
  if (target == "head.weight") {
    if (table.head_dimensions == 2) return table.flax ? tensor.t() : tensor;
    tensor = tensor.unsqueeze(-1).unsqueeze(-1);
  }
  if (tensor.dim() == 4 && table.flax) return tensor.permute({2, 3, 1, 0});
  if (target.find("norm") != std::string::npos && table.norm_dimensions == 4)
    return tensor.view({1, 1, 1, -1});
  return tensor;
}

bool begins_with_any(const std::string& name, const std::vector<std::string>& beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [&](const std::string& beginning) { return name.starts_with(beginning); });
}

/// What timm calls a tensor of the file, and whether it belongs to the old head.
struct Target {
  std::string name;
  bool head = false;
};

std::optional<Target> target_of(const BitNameTable& table, const std::string& name, bool inside,
                                std::vector<int64_t>& units) {
  if (inside || table.head_outside)
    if (auto head = find(table.head_rules, name)) return Target{*head, true};
  if (!inside) return std::nullopt;
  if (auto target = find(table.rules, name)) return Target{*target};
  const auto unit = unit_name(table, name);
  if (!unit) return std::nullopt;
  const auto rest = find(table.unit_rules, unit->rest);
  if (!rest) return std::nullopt;
  const auto stage = static_cast<size_t>(unit->stage);
  if (units.size() <= stage) units.resize(stage + 1);
  units[stage] = std::max(units[stage], unit->index + 1);
  return Target{timm_unit(unit->stage, unit->index) + *rest};
}

}  // namespace

std::string BitNameTable::unit(int64_t stage, int64_t index) const {
  std::string number = std::to_string(index + first);
  if (number.size() < digits) number.insert(0, digits - number.size(), '0');
  return before_stage + std::to_string(stage + first) + before_unit + number + after_unit;
}

const std::vector<BitNameTable>& bit_name_tables() {
  static const std::vector<BitNameTable> tables{big_transfer_npz(), big_vision_npz(), timm(),
                                                big_transfer(), hugging_face()};
  return tables;
}

const BitNameTable& bit_name_table(BitFormat format) {
  for (const BitNameTable& table : bit_name_tables())
    if (table.format == format) return table;
  TORCH_CHECK(false, "unknown format");
}

std::optional<std::string> matching_prefix(const BitNameTable& table, const TensorMap& tensors) {
  for (const std::string& prefix : table.prefixes)
    for (const std::string& signature : table.signatures)
      if (tensors.has(prefix + signature)) return prefix;
  return std::nullopt;
}

RenamedBit bit_to_timm(const BitNameTable& table, const std::string& prefix,
                       const TensorMap& tensors, const std::filesystem::path& file) {
  static const std::regex numbered("/standardized_conv2d_[0-9]+/");
  RenamedBit out;
  for (const auto& [origin, tensor] : tensors.tensors) {
    const bool inside = origin.starts_with(prefix);
    if (!inside && begins_with_any(origin, table.ignored_outside)) continue;
    std::string name = inside ? origin.substr(prefix.size()) : origin;
    if (table.format == BitFormat::big_transfer_npz)
      name = std::regex_replace(name, numbered, "/standardized_conv2d/");
    const auto target = target_of(table, name, inside, out.units);
    if (!target || !out.origin.try_emplace(target->name, origin).second) {
      out.left_over.push_back(origin);
      continue;
    }
    if (!tensor.is_floating_point())
      throw FileError(file, "tensor " + origin + ": got " + std::string(tensor.dtype().name()) +
                                ", wanted floating point");
    if (tensor.numel() == 0)
      throw FileError(file, "tensor " + origin + " is empty: " + shape_text(tensor.sizes()));
    (target->head ? out.head : out.backbone)[target->name] =
        to_timm_layout(table, target->name, tensor).to(at::kFloat).contiguous();
  }
  return out;
}

std::string bit_source_name(const BitNameTable& table, const std::string& prefix,
                            const std::string& target) {
  auto inverse = [&](const BitNameTable::Names& names, const std::string& wanted) -> std::string {
    for (const auto& [here, theirs] : names)
      if (theirs == wanted) return here;
    return "";
  };
  if (target.starts_with("head.")) {
    // Of two names, the newer code's.
    const std::string name = table.format == BitFormat::big_vision_npz
                                 ? target == "head.weight" ? "head/kernel" : "head/bias"
                                 : inverse(table.head_rules, target);
    return table.head_outside ? name : prefix + name;
  }
  static const BitNameTable& timm_table = bit_name_table(BitFormat::timm);
  if (const auto unit = unit_name(timm_table, target))
    return prefix + table.unit(unit->stage, unit->index) + inverse(table.unit_rules, unit->rest);
  return prefix + inverse(table.rules, target);
}

std::map<std::string, at::Tensor> bit_from_timm(const BitNameTable& table,
                                                const BitCheckpoint& checkpoint) {
  const std::string prefix =
      table.head_outside && checkpoint.head.tensors.empty() ? "" : table.prefixes[0];
  std::map<std::string, at::Tensor> out;
  for (const TensorMap* map : {&checkpoint.backbone, &checkpoint.head})
    for (const auto& [name, tensor] : map->tensors)
      out[bit_source_name(table, prefix, name)] =
          from_timm_layout(table, name, tensor).contiguous();
  return out;
}

}  // namespace convpass
