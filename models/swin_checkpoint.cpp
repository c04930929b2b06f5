#include "convpass/models/swin_checkpoint.h"

#include <ATen/ATen.h>

#include <cmath>
#include <optional>
#include <regex>

#include "convpass/core/error.h"
#include "convpass/models/vit_checkpoint.h"
#include "models/names.h"
#include "models/swin_shapes.h"
#include "models/tensor_text.h"

namespace convpass {
namespace {

constexpr const char* kTable = "attn.relative_position_bias_table";
constexpr const char* kParts[] = {"query", "key", "value"};  // apart in Hugging Face's files

/// What transformers 4 (and save_pretrained of 5) and 5 call timm's modules; merging stands where
/// Microsoft has it.
std::string timm_spelling(std::string name) {
  static const std::pair<std::regex, const char*> rules[] = {
      {std::regex(R"(^swin\.)"), ""},
      {std::regex(R"(^embeddings\.patch_embeddings\.projection\.)"), "patch_embed.proj."},
      {std::regex(R"(^embeddings\.norm\.)"), "patch_embed.norm."},
      {std::regex(R"(^encoder\.layers\.)"), "layers."},
      {std::regex(R"(^layernorm\.)"), "norm."},
      {std::regex(R"(^classifier\.)"), "head."},
      {std::regex(R"(\.layernorm_before\.)"), ".norm1."},
      {std::regex(R"(\.layernorm_after\.)"), ".norm2."},
      {std::regex(R"(\.attention\.self\.)"), ".attn."},
      {std::regex(R"(\.attention\.q_proj\.)"), ".attn.query."},
      {std::regex(R"(\.attention\.k_proj\.)"), ".attn.key."},
      {std::regex(R"(\.attention\.v_proj\.)"), ".attn.value."},
      {std::regex(R"(\.attention\.o_proj\.)"), ".attn.proj."},
      {std::regex(R"(\.attention\.relative_position_bias\.)"), ".attn."},
      {std::regex(R"(\.attention\.output\.dense\.)"), ".attn.proj."},
      {std::regex(R"(\.intermediate\.dense\.)"), ".mlp.fc1."},
      {std::regex(R"(\.output\.dense\.)"), ".mlp.fc2."}};
  for (const auto& [pattern, replacement] : rules)
    name = std::regex_replace(name, pattern, replacement);
  return name;
}

/// Merging counted with the stage that it opens.
std::string opening_stage(const std::string& name) {
  static const std::regex pattern(R"(layers\.([0-7])(\.downsample\..*))");
  std::smatch match;
  if (!std::regex_match(name, match, pattern)) return name;
  return "layers." + std::to_string(std::stoll(match[1]) + 1) + match[2].str();
}

/// Stage, block and the rest of a name.
struct Place {
  size_t stage = 0;
  int64_t block = 0;
  std::string rest;
};
std::optional<Place> place_of(const std::string& name) {
  static const std::regex pattern(R"(layers\.([0-7])\.blocks\.(0|[1-9][0-9]{0,3})\.(.*))");
  std::smatch match;
  if (!std::regex_match(name, match, pattern)) return std::nullopt;
  const int64_t block = std::stoll(match[2]);
  if (block >= kMostSwinBlocks) return std::nullopt;
  return Place{static_cast<size_t>(std::stoll(match[1])), block, match[3]};
}

std::optional<SwinFormat> format_of(const TensorMap& tensors) {
  for (const char* prefix : {"", "swin."})
    for (const char* table : {"self.relative_position_bias_table",
                              "relative_position_bias.relative_position_bias_table"})
      if (tensors.has(prefix + std::string("encoder.layers.0.blocks.0.attention.") + table))
        return SwinFormat::hf_swin;
  if (!tensors.has(swin_block_name(0, 0) + kTable)) return std::nullopt;
  for (const char* leaf : {"norm.weight", "norm.bias", "reduction.weight"})
    if (tensors.has(swin_stage_name(0) + "downsample." + leaf)) return SwinFormat::microsoft;
  // A network of one stage merges nothing; its head tells.
  const bool old_head = tensors.has("head.weight") || tensors.has("head.bias");
  return old_head ? SwinFormat::microsoft : SwinFormat::timm;
}

/// Reads one checkpoint; the members are what the steps share.
class Reader {
 public:
  Reader(SwinFormat format, const TensorMap& source, const std::filesystem::path& file)
      : source_(source), file_(file) {
    out_.format = format;
  }

  SwinCheckpoint read() {
    for (const auto& [name, tensor] : source_.tensors) rename(name, tensor);
    out_.backbone.format = out_.head.format = source_.format;
    join_parts();
    read_config();
    read_files_beside();
    shapes_ = swin_shapes(out_.config);
    check_names();
    check_shapes();
    check_buffers();
    out_.hash = weights_hash(out_.backbone);
    return std::move(out_);
  }

 private:
  std::string our_name(std::string name) const {
    if (out_.format == SwinFormat::hf_swin) name = timm_spelling(std::move(name));
    if (out_.format != SwinFormat::timm) return opening_stage(name);
    if (name.starts_with("head.fc.")) name.erase(5, 3);
    return name;
  }

  void rename(const std::string& origin, const at::Tensor& tensor) {
    const std::string name = our_name(origin);
    if (name == "embeddings.mask_token") return;
    if (!origin_.try_emplace(name, origin).second) {
      left_over_.push_back(origin);
      return;
    }
    if (name.ends_with(".relative_position_index") || name.ends_with(".attn_mask")) {
      buffers_[name] = tensor;
      return;
    }
    if (!tensor.is_floating_point())
      throw FileError(file_, "tensor " + origin + ": got " + std::string(tensor.dtype().name()) +
                                 ", wanted floating point");
    if (tensor.numel() == 0)
      throw FileError(file_, "tensor " + origin + " is empty: " + shape_text(tensor.sizes()));
    (name.starts_with("head.") ? out_.head : out_.backbone).tensors[name] =
        tensor.to(at::kFloat).contiguous();
  }

  /// Query, key and value one above the other, as timm has them.
  void join_parts() {
    if (out_.format != SwinFormat::hf_swin) return;
    auto& tensors = out_.backbone.tensors;
    std::vector<std::string> starts;
    for (const auto& [name, origin] : origin_)
      if (const auto place = place_of(name); place && place->rest == "attn.query.weight")
        starts.push_back(swin_block_name(place->stage, place->block) + "attn.");
    for (const std::string& start : starts)
      for (const char* leaf : {".weight", ".bias"}) {
        std::vector<at::Tensor> parts;
        for (const char* part : kParts)
          if (auto found = tensors.find(start + part + leaf); found != tensors.end())
            parts.push_back(found->second);
        if (parts.size() != std::size(kParts)) continue;
        for (const at::Tensor& part : parts)
          if (part.dim() == 0 || part.sizes() != parts[0].sizes())
            throw FileError(file_, "tensor " + origin_.at(start + kParts[0] + leaf) +
                                       " and its neighbours (query, key, value): got shapes " +
                                       shape_text(parts[0].sizes()) + " and " +
                                       shape_text(part.sizes()) + ", wanted equal ones");
        tensors[start + "qkv" + leaf] = at::cat(parts, 0);
        origin_[start + "qkv" + leaf] = origin_.at(start + kParts[0] + leaf);
        for (const char* part : kParts) tensors.erase(start + part + leaf);
      }
  }

  int64_t extent(const std::string& name, int64_t axis) const {
    auto found = out_.backbone.tensors.find(name);
    return found == out_.backbone.tensors.end() || found->second.dim() <= axis
               ? 0
               : found->second.size(axis);
  }

  void read_config() {
    SwinConfig& config = out_.config;
    config.depths.clear();
    for (const auto& [name, tensor] : out_.backbone.tensors) {
      const std::optional<Place> place = place_of(name);
      if (!place) continue;
      // A stage that is not there at all misses at least one block.
      if (place->stage >= config.depths.size()) config.depths.resize(place->stage + 1, 1);
      config.depths[place->stage] = std::max(config.depths[place->stage], place->block + 1);
    }
    config.heads.assign(config.stages(), 1);
    config.windows.assign(config.stages(), 1);
    config.qkv_bias = false;
    for (const auto& [name, tensor] : out_.backbone.tensors) {
      const std::optional<Place> place = place_of(name);
      if (place && place->rest == kTable) read_table(*place, name, tensor);
      config.qkv_bias |= place && place->rest == "attn.qkv.bias";
    }
    config.width = extent("patch_embed.proj.weight", 0);
    config.patch = extent("patch_embed.proj.weight", 2);
    if (config.width == 0) config.width = extent("norm.weight", 0) >> (config.stages() - 1);
    if (config.patch == 0) config.patch = SwinConfig{}.patch;
    const std::string fc1 = swin_block_name(0, 0) + "mlp.fc1.weight";
    if (int64_t rows = extent(fc1, 0), columns = extent(fc1, 1); columns > 0)
      config.expansion = std::max<int64_t>(rows / columns, 1);
    try {
      check(config);
    } catch (const Error& error) {
      throw FileError(file_, error.what());
    }
  }

  /// Heads and window of a stage, as the first table there has them.
  void read_table(const Place& place, const std::string& name, const at::Tensor& table) {
    if (table.dim() != 2) return;  // see check_shapes
    const auto side =
        static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(table.size(0)))));
    if (side * side != table.size(0) || side % 2 == 0)
      throw FileError(file_, "tensor " + origin_.at(name) + ": got shape " +
                                 shape_text(table.sizes()) +
                                 ", wanted (2 w - 1)^2 rows, the relative positions in square "
                                 "windows of side w");
    if (std::exchange(tables_seen_[place.stage], true)) return;
    out_.config.heads[place.stage] = table.size(1);
    out_.config.windows[place.stage] = (side + 1) / 2;
  }

  void read_files_beside() {
    if (out_.format == SwinFormat::hf_swin) {
      const ConfigFacts facts = read_config_facts(VitFormat::hf_vit, file_);
      if (facts.eps.value_or(kSwinEps) != kSwinEps)
        throw FileError(facts.file, "/layer_norm_eps: got " + std::to_string(*facts.eps) +
                                        ", wanted 1e-05, which every norm of a Swin has here");
      if (facts.activation.value_or(Activation::gelu) != Activation::gelu)
        throw FileError(facts.file, "/hidden_act: wanted \"gelu\", which a Swin has here");
      out_.normalization = facts.normalization.value_or(Normalization{});
    } else {
      out_.normalization = timm_normalization(file_).value_or(Normalization{});
    }
    if (auto text = source_.metadata.find(kNormalizationKey); text != source_.metadata.end())
      out_.normalization = normalization_from(text->second, file_);
  }

  void check_names() {
    std::vector<std::string> missing;
    for (const auto& [name, shape] : shapes_)
      if (!out_.backbone.has(name)) missing.push_back(name);
    for (const char* name : {"head.weight", "head.bias"})
      if (!out_.head.tensors.empty() && !out_.head.has(name)) missing.emplace_back(name);
    if (!missing.empty())
      throw FileError(file_, "misses " + count_and_names(missing) + " of a Swin, in timm's naming");
    for (const TensorMap* map : {&out_.backbone, &out_.head})
      for (const auto& [name, tensor] : map->tensors)
        if (shapes_.count(name) == 0 && name != "head.weight" && name != "head.bias")
          left_over_.push_back(origin_.at(name));
    if (!left_over_.empty())
      throw FileError(file_, "has, beside those of a Swin, " + count_and_names(left_over_));
  }

  void check_shapes() {
    if (out_.head.has("head.weight")) {
      const at::Tensor& weight = out_.head.at("head.weight");
      const int64_t classes = weight.dim() > 0 ? weight.size(0) : 1;
      shapes_["head.weight"] = {classes, out_.config.dim(out_.config.stages() - 1)};
      shapes_["head.bias"] = {classes};
    }
    for (const auto& [name, shape] : shapes_) {
      const TensorMap& tensors = name.starts_with("head.") ? out_.head : out_.backbone;
      const at::Tensor& tensor = tensors.at(name);
      if (tensor.sizes() != at::IntArrayRef(shape)) wrong_shape(name, tensor, shape_text(shape));
    }
  }

  /// What follows from the windows is computed here, but has to be of the same windows.
  void check_buffers() {
    for (const auto& [name, tensor] : buffers_) {
      const std::optional<Place> place = place_of(name);
      const bool mask = place && place->rest == "attn_mask";
      if (!place || place->stage >= out_.config.stages() ||
          place->block >= out_.config.depths[place->stage] ||
          (!mask && place->rest != "attn.relative_position_index"))
        throw FileError(file_, "has, beside those of a Swin, 1 tensor: " + origin_.at(name));
      const int64_t window = out_.config.windows[place->stage], tokens = window * window;
      const int64_t axis = mask ? 1 : 0;
      if (tensor.dim() != axis + 2 || tensor.size(axis) != tokens ||
          tensor.size(axis + 1) != tokens)
        wrong_shape(name, tensor,
                    (mask ? "[windows, " : "[") + std::to_string(tokens) + ", " +
                        std::to_string(tokens) + "]");
    }
  }

  [[noreturn]] void wrong_shape(const std::string& name, const at::Tensor& tensor,
                                const std::string& wanted) const {
    throw FileError(file_, "tensor " + origin_.at(name) + ": got shape " +
                               shape_text(tensor.sizes()) + ", wanted " + wanted);
  }

  const TensorMap& source_;
  const std::filesystem::path& file_;
  SwinCheckpoint out_;
  std::map<std::string, std::string> origin_;  ///< our name -> name in the file
  std::map<std::string, at::Tensor> buffers_;
  std::array<bool, kMostSwinStages> tables_seen_{};
  std::vector<std::string> left_over_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

}  // namespace

bool is_swin_checkpoint(const TensorMap& tensors) { return format_of(tensors).has_value(); }

SwinCheckpoint load_swin_checkpoint(const std::filesystem::path& file) {
  return swin_checkpoint_from(load_tensors(file), file);
}

SwinCheckpoint swin_checkpoint_from(const TensorMap& tensors, const std::filesystem::path& file) {
  const std::optional<SwinFormat> format = format_of(tensors);
  if (!format)
    throw FileError(
        file, std::string("holds no Swin: ") + swin_block_name(0, 0) + kTable + " is missing");
  return Reader(*format, tensors, file).read();
}

TensorMap swin_checkpoint_as_timm(const SwinCheckpoint& checkpoint) {
  TensorMap out;
  out.format = checkpoint.backbone.format;
  out.tensors = checkpoint.backbone.tensors;
  for (const auto& [name, tensor] : checkpoint.head.tensors)
    out.tensors["head.fc." + name.substr(5)] = tensor;
  out.metadata[kNormalizationKey] = normalization_text(checkpoint.normalization);
  return out;
}

std::string_view swin_format_name(SwinFormat format) {
  switch (format) {
    case SwinFormat::timm:
      return "timm";
    case SwinFormat::microsoft:
      return "microsoft";
    case SwinFormat::hf_swin:
      return "hf-swin";
  }
  return "";
}

}  // namespace convpass
