#include "models/names.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>
#include <regex>
#include <set>

#include "convpass/core/error.h"
#include "models/tensor_text.h"

namespace convpass {
namespace {

constexpr int64_t kDeepest = 1024;  // a stack of blocks longer than this is no model but a bad file

bool begins_with_any(const std::string& name, const std::vector<std::string>& beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [&](const std::string& beginning) { return name.starts_with(beginning); });
}

struct SourceTensor {
  std::string origin;  // name in the file
  at::Tensor tensor;
  bool used = false;
};
using SourceTensors = std::map<std::string, SourceTensor>;  // by the name that the rules use

int64_t dimensions(Layout layout) {
  switch (layout) {
    case Layout::transposed:
    case Layout::table:
    case Layout::heads_bias:
      return 2;
    case Layout::heads_in:
    case Layout::heads_out:
      return 3;
    case Layout::convolution:
      return 4;
    case Layout::token:
      return 1;
    case Layout::same:
    case Layout::vector:
      break;
  }
  return -1;  // any
}

at::Tensor to_timm_layout(const at::Tensor& source, Layout layout) {
  switch (layout) {
    case Layout::same:
      return source;
    case Layout::transposed:
      return source.t();
    case Layout::convolution:
      return source.permute({3, 2, 0, 1});
    case Layout::vector:
    case Layout::heads_bias:
      return source.reshape({-1});
    case Layout::token:
      return source.view({1, 1, -1});
    case Layout::table:
      return source.unsqueeze(0);
    case Layout::heads_in:
      return source.flatten(1).t();
    case Layout::heads_out:
      return source.flatten(0, 1).t();
  }
  TORCH_CHECK(false, "unknown layout");
}

at::Tensor from_timm_layout(const at::Tensor& target, Layout layout, int64_t heads) {
  switch (layout) {
    case Layout::same:
    case Layout::vector:
      return target;
    case Layout::transposed:
      return target.t();
    case Layout::convolution:
      return target.permute({2, 3, 1, 0});
    case Layout::heads_bias:
      return target.view({heads, -1});
    case Layout::token:
      return target.reshape({-1});
    case Layout::table:
      return target.squeeze(0);
    case Layout::heads_in:
      return target.t().reshape({target.size(1), heads, -1});
    case Layout::heads_out:
      return target.t().reshape({heads, -1, target.size(0)});
  }
  TORCH_CHECK(false, "unknown layout");
}

/// Splits tensors that hold all blocks into one a block.
void unstack(const NameTable& table, SourceTensors& sources) {
  if (table.stacked.empty()) return;
  SourceTensors split;
  for (auto entry = sources.begin(); entry != sources.end();) {
    const auto& [name, source] = *entry;
    if (!name.starts_with(table.stacked) || source.tensor.dim() < 2 ||
        source.tensor.size(0) > kDeepest) {
      ++entry;
      continue;
    }
    for (int64_t i = 0; i < source.tensor.size(0); ++i)
      split[table.block + std::to_string(i) + table.after_block +
            name.substr(table.stacked.size())] = {source.origin, source.tensor[i]};
    entry = sources.erase(entry);
  }
  sources.merge(split);
}

/// One more than the highest block number of any name.
int64_t count_blocks(const NameTable& table, const SourceTensors& sources) {
  int64_t depth = 0;
  for (auto entry = sources.lower_bound(table.block);
       entry != sources.end() && entry->first.starts_with(table.block); ++entry) {
    int64_t index = -1;
    const char* digits = entry->first.data() + table.block.size();
    std::from_chars(digits, entry->first.data() + entry->first.size(), index);
    if (index >= 0 && index < kDeepest) depth = std::max(depth, index + 1);
  }
  return depth;
}

/// Makes the target of one rule, when its sources are there.
class RuleReader {
 public:
  RuleReader(SourceTensors& sources, RenamedTensors& out, const std::filesystem::path& file)
      : sources_(sources), out_(out), file_(file) {}

  void read(const NameRule& rule, const std::string& target_prefix,
            const std::string& source_prefix, std::map<std::string, at::Tensor>& into) {
    const std::string target = target_prefix + rule.target;
    if (into.count(target) != 0) return;
    std::vector<SourceTensor*> found;
    std::vector<std::string> absent;
    for (const std::string& name : rule.sources) {
      auto entry = sources_.find(source_prefix + name);
      if (entry == sources_.end())
        absent.push_back(source_prefix + name);
      else
        found.push_back(&entry->second);
    }
    if (found.empty()) return;
    if (!absent.empty()) {
      out_.incomplete[target] = absent;
      for (SourceTensor* source : found) source->used = true;
      return;
    }
    std::vector<at::Tensor> parts;
    for (SourceTensor* source : found) parts.push_back(convert(*source, rule.layout));
    into[target] = (parts.size() == 1 ? parts[0] : stack(parts, *found[0])).contiguous();
    out_.origin[target] = found[0]->origin;
  }

 private:
  at::Tensor convert(SourceTensor& source, Layout layout) {
    const at::Tensor& tensor = source.tensor;
    if (!tensor.is_floating_point())
      throw FileError(file_, "tensor " + source.origin + ": got " +
                                 std::string(tensor.dtype().name()) + ", wanted floating point");
    const int64_t wanted = dimensions(layout);
    if (wanted >= 0 && tensor.dim() != wanted)
      throw FileError(file_, "tensor " + source.origin + ": got shape " +
                                 shape_text(tensor.sizes()) + ", wanted " + std::to_string(wanted) +
                                 " dimensions");
    if (tensor.numel() == 0)
      throw FileError(file_,
                      "tensor " + source.origin + " is empty: " + shape_text(tensor.sizes()));
    if (layout == Layout::heads_in) {
      if (out_.heads.value_or(tensor.size(1)) != tensor.size(1))
        throw FileError(file_, "tensor " + source.origin + ": got " +
                                   std::to_string(tensor.size(1)) + " heads, wanted " +
                                   std::to_string(*out_.heads) + " as before it");
      out_.heads = tensor.size(1);
    }
    source.used = true;
    return to_timm_layout(tensor, layout).to(at::kFloat);
  }

  at::Tensor stack(const std::vector<at::Tensor>& parts, const SourceTensor& first) {
    for (const at::Tensor& part : parts)
      if (part.dim() == 0 || part.sizes() != parts[0].sizes())
        throw FileError(file_, "tensor " + first.origin +
                                   " and its neighbours (query, key, value): got shapes " +
                                   shape_text(parts[0].sizes()) + " and " +
                                   shape_text(part.sizes()) + ", wanted equal ones");
    return at::cat(parts, 0);
  }

  SourceTensors& sources_;
  RenamedTensors& out_;
  const std::filesystem::path& file_;
};

}  // namespace

const std::vector<const NameTable*>& all_name_tables() {
  static const std::vector<const NameTable*> tables{
      &google_names(),    &hf_clip_names(), &clip_names(),   &hf_deit_names(),
      &hf_dinov2_names(), &hf_vit_names(),  &dinov2_names(), &timm_names()};
  return tables;
}

void add_module(NameRules& rules, const std::string& target, const std::string& source, When when) {
  for (const char* leaf : {".weight", ".bias"})
    rules.push_back({target + leaf, {source + leaf}, Layout::same, when});
}

std::optional<std::string> matching_prefix(const NameTable& table, const TensorMap& tensors) {
  for (const std::string& prefix : table.prefixes)
    for (const std::string& signature : table.signatures)
      if (tensors.has(prefix + signature)) return prefix;
  return std::nullopt;
}

RenamedTensors to_timm(const NameTable& table, const std::string& prefix, const TensorMap& tensors,
                       const std::filesystem::path& file) {
  RenamedTensors out;
  std::vector<std::pair<std::regex, std::string>> respellings;
  for (const Respelling& respelling : table.respellings)
    respellings.emplace_back(std::regex(respelling.pattern), respelling.replacement);

  SourceTensors sources;
  for (const auto& [origin, tensor] : tensors.tensors) {
    const bool inside = origin.starts_with(prefix);
    std::string name = inside ? origin.substr(prefix.size()) : origin;
    if (begins_with_any(name, inside ? table.ignored : table.ignored_outside)) continue;
    for (const auto& [pattern, replacement] : respellings)
      name = std::regex_replace(name, pattern, replacement);
    if (!sources.try_emplace(name, SourceTensor{origin, tensor}).second)
      out.left_over.push_back(origin);
  }
  unstack(table, sources);
  out.depth = count_blocks(table, sources);

  RuleReader reader(sources, out, file);
  for (const NameRule& rule : table.rules) reader.read(rule, "", "", out.backbone);
  for (const NameRule& rule : table.head_rules) reader.read(rule, "", "", out.head);
  for (int64_t i = 0; i < out.depth; ++i) {
    const std::string index = std::to_string(i);
    for (const NameRule& rule : table.block_rules)
      reader.read(rule, "blocks." + index + ".", table.block + index + table.after_block,
                  out.backbone);
  }
  for (const auto& [name, source] : sources)
    if (!source.used) out.left_over.push_back(source.origin);
  return out;
}

std::vector<std::string> source_names(const NameTable& table, const std::string& prefix,
                                      const std::string& target) {
  auto named = [](const NameRule& rule, const std::string& before) {
    std::vector<std::string> names;
    for (const std::string& source : rule.sources) names.push_back(before + source);
    return names;
  };
  auto find = [](const NameRules& rules, const std::string& name) {
    return std::find_if(rules.begin(), rules.end(),
                        [&](const NameRule& rule) { return rule.target == name; });
  };
  const std::string blocks = "blocks.";
  if (target.starts_with(blocks)) {
    const size_t dot = target.find('.', blocks.size());
    auto rule = find(table.block_rules, target.substr(dot + 1));
    if (rule != table.block_rules.end())
      return named(*rule, prefix + table.block + target.substr(blocks.size(), dot - blocks.size()) +
                              table.after_block);
  } else if (auto rule = find(table.rules, target); rule != table.rules.end()) {
    return named(*rule, prefix);
  }
  return {target};
}

std::map<std::string, at::Tensor> from_timm(const NameTable& table,
                                            const VitCheckpoint& checkpoint) {
  const VitConfig& config = checkpoint.config;
  std::map<std::string, at::Tensor> out;
  std::set<std::string> written;
  const bool gated = config.activation == Activation::swiglu;
  const std::string& prefix =
      checkpoint.head.tensors.empty() ? table.written_prefix : table.written_prefix_with_head;

  auto write = [&](const NameRule& rule, const std::string& target_prefix,
                   const std::string& source_prefix,
                   const std::map<std::string, at::Tensor>& from) {
    if (rule.when == (gated ? When::plain : When::gated)) return;
    const std::string target = target_prefix + rule.target;
    auto found = from.find(target);
    if (found == from.end() || !written.insert(target).second) return;
    at::Tensor tensor = found->second;
    if (target == "pos_embed" && table.prefix_rows && !config.prefix_positions) {
      const int64_t rows = (config.class_token ? 1 : 0) + (config.distillation_token ? 1 : 0);
      tensor = at::cat({at::zeros({1, rows, config.width}), tensor}, 1);
    }
    const auto parts = tensor.chunk(static_cast<int64_t>(rule.sources.size()), 0);
    for (size_t i = 0; i < rule.sources.size(); ++i)
      out[source_prefix + rule.sources[i]] =
          from_timm_layout(parts[i], rule.layout, config.heads).contiguous();
  };
  for (const NameRule& rule : table.rules) write(rule, "", prefix, checkpoint.backbone.tensors);
  for (const NameRule& rule : table.head_rules)
    write(rule, "", table.head_inside ? prefix : "", checkpoint.head.tensors);
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string index = std::to_string(i);
    for (const NameRule& rule : table.block_rules)
      write(rule, "blocks." + index + ".", prefix + table.block + index + table.after_block,
            checkpoint.backbone.tensors);
  }
  for (const TensorMap* map : {&checkpoint.backbone, &checkpoint.head})
    for (const auto& [name, tensor] : map->tensors)
      if (written.count(name) == 0) throw Error("it has no name for " + name);
  for (const auto& [name, shape] : table.fillers) {
    std::vector<int64_t> sizes = shape;
    std::replace(sizes.begin(), sizes.end(), int64_t{-1}, config.width);
    out[prefix + name] = at::zeros(sizes);
  }
  return out;
}

std::map<std::string, std::vector<int64_t>> vit_shapes(const VitConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes;
  const int64_t dim = config.width;
  auto module = [&](const std::string& name, std::vector<int64_t> weight, bool bias = true) {
    if (bias) shapes[name + ".bias"] = {weight[0]};
    shapes[name + ".weight"] = std::move(weight);
  };
  module("patch_embed.proj", {dim, 3, config.patch, config.patch}, config.patch_bias);
  if (config.class_token) shapes["cls_token"] = {1, 1, dim};
  if (config.distillation_token) shapes["dist_token"] = {1, 1, dim};
  if (config.registers > 0) shapes["reg_token"] = {1, config.registers, dim};
  shapes["pos_embed"] = {1, config.position_prefix() + config.grid_height * config.grid_width, dim};
  if (config.pre_norm) module("norm_pre", {dim});
  module(config.pooled_norm ? "fc_norm" : "norm", {dim});
  const int64_t fc1 = config.hidden * (config.activation == Activation::swiglu ? 2 : 1);
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    module(block + "norm1", {dim});
    module(block + "attn.qkv", {3 * dim, dim}, config.qkv_bias);
    module(block + "attn.proj", {dim, dim});
    module(block + "norm2", {dim});
    module(block + "mlp.fc1", {fc1, dim});
    module(block + "mlp.fc2", {dim, config.hidden});
    if (config.layer_scale) shapes[block + "ls1.gamma"] = shapes[block + "ls2.gamma"] = {dim};
  }
  return shapes;
}

}  // namespace convpass
