#include "convpass/models/vit_checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"
#include "models/names.h"
#include "models/tensor_text.h"

namespace convpass {
namespace {

constexpr Normalization kImageNet{};
constexpr Normalization kHalf{{0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}};
constexpr Normalization kClip{{0.48145466, 0.4578275, 0.40821073},
                              {0.26862954, 0.26130258, 0.27577711}};

constexpr int64_t kDeepest = 1024;
constexpr const char* kConfigKey = "vit_config";

/// What each format leaves unsaid.
struct FormatDefaults {
  VitFormat format;
  const char* name;
  double eps;
  Activation activation;
  PositionResize resize, resize_with_registers;
  Normalization normalization;
};
constexpr FormatDefaults kFormats[] = {
    {VitFormat::timm, "timm", 1e-6, Activation::gelu, PositionResize::bicubic_antialias,
     PositionResize::bicubic_antialias, kHalf},
    {VitFormat::google_npz, "google-npz", 1e-6, Activation::gelu, PositionResize::bilinear,
     PositionResize::bilinear, kHalf},
    {VitFormat::hf_vit, "hf-vit", 1e-12, Activation::gelu, PositionResize::bicubic,
     PositionResize::bicubic, kHalf},
    {VitFormat::hf_deit, "hf-deit", 1e-12, Activation::gelu, PositionResize::bicubic,
     PositionResize::bicubic, kImageNet},
    {VitFormat::hf_dinov2, "hf-dinov2", 1e-6, Activation::gelu, PositionResize::bicubic,
     PositionResize::bicubic_antialias, kImageNet},
    {VitFormat::dinov2, "dinov2", 1e-6, Activation::gelu, PositionResize::dinov2_scale_offset,
     PositionResize::bicubic_antialias, kImageNet},
    {VitFormat::clip, "clip", 1e-5, Activation::gelu, PositionResize::bicubic_antialias,
     PositionResize::bicubic_antialias, kClip},
    {VitFormat::hf_clip, "hf-clip", 1e-5, Activation::quick_gelu, PositionResize::bicubic,
     PositionResize::bicubic, kClip},
};

/// Widths whose heads are not 64 wide: H, so400m, g and G.
constexpr std::pair<int64_t, int64_t> kHeadsOfWidth[] = {
    {1280, 16}, {1152, 16}, {1408, 16}, {1664, 16}};

/// Parts of names of models that are ViTs but not of a kind that Vit computes.
constexpr std::pair<const char*, const char*> kRefused[] = {
    {"MAPHead_0/", "it pools by attention (MAPHead), which is not supported"},
    {"attn_pool.", "it pools by attention (attn_pool), which is not supported"},
};

const FormatDefaults& defaults_of(VitFormat format) {
  for (const FormatDefaults& each : kFormats)
    if (each.format == format) return each;
  TORCH_CHECK(false, "unknown format");
}

const NameTable& table_of(VitFormat format) {
  for (const NameTable* table : all_name_tables())
    if (table->format == format) return *table;
  TORCH_CHECK(false, "unknown format");
}

int64_t square_root(int64_t n) {
  const auto root = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(n))));
  return root > 0 && root * root == n ? root : 0;
}

/// Reads one checkpoint; the members are what the steps share.
class Reader {
 public:
  Reader(const NameTable& table, const TensorMap& source, const std::filesystem::path& file,
         const ConfigFacts& facts)
      : table_(table), source_(source), file_(file), facts_(facts) {}

  VitCheckpoint read() {
    prefix_ = *matching_prefix(table_, source_);
    for (const auto& [part, reason] : kRefused)
      for (const auto& [name, tensor] : source_.tensors)
        if (name.find(part) != std::string::npos) throw FileError(file_, reason);
    renamed_ = to_timm(table_, prefix_, source_, file_);
    VitCheckpoint out;
    out.format = table_.format;
    read_config();
    read_declared(out.normalization);
    fold_positions();
    check();
    out.config = config_;
    out.backbone.tensors = std::move(renamed_.backbone);
    out.backbone.format = out.head.format = source_.format;
    out.head.tensors = std::move(renamed_.head);
    out.hash = weights_hash(out.backbone);
    return out;
  }

 private:
  bool has(const std::string& name) const { return renamed_.backbone.count(name) != 0; }

  /// Length of an axis, or 0 when the tensor is not there; check() says what is missing.
  int64_t extent(const std::string& name, int64_t axis) const {
    auto found = renamed_.backbone.find(name);
    if (found == renamed_.backbone.end() || found->second.dim() <= axis) return 0;
    return found->second.size(axis);
  }
  bool any_block_has(const std::string& name) const {
    for (int64_t i = 0; i < renamed_.depth; ++i)
      if (has("blocks." + std::to_string(i) + "." + name)) return true;
    return false;
  }
  /// The same of the first block that has the tensor.
  int64_t block_extent(const std::string& name, int64_t axis) const {
    for (int64_t i = 0; i < renamed_.depth; ++i)
      if (int64_t length = extent("blocks." + std::to_string(i) + "." + name, axis)) return length;
    return 0;
  }

  void read_config() {
    const FormatDefaults& defaults = defaults_of(table_.format);
    const bool big_vision =
        table_.format == VitFormat::google_npz && source_.has(prefix_ + "pos_embedding");
    config_.width = extent("patch_embed.proj.weight", 0);
    if (config_.width == 0) config_.width = block_extent("norm1.weight", 0);
    config_.patch = extent("patch_embed.proj.weight", 3);
    config_.depth = std::max(renamed_.depth, facts_.depth.value_or(0));
    agrees_with_file("blocks", facts_.depth, config_.depth);
    agrees_with_file("width", facts_.width, config_.width);
    if (config_.depth < 1 || config_.depth > kDeepest)
      throw FileError(file_, "got " + std::to_string(config_.depth) + " blocks, wanted 1 to " +
                                 std::to_string(kDeepest));
    config_.class_token = has("cls_token");
    config_.distillation_token = has("dist_token");
    config_.registers = has("reg_token") ? extent("reg_token", 1) : facts_.registers.value_or(0);
    config_.layer_scale = any_block_has("ls1.gamma") || any_block_has("ls2.gamma");
    config_.pre_norm = has("norm_pre.weight") || has("norm_pre.bias");
    config_.patch_bias = has("patch_embed.proj.bias");
    // What the format always has is missing where it is not there; elsewhere the file decides.
    if (table_.format != VitFormat::timm) {
      const bool clip = table_.format == VitFormat::clip || table_.format == VitFormat::hf_clip;
      config_.patch_bias = !clip;
      config_.pre_norm = clip;
      config_.class_token |= table_.format != VitFormat::google_npz;
      config_.distillation_token = table_.format == VitFormat::hf_deit;
      config_.layer_scale |= table_.format == VitFormat::dinov2;
    } else if (!config_.pre_norm) {
      config_.patch_bias = true;
    }
    config_.qkv_bias = any_block_has("attn.qkv.bias");
    config_.pooled_norm = has("fc_norm.weight") || has("fc_norm.bias");
    // A timm model without class token pools by mean, and either a norm or the configuration says
    // so.
    if (table_.format == VitFormat::timm && !config_.pooled_norm && facts_.pool != Pool::mean)
      config_.class_token = true;
    config_.hidden = block_extent("mlp.fc2.weight", 1);
    config_.eps = facts_.eps.value_or(config_.pre_norm ? 1e-5 : defaults.eps);
    config_.activation = facts_.activation.value_or(default_activation(defaults, big_vision));
    if (block_extent("mlp.fc1.weight", 0) == 2 * config_.hidden && config_.hidden > 0)
      config_.activation = Activation::swiglu;
    else if (config_.activation == Activation::swiglu)
      throw FileError(facts_.file, "names the activation SiLU, but the MLP has no gate");
    const bool mean = config_.pooled_norm || !config_.class_token;
    config_.pool = facts_.pool.value_or(mean ? Pool::mean : Pool::cls);
    config_.position_resize = big_vision              ? PositionResize::spline_order1
                              : config_.registers > 0 ? defaults.resize_with_registers
                                                      : defaults.resize;
    read_heads();
    read_grid();
  }

  /// The configuration may name more than the weights hold (they are incomplete then, which check()
  /// says), but nothing else.
  void agrees_with_file(const char* what, std::optional<int64_t> said, int64_t held) const {
    if (said && held > 0 && *said != held)
      throw FileError(facts_.file, std::string("is of another model than ") + file_.string() +
                                       ": got " + what + " " + std::to_string(*said) + ", wanted " +
                                       std::to_string(held));
  }

  /// Flax's gelu is the tanh form. The original files are read with the erf form by timm and
  /// Convpass, big_vision's as big_vision does. OpenAI's files carry their input resolution and use
  /// QuickGELU.
  Activation default_activation(const FormatDefaults& defaults, bool big_vision) const {
    if (big_vision) return Activation::gelu_tanh;
    if (table_.format == VitFormat::clip && source_.has("input_resolution"))
      return Activation::quick_gelu;
    return defaults.activation;
  }

  void read_heads() {
    int64_t heads = 0;
    if (config_.width % 64 == 0) heads = config_.width / 64;
    for (const auto& [width, known] : kHeadsOfWidth)
      if (config_.width == width) heads = known;
    if (facts_.head_width) heads = config_.width / *facts_.head_width;
    config_.heads = renamed_.heads.value_or(facts_.heads.value_or(heads));
    if (config_.heads == 0 && !source_.metadata.count(kConfigKey))
      throw FileError(file_,
                      "width " + std::to_string(config_.width) +
                          ": the number of heads is not in the file, wanted a " +
                          (facts_.file.empty() ? "config.json" : facts_.file.filename().string()) +
                          " beside it that names it");
  }

  /// Rows of the position table are prefix rows, if any, and a grid; without a configuration that
  /// says otherwise the grid is square.
  void read_grid() {
    const int64_t rows = extent("pos_embed", 1);
    const int64_t tokens = (config_.class_token ? 1 : 0) + (config_.distillation_token ? 1 : 0);
    if (facts_.image_size && config_.patch > 0) {
      const int64_t height = (*facts_.image_size)[0] / config_.patch;
      const int64_t width = (*facts_.image_size)[1] / config_.patch;
      for (int64_t prefix : {tokens, int64_t{0}, tokens + config_.registers})
        if (set_grid(rows, prefix, height, width)) return;
    }
    for (int64_t prefix : {int64_t{0}, tokens, tokens + config_.registers})
      if (int64_t side = square_root(rows - prefix))
        if (set_grid(rows, prefix, side, side)) return;
    if (rows > 0 && !source_.metadata.count(kConfigKey))
      throw FileError(file_, "tensor " + source_names(table_, prefix_, "pos_embed")[0] + ": got " +
                                 std::to_string(rows) + " positions, wanted a square grid with " +
                                 std::to_string(tokens) + " or no rows before it");
  }
  bool set_grid(int64_t rows, int64_t prefix, int64_t height, int64_t width) {
    if (height <= 0 || width <= 0 || height > rows || width > rows ||
        rows != prefix + height * width)
      return false;
    config_.grid_height = height;
    config_.grid_width = width;
    config_.prefix_positions = prefix > 0 || !(config_.class_token || config_.distillation_token);
    return true;
  }

  /// Normalization by what the format, the configuration or the kind of model tells; then all that
  /// a file of our own declares.
  void read_declared(Normalization& normalization) {
    normalization = defaults_of(table_.format).normalization;
    if (table_.format == VitFormat::timm) {
      if (config_.pre_norm)
        normalization = kClip;
      else if (config_.layer_scale || config_.registers > 0 || config_.distillation_token)
        normalization = kImageNet;
      else  // AugReg's and DeiT's plain files have the same names and differ in this
        normalization.assumed = true;
    }
    if (facts_.normalization) normalization = *facts_.normalization;
    if (auto text = source_.metadata.find(kConfigKey); text != source_.metadata.end()) {
      VitConfig declared;
      read_json_fields(text->second, declared, file_);
      declared_ = config_ = declared;
    }
    if (auto text = source_.metadata.find(kNormalizationKey); text != source_.metadata.end())
      normalization = normalization_from(text->second, file_);
    if (config_.width <= 0 || config_.heads <= 0 || config_.width % config_.heads != 0)
      throw FileError(file_, "width " + std::to_string(config_.width) + " does not divide by " +
                                 std::to_string(config_.heads) + " heads");
  }

  /// Registers have no positions, and timm's models with registers give none to the class token
  /// either: position rows of prefix tokens are added to the tokens.
  void fold_positions() {
    if (declared_ ? declared_->prefix_positions : config_.registers == 0) return;
    config_.prefix_positions = !(config_.class_token || config_.distillation_token);
    auto positions = renamed_.backbone.find("pos_embed");
    if (positions == renamed_.backbone.end() || positions->second.dim() != 3) return;
    const int64_t grid = config_.grid_height * config_.grid_width;
    const int64_t prefix = positions->second.size(1) - grid;
    const int64_t tokens = config_.prefix() - config_.registers;
    if (prefix != tokens && prefix != config_.prefix()) return;
    int64_t row = 0;
    for (const char* name : {"cls_token", "dist_token", "reg_token"}) {
      auto token = renamed_.backbone.find(name);
      if (token == renamed_.backbone.end() || token->second.dim() != 3) continue;
      const int64_t count = token->second.size(1);
      if (row + count > prefix) break;
      token->second = token->second + positions->second.narrow(1, row, count);
      row += count;
    }
    positions->second = positions->second.narrow(1, prefix, grid).contiguous();
  }

  void check() {
    const auto shapes = vit_shapes(config_);
    std::vector<std::string> missing, left_over = renamed_.left_over;
    auto miss = [&](const std::vector<std::string>& names) {
      missing.insert(missing.end(), names.begin(), names.end());
    };
    for (const auto& [name, parts] : renamed_.incomplete) miss(parts);
    for (const auto& [name, shape] : shapes)
      if (!has(name) && renamed_.incomplete.count(name) == 0)
        miss(source_names(table_, prefix_, name));
    for (const auto& [name, tensor] : renamed_.backbone)
      if (shapes.count(name) == 0) left_over.push_back(renamed_.origin.at(name));
    const std::string kind = std::string(" of a ") + defaults_of(table_.format).name + " ViT";
    if (!missing.empty()) throw FileError(file_, "misses " + count_and_names(missing) + kind);
    if (!left_over.empty())
      throw FileError(file_, "has, beside those" + kind + ", " + count_and_names(left_over));
    for (const auto& [name, shape] : shapes) {
      const at::Tensor& tensor = renamed_.backbone.at(name);
      if (tensor.sizes() != at::IntArrayRef(shape))
        throw FileError(file_, "tensor " + renamed_.origin.at(name) + ": got shape " +
                                   shape_text(tensor.sizes()) + " in timm's layout, wanted " +
                                   shape_text(shape));
    }
  }

  const NameTable& table_;
  const TensorMap& source_;
  const std::filesystem::path& file_;
  const ConfigFacts& facts_;
  std::string prefix_;
  RenamedTensors renamed_;
  VitConfig config_;
  std::optional<VitConfig> declared_;
};

}  // namespace

VitCheckpoint load_vit_checkpoint(const std::filesystem::path& file) {
  return vit_checkpoint_from(load_tensors(file), file);
}

VitCheckpoint vit_checkpoint_from(const TensorMap& tensors, const std::filesystem::path& file) {
  for (const NameTable* table : all_name_tables())
    if (matching_prefix(*table, tensors)) {
      const ConfigFacts facts = read_config_facts(table->format, file);
      return Reader(*table, tensors, file, facts).read();
    }
  throw FileError(file,
                  "holds no vision transformer of a known naming (timm, Google npz, Hugging "
                  "Face, DINOv2, CLIP)");
}

TensorMap vit_checkpoint_as(const VitCheckpoint& checkpoint, VitFormat format) {
  TensorMap out;
  const std::string name(vit_format_name(format));
  try {
    out.tensors = from_timm(table_of(format), checkpoint);
    out.format = checkpoint.backbone.format;
    out.metadata[kConfigKey] = write_json_fields(checkpoint.config);
    out.metadata[kNormalizationKey] = normalization_text(checkpoint.normalization);
    // Whether the format can hold this model is whether reading it back gives the same one.
    for (const NameTable* table : all_name_tables())
      if (matching_prefix(*table, out)) {
        const VitCheckpoint back = Reader(*table, out, name, ConfigFacts{}).read();
        if (back.format != format || back.hash != checkpoint.hash)
          throw Error("it would be read back as another model");
        return out;
      }
    throw Error("it would not be recognised");
  } catch (const Error& error) {
    throw Error("format " + name + " cannot hold " + vit_name(checkpoint.config) + ": " +
                error.what());
  }
}

std::string_view vit_format_name(VitFormat format) { return defaults_of(format).name; }

std::optional<VitFormat> vit_format_named(std::string_view name) {
  for (const FormatDefaults& each : kFormats)
    if (name == each.name) return each.format;
  return std::nullopt;
}

}  // namespace convpass
