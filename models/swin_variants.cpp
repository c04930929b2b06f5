// Names of Swin transformers, the field list of their configuration, the image sizes that they take
// and the shapes of their tensors.
#include <algorithm>
#include <regex>
#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"
#include "models/swin_shapes.h"

namespace convpass {
namespace {

constexpr int64_t kMostChannels = 1 << 16, kMostSide = 1 << 10;

struct Size {
  const char* name;
  int64_t width;
  std::vector<int64_t> depths, heads;
};
const Size kSizes[] = {{"tiny", 96, {2, 2, 6, 2}, {3, 6, 12, 24}},
                       {"small", 96, {2, 2, 18, 2}, {3, 6, 12, 24}},
                       {"base", 128, {2, 2, 18, 2}, {4, 8, 16, 32}},
                       {"large", 192, {2, 2, 18, 2}, {6, 12, 24, 48}}};

SwinConfig make(const Size& size, int64_t patch, int64_t window) {
  return {.width = size.width,
          .depths = size.depths,
          .heads = size.heads,
          .windows = std::vector<int64_t>(size.depths.size(), window),
          .patch = patch};
}

std::string spell(const Size& size, int64_t patch, int64_t window) {
  return std::string("swin_") + size.name + "_patch" + std::to_string(patch) + "_window" +
         std::to_string(window);
}

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> all;
  std::istringstream in(text);
  for (std::string number; std::getline(in, number, '-');) all.push_back(std::stoll(number));
  return all;
}

std::string joined(const std::vector<int64_t>& all) {
  std::string text;
  for (int64_t number : all) text += (text.empty() ? "" : "-") + std::to_string(number);
  return text;
}

std::string square(int64_t side) { return std::to_string(side) + "x" + std::to_string(side); }

/// The form in which swin_name writes a network without a name of its own.
std::optional<SwinConfig> spelt_out(const std::string& name) {
  static const std::string list = "([0-9]{1,5}(?:-[0-9]{1,5})*)";
  static const std::regex pattern("swin width ([0-9]{1,7}) depths " + list + " heads " + list +
                                  " windows " + list + " patch ([0-9]{1,5})");
  std::smatch match;
  if (!std::regex_match(name, match, pattern)) return std::nullopt;
  SwinConfig config{.width = std::stoll(match[1]),
                    .depths = numbers(match[2]),
                    .heads = numbers(match[3]),
                    .windows = numbers(match[4]),
                    .patch = std::stoll(match[5])};
  check(config);
  return config;
}

int64_t largest_window(const SwinConfig& config) {
  return *std::max_element(config.windows.begin(), config.windows.end());
}

/// Errors: Error for sides that the stages do not divide.
void check_division(const SwinConfig& config, const std::array<int64_t, 2>& image_size) {
  const int64_t unit = config.stride(config.stages() - 1);
  for (int64_t side : image_size)
    if (side < unit || side % unit != 0)
      throw Error("got " + std::to_string(side) + ", wanted a multiple of " + std::to_string(unit) +
                  ", the pixels of a token in the last stage");
}

}  // namespace

void fields(FieldVisitor& visitor, SwinConfig& config) {
  visitor.field("width", config.width, "features of a token in the first stage",
                between(1, kMostChannels));
  visitor.field("depths", config.depths, "blocks of each stage", between(1, kMostSwinBlocks));
  visitor.field("heads", config.heads, "attention heads of each stage", between(1, kMostChannels));
  visitor.field("windows", config.windows, "side of the windows of each stage",
                between(1, kMostSide));
  visitor.field("patch", config.patch, "side of a patch in pixels", between(1, kMostSide));
  visitor.field("expansion", config.expansion, "MLP width in multiples of a token's",
                between(1, kMostSide));
  visitor.field("qkv_bias", config.qkv_bias, "the query, key and value layer has a bias");
}

void check(const SwinConfig& config) {
  auto require = [](bool holds, const std::string& what) {
    if (!holds) throw Error("Swin: " + what);
  };
  auto in_bounds = [&](int64_t value, int64_t most, const char* what) {
    require(value >= 1 && value <= most,
            "got " + std::to_string(value) + " " + what + ", wanted 1 to " + std::to_string(most));
  };
  const auto stages = static_cast<int64_t>(config.stages());
  in_bounds(stages, kMostSwinStages, "stages");
  in_bounds(config.width, kMostChannels, "features of a token");
  in_bounds(config.patch, kMostSide, "pixels along a patch");
  in_bounds(config.expansion, kMostSide, "times a token's width in the MLP");
  for (const auto& [list, what] :
       {std::pair{&config.heads, "heads"}, std::pair{&config.windows, "windows"}})
    require(list->size() == config.stages(), "got " + joined(*list) + " for " + what +
                                                 ", wanted one for each of " +
                                                 std::to_string(stages) + " stages");
  for (size_t i = 0; i < config.stages(); ++i) {
    in_bounds(config.depths[i], kMostSwinBlocks, "blocks in a stage");
    in_bounds(config.heads[i], kMostChannels, "heads in a stage");
    in_bounds(config.windows[i], kMostSide, "tokens along a window");
    require(config.dim(i) % config.heads[i] == 0,
            "got " + std::to_string(config.heads[i]) + " heads in stage " + std::to_string(i + 1) +
                ", wanted a divisor of the width " + std::to_string(config.dim(i)));
  }
}

SwinConfig swin_variant(const std::string& name) {
  if (const std::optional<SwinConfig> config = spelt_out(name)) return *config;
  // timm's tag and its older suffix say which weights, not which model.
  const std::string model = name.substr(0, name.find('.'));
  static const std::regex pattern(
      "swin_([a-z]+)_patch([1-9][0-9]{0,2})_window([1-9][0-9]{0,2})(?:_[1-9][0-9]{0,3})?"
      "(?:_in22k|_in22ft1k)?");
  std::smatch match;
  if (std::regex_match(model, match, pattern))
    for (const Size& size : kSizes)
      if (match[1] == size.name) return make(size, std::stoll(match[2]), std::stoll(match[3]));
  std::vector<std::string> known;
  for (const Size& size : kSizes)
    for (int64_t window : {7, 12}) known.push_back(spell(size, 4, window));
  throw Error("backbone variant \"" + name + "\" is not known" + did_you_mean(model, known) +
              "; wanted swin_SIZE_patch4_window7 with the sizes tiny, small, base, large, or any "
              "size as \"swin width 32 depths 1-2 heads 1-2 windows 4-4 patch 4\"");
}

std::string swin_name(const SwinConfig& config) {
  // A name tells neither how small the images were nor the biases.
  SwinConfig plain = config;
  plain.windows.assign(config.stages(), largest_window(config));
  plain.qkv_bias = true;
  for (const Size& size : kSizes)
    if (make(size, config.patch, plain.windows[0]) == plain)
      return spell(size, config.patch, plain.windows[0]);
  return "swin width " + std::to_string(config.width) + " depths " + joined(config.depths) +
         " heads " + joined(config.heads) + " windows " + joined(config.windows) + " patch " +
         std::to_string(config.patch);
}

std::array<int64_t, 2> own_image_size(const SwinConfig& config) {
  const int64_t side = config.windows.back() * config.stride(config.stages() - 1);
  return {side, side};
}

SwinConfig fitted_to(SwinConfig config, const std::array<int64_t, 2>& image_size) {
  check_division(config, image_size);
  for (size_t i = 0; i < config.stages(); ++i)
    config.windows[i] =
        std::min(config.windows[i], std::min(image_size[0], image_size[1]) / config.stride(i));
  check_image_size(config, image_size);
  return config;
}

void check_image_size(const SwinConfig& config, const std::array<int64_t, 2>& image_size) {
  check_division(config, image_size);
  const int64_t largest = largest_window(config);
  for (size_t i = 0; i < config.stages(); ++i) {
    // A window smaller than the others was cut to its grid.
    const int64_t window = config.windows[i];
    const int64_t height = image_size[0] / config.stride(i),
                  width = image_size[1] / config.stride(i);
    const bool fits = window < largest ? height == window && width == window
                                       : height >= window && width >= window;
    if (fits) continue;
    const int64_t side = window * config.stride(i);
    throw Error("got " + std::to_string(image_size[0]) + "x" + std::to_string(image_size[1]) +
                ", wanted " + (window < largest ? square(side) : "at least " + square(side)) +
                ": the grid of stage " + std::to_string(i + 1) + " would be " +
                std::to_string(height) + "x" + std::to_string(width) +
                ", and the weights have relative positions for windows of " + square(window));
  }
}

std::string swin_stage_name(size_t stage) { return "layers." + std::to_string(stage) + "."; }

std::string swin_block_name(size_t stage, int64_t block) {
  return swin_stage_name(stage) + "blocks." + std::to_string(block) + ".";
}

std::map<std::string, std::vector<int64_t>> swin_shapes(const SwinConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes;
  auto module = [&](const std::string& name, std::vector<int64_t> weight, bool bias = true) {
    if (bias) shapes[name + ".bias"] = {weight[0]};
    shapes[name + ".weight"] = std::move(weight);
  };
  module("patch_embed.proj", {config.width, 3, config.patch, config.patch});
  module("patch_embed.norm", {config.width});
  for (size_t stage = 0; stage < config.stages(); ++stage) {
    const int64_t dim = config.dim(stage), hidden = config.expansion * dim;
    const int64_t distances = 2 * config.windows[stage] - 1;
    if (stage > 0) {
      const std::string merging = swin_stage_name(stage) + "downsample.";
      module(merging + "norm", {2 * dim});
      module(merging + "reduction", {dim, 2 * dim}, /*bias=*/false);
    }
    for (int64_t i = 0; i < config.depths[stage]; ++i) {
      const std::string block = swin_block_name(stage, i);
      module(block + "norm1", {dim});
      shapes[block + "attn.relative_position_bias_table"] = {distances * distances,
                                                             config.heads[stage]};
      module(block + "attn.qkv", {3 * dim, dim}, config.qkv_bias);
      module(block + "attn.proj", {dim, dim});
      module(block + "norm2", {dim});
      module(block + "mlp.fc1", {hidden, dim});
      module(block + "mlp.fc2", {dim, hidden});
    }
  }
  module("norm", {config.dim(config.stages() - 1)});
  return shapes;
}

}  // namespace convpass
