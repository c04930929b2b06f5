// Names of TResNets, the field list of their configuration and the shapes of their tensors.
#include <optional>
#include <regex>
#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"
#include "models/tresnet_shapes.h"

namespace convpass {
namespace {

constexpr int64_t kMostChannels = 1 << 16;
constexpr size_t kStages = 4;

struct Variant {
  const char* name;
  TResnetConfig config;
};
const Variant kVariants[] = {{"tresnet_m", {}},
                             {"tresnet_l", {.layers = {4, 5, 18, 3}, .width = 76}},
                             {"tresnet_xl", {.layers = {4, 5, 24, 3}, .width = 83}},
                             {"tresnet_v2_l", {.layers = {3, 4, 23, 3}, .v2 = true}},
                             // the authors' name of the same, as USI's teacher
                             {"tresnet_l_v2", {.layers = {3, 4, 23, 3}, .v2 = true}}};

/// The form in which tresnet_name writes a network without a name of its own.
std::optional<TResnetConfig> spelt_out(const std::string& name) {
  static const std::regex pattern(
      "tresnet (v2 )?width ([0-9]{1,7}) layers ([0-9]{1,7}(?:-[0-9]{1,7})*)");
  std::smatch match;
  if (!std::regex_match(name, match, pattern)) return std::nullopt;
  TResnetConfig config;
  config.v2 = match[1].matched;
  config.width = std::stoll(match[2]);
  config.layers.clear();
  std::istringstream layers(match[3]);
  for (std::string number; std::getline(layers, number, '-');)
    config.layers.push_back(std::stoll(number));
  check(config);
  return config;
}

}  // namespace

void fields(FieldVisitor& visitor, TResnetConfig& config) {
  visitor.field("layers", config.layers, "blocks of each of the four stages",
                between(1, kMostTResnetBlocks));
  visitor.field("width", config.width, "channels of the stem", between(1, kMostChannels));
  visitor.field("v2", config.v2, "bottlenecks in every stage");
}

void check(const TResnetConfig& config) {
  auto require = [](bool holds, const std::string& what) {
    if (!holds) throw Error("TResNet: " + what);
  };
  require(config.layers.size() == kStages,
          "got " + std::to_string(config.layers.size()) + " stages, wanted 4");
  for (int64_t blocks : config.layers)
    require(blocks >= 1 && blocks <= kMostTResnetBlocks, "got " + std::to_string(blocks) +
                                                             " blocks in a stage, wanted 1 to " +
                                                             std::to_string(kMostTResnetBlocks));
  require(config.width >= 1 && config.width <= kMostChannels,
          "got " + std::to_string(config.width) + " channels of the stem, wanted 1 to " +
              std::to_string(kMostChannels));
}

TResnetConfig tresnet_variant(const std::string& name) {
  if (const std::optional<TResnetConfig> config = spelt_out(name)) return *config;
  // timm's tag ("tresnet_m.miil_in21k") says which weights, not which model.
  const std::string model = name.substr(0, name.find('.'));
  std::vector<std::string> known;
  for (const Variant& variant : kVariants) {
    if (model == variant.name) return variant.config;
    known.emplace_back(variant.name);
  }
  throw Error("backbone variant \"" + name + "\" is not known" + did_you_mean(model, known) +
              "; wanted tresnet_m, tresnet_l, tresnet_xl or tresnet_v2_l, or any size as \"tresnet "
              "width 16 layers 1-1-1-1\" or \"tresnet v2 width 16 layers 1-1-1-1\"");
}

std::string tresnet_name(const TResnetConfig& config) {
  for (const Variant& variant : kVariants)
    if (variant.config == config) return variant.name;
  std::string layers;
  for (int64_t blocks : config.layers)
    layers += (layers.empty() ? "" : "-") + std::to_string(blocks);
  return std::string("tresnet ") + (config.v2 ? "v2 " : "") + "width " +
         std::to_string(config.width) + " layers " + layers;
}

std::string tresnet_block(size_t stage, int64_t block) {
  return "body.layer" + std::to_string(stage + 1) + "." + std::to_string(block) + ".";
}

std::map<std::string, std::vector<int64_t>> tresnet_shapes(const TResnetConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes;
  auto convolution = [&](const std::string& name, int64_t out, int64_t in, int64_t side) {
    shapes[name + ".conv.weight"] = {out, in, side, side};
    for (const char* leaf : {"weight", "bias", "running_mean", "running_var"})
      shapes[name + ".bn." + leaf] = {out};
  };
  auto dense = [&](const std::string& name, int64_t out, int64_t in) {
    shapes[name + ".weight"] = {out, in, 1, 1};
    shapes[name + ".bias"] = {out};
  };
  convolution("body.conv1", config.width, 3 * TResnet::kSideUnit * TResnet::kSideUnit, 3);
  int64_t in = config.width;
  for (size_t stage = 0; stage < config.layers.size(); ++stage) {
    const int64_t mid = config.inside(stage), out = config.outside(stage);
    const bool bottleneck = config.bottleneck(stage);
    for (int64_t i = 0; i < config.layers[stage]; ++i) {
      const std::string block = tresnet_block(stage, i);
      convolution(block + "conv1", mid, in, bottleneck ? 1 : 3);
      convolution(block + "conv2", mid, mid, 3);
      if (bottleneck) convolution(block + "conv3", out, mid, 1);
      if (stage + 1 < kStages) {
        const int64_t squeezed = std::max<int64_t>(bottleneck ? mid / 2 : mid / 4, 64);
        dense(block + "se.fc1", squeezed, mid);
        dense(block + "se.fc2", mid, squeezed);
      }
      // The second of a pooling and a convolution, or the only one.
      if (i == 0 && stage > 0) convolution(block + "downsample.1", out, in, 1);
      if (i == 0 && stage == 0 && in != out) convolution(block + "downsample.0", out, in, 1);
      in = out;
    }
  }
  return shapes;
}

}  // namespace convpass
