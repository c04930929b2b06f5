// Names of plain vision transformers, as timm spells them, and the field list of their
// configuration.
#include <algorithm>
#include <regex>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"
#include "convpass/models/vit.h"

namespace convpass {
namespace {

struct Size {
  const char* name;
  int64_t width, depth, heads, hidden;
};
constexpr Size kSizes[] = {
    {"tiny", 192, 12, 3, 768},    {"small", 384, 12, 6, 1536},   {"medium", 512, 12, 8, 2048},
    {"base", 768, 12, 12, 3072},  {"large", 1024, 24, 16, 4096}, {"so400m", 1152, 27, 16, 4304},
    {"huge", 1280, 32, 16, 5120}, {"giant", 1408, 40, 16, 6144}, {"gigantic", 1664, 48, 16, 8192},
};
/// DINOv2's g has its own shape and a gated MLP.
constexpr Size kDinoGiant{"giant", 1536, 40, 24, 4096};

/// A way of training that changes the architecture: words of its names around the size and the
/// patch.
struct Kind {
  const char* before;  ///< "deit3_" of "deit3_small_patch16"
  const char* middle;  ///< between size and patch
  const char* after;   ///< after the patch and the registers
  int64_t image_size;
  void (*apply)(VitConfig&);
};

void no_class_positions(VitConfig& config) {
  config.layer_scale = true;
  config.prefix_positions = false;
}
void clip(VitConfig& config) {
  config.pre_norm = true;
  config.patch_bias = false;
  config.eps = 1e-5;
}

constexpr Kind kKinds[] = {
    {"vit_", "", "", 224, [](VitConfig&) {}},
    {"deit_", "", "", 224, [](VitConfig&) {}},
    {"deit_", "_distilled", "", 224, [](VitConfig& c) { c.distillation_token = true; }},
    {"deit3_", "", "", 224, no_class_positions},
    {"vit_", "", "_dinov2", 518, [](VitConfig& c) { c.layer_scale = true; }},
    {"vit_", "", "_clip", 224, clip},
    {"vit_", "", "_clip_quickgelu", 224,
     [](VitConfig& c) {
       clip(c);
       c.activation = Activation::quick_gelu;
     }},
};

bool is_dino_giant(const Kind& kind, const Size& size) {
  return std::string_view(kind.after) == "_dinov2" &&
         std::string_view(size.name) == kDinoGiant.name;
}

VitConfig make(const Kind& kind, const Size& named, int64_t patch, int64_t registers,
               int64_t image_size) {
  const Size& size = is_dino_giant(kind, named) ? kDinoGiant : named;
  VitConfig config;
  config.width = size.width;
  config.depth = size.depth;
  config.heads = size.heads;
  config.hidden = size.hidden;
  config.patch = patch;
  config.grid_height = config.grid_width = image_size / patch;
  config.registers = registers;
  if (registers > 0) config.prefix_positions = false;
  kind.apply(config);
  if (&size == &kDinoGiant) config.activation = Activation::swiglu;
  return config;
}

std::string spell(const Kind& kind, const Size& size, int64_t patch, int64_t registers) {
  std::string name =
      std::string(kind.before) + size.name + kind.middle + "_patch" + std::to_string(patch);
  if (registers > 0) name += "_reg" + std::to_string(registers);
  return name + kind.after;
}

std::vector<std::string> known_names() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds)
    for (const Size& size : kSizes)
      for (int64_t patch : {8, 14, 16, 32}) {
        names.push_back(spell(kind, size, patch, 0));
        names.push_back(spell(kind, size, patch, 4));
      }
  // Long names first: of two that are as near, the one that keeps more of what was written is
  // meant.
  std::stable_sort(names.begin(), names.end(),
                   [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  return names;
}

}  // namespace

void fields(FieldVisitor& visitor, VitConfig& config) {
  constexpr int64_t kMost = 1 << 20;
  visitor.field("width", config.width, "features of a token", between(1, kMost));
  visitor.field("depth", config.depth, "blocks", between(1, 1024));
  visitor.field("heads", config.heads, "attention heads", between(1, kMost));
  visitor.field("hidden", config.hidden, "MLP width; for swiglu of one half", between(1, kMost));
  visitor.field("patch", config.patch, "side of a patch in pixels", between(1, 1024));
  visitor.field("grid_height", config.grid_height, "rows of the stored positions",
                between(1, kMost));
  visitor.field("grid_width", config.grid_width, "columns of the stored positions",
                between(1, kMost));
  visitor.field("class_token", config.class_token, "has a class token");
  visitor.field("distillation_token", config.distillation_token, "has DeiT's distillation token");
  visitor.field("registers", config.registers, "register tokens", between(0, 1024));
  visitor.field("prefix_positions", config.prefix_positions,
                "class and distillation token have positions");
  visitor.field("layer_scale", config.layer_scale, "LayerScale after each branch");
  visitor.field("pre_norm", config.pre_norm, "a norm before the blocks (CLIP)");
  visitor.field("patch_bias", config.patch_bias, "the patch embedding has a bias");
  visitor.field("qkv_bias", config.qkv_bias, "the query, key and value layer has a bias");
  visitor.field("pooled_norm", config.pooled_norm, "the last norm follows pooling (fc_norm)");
  visitor.choice("activation", config.activation, {"gelu", "gelu_tanh", "quick_gelu", "swiglu"},
                 "of the MLP");
  visitor.choice("pool", config.pool, {"auto", "cls", "mean"}, "how tokens become one feature");
  visitor.field("eps", config.eps, "of every LayerNorm", between(0, 1));
  visitor.choice(
      "position_resize", config.position_resize,
      {"bicubic_antialias", "bicubic", "bilinear", "spline_order1", "dinov2_scale_offset"},
      "how positions are brought to another grid");
}

VitConfig vit_variant(const std::string& name) {
  // timm's tag ("vit_base_patch16_224.augreg_in21k") says which weights, not which model.
  const std::string model = name.substr(0, name.find('.'));
  static const std::regex pattern(
      "([a-z0-9]+_)([a-z0-9]+)(_distilled)?_patch([1-9][0-9]{0,2})(?:_reg([1-9]))?"
      "((?:_clip|_quickgelu|_dinov2)*)(?:_([1-9][0-9]{0,3}))?");
  std::smatch match;
  if (std::regex_match(model, match, pattern))
    for (const Kind& kind : kKinds)
      for (const Size& size : kSizes) {
        if (match[1] != kind.before || match[2] != size.name || match[3] != kind.middle ||
            match[6] != kind.after)
          continue;
        const int64_t patch = std::stoll(match[4]);
        const int64_t image_size = match[7].matched ? std::stoll(match[7]) : kind.image_size;
        // A default size is only a default: with another patch the nearest grid below stands for
        // it.
        if (image_size < patch || (match[7].matched && image_size % patch != 0))
          throw Error("backbone variant \"" + name + "\": image size " +
                      std::to_string(image_size) + ", wanted a multiple of the patch " +
                      std::to_string(patch));
        return make(kind, size, patch, match[5].matched ? std::stoll(match[5]) : 0, image_size);
      }
  throw Error("backbone variant \"" + name + "\" is not known" +
              did_you_mean(model, known_names()) +
              "; wanted vit_SIZE_patchP[_reg4][_dinov2|_clip|_clip_quickgelu][_PIXELS], "
              "deit_SIZE[_distilled]_patchP or deit3_SIZE_patchP");
}

std::string vit_name(const VitConfig& config) {
  // What a name does not tell: the grid, how the loader resizes it, pooling, and small numerics.
  VitConfig plain = config;
  plain.pool = Pool::cls;
  plain.pooled_norm = false;
  if (plain.activation == Activation::gelu_tanh) plain.activation = Activation::gelu;
  for (const Kind& kind : kKinds)
    for (const Size& size : kSizes) {
      VitConfig named =
          make(kind, size, config.patch, config.registers, config.patch * config.grid_width);
      named.grid_height = config.grid_height;
      named.position_resize = config.position_resize;
      named.eps = config.eps;
      if (named == plain) return spell(kind, size, config.patch, config.registers);
    }
  return "vit width " + std::to_string(config.width) + " depth " + std::to_string(config.depth) +
         " heads " + std::to_string(config.heads) + " patch " + std::to_string(config.patch);
}

}  // namespace convpass
