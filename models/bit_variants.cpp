// Names of BiT ResNets, the field list of their configuration and the shapes of their tensors.
#include <optional>
#include <regex>
#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/core/json.h"
#include "models/bit_shapes.h"
#include "models/names_bit.h"

namespace convpass {
namespace {

constexpr int64_t kMostChannels = 1 << 20;

struct Depth {
  const char* layers;
  std::vector<int64_t> units;
};
const Depth kDepths[] = {{"50", {3, 4, 6, 3}}, {"101", {3, 4, 23, 3}}, {"152", {3, 8, 36, 3}}};

BitConfig make(const Depth& depth, int64_t factor) {
  BitConfig config;
  config.units = depth.units;
  config.root *= factor;
  for (int64_t& width : config.widths) width *= factor;
  return config;
}

std::string spell(const Depth& depth, int64_t factor) {
  return std::string("resnetv2_") + depth.layers + "x" + std::to_string(factor) + "_bit";
}

std::string joined(const std::vector<int64_t>& numbers) {
  std::string text;
  for (int64_t number : numbers) text += (text.empty() ? "" : "-") + std::to_string(number);
  return text;
}

std::vector<int64_t> numbers_in(const std::string& text) {
  std::vector<int64_t> numbers;
  std::istringstream in(text);
  for (std::string number; std::getline(in, number, '-');) numbers.push_back(std::stoll(number));
  return numbers;
}

/// The form in which bit_name writes a network without a name of its own.
std::optional<BitConfig> spelt_out(const std::string& name) {
  static const std::regex pattern(
      "bit root ([0-9]{1,7}) widths ([0-9]{1,7}(?:-[0-9]{1,7})*) units "
      "([0-9]{1,7}(?:-[0-9]{1,7})*)");
  std::smatch match;
  if (!std::regex_match(name, match, pattern)) return std::nullopt;
  BitConfig config;
  config.root = std::stoll(match[1]);
  config.widths = numbers_in(match[2]);
  config.units = numbers_in(match[3]);
  check(config);
  return config;
}

}  // namespace

void fields(FieldVisitor& visitor, BitConfig& config) {
  visitor.field("units", config.units, "bottleneck units of each stage", between(1, kMostUnits));
  visitor.field("root", config.root, "channels of the root convolution", between(1, kMostChannels));
  visitor.field("widths", config.widths, "channels that each stage puts out",
                between(1, kMostChannels));
  visitor.field("groups", config.groups, "groups of every GroupNorm", between(1, kMostChannels));
  visitor.field("eps", config.eps, "of every GroupNorm", between(0, 1));
  visitor.field("standardization_eps", config.standardization_eps,
                "added to the variance of a kernel", between(0, 1));
  visitor.choice("pool_padding", config.pool_padding, {"zero", "minus_infinity"},
                 "what surrounds the root's max-pool");
}

void check(const BitConfig& config) {
  auto require = [](bool holds, const std::string& what) {
    if (!holds) throw Error("BiT ResNet: " + what);
  };
  require(!config.units.empty() && config.units.size() == config.widths.size(),
          "got " + std::to_string(config.units.size()) + " stages with units and " +
              std::to_string(config.widths.size()) + " with widths, wanted as many, at least 1");
  int64_t units = 0;
  for (int64_t count : config.units) {
    require(count >= 1 && count <= kMostUnits, "got " + std::to_string(count) +
                                                   " units in a stage, wanted 1 to " +
                                                   std::to_string(kMostUnits));
    units += count;
  }
  require(units <= kMostUnits,
          "got " + std::to_string(units) + " units, wanted at most " + std::to_string(kMostUnits));
  auto divides = [&](int64_t channels, const std::string& what) {
    require(channels >= 1 && channels <= kMostChannels && config.groups >= 1 &&
                channels % config.groups == 0,
            "got " + std::to_string(channels) + " " + what + ", wanted a multiple of the " +
                std::to_string(config.groups) + " groups");
  };
  divides(config.root, "channels of the root");
  for (size_t stage = 0; stage < config.widths.size(); ++stage) {
    require(config.widths[stage] % 4 == 0, "got a stage of " +
                                               std::to_string(config.widths[stage]) +
                                               " channels, wanted a multiple of 4");
    divides(config.bottleneck(stage), "channels of a bottleneck");
  }
}

BitConfig bit_variant(const std::string& name) {
  if (const std::optional<BitConfig> config = spelt_out(name)) return *config;
  // timm's tag ("resnetv2_50x1_bit.goog_in21k") says which weights, not which model.
  const std::string model = name.substr(0, name.find('.'));
  static const std::regex pattern("(?:resnetv2_([0-9]+)x([1-9])_bit|R([0-9]+)x([1-9]))");
  std::smatch match;
  if (std::regex_match(model, match, pattern))
    for (const Depth& depth : kDepths)
      if (match[1] == depth.layers || match[3] == depth.layers)
        return make(depth, std::stoll(match[2].matched ? match[2] : match[4]));
  std::vector<std::string> known;
  for (const Depth& depth : kDepths)
    for (int64_t factor : {1, 2, 3, 4}) known.push_back(spell(depth, factor));
  throw Error(
      "backbone variant \"" + name + "\" is not known" + did_you_mean(model, known) +
      "; wanted resnetv2_LAYERSxFACTOR_bit or RLAYERSxFACTOR with 50, 101 or 152 layers, or any "
      "size as \"bit root 32 widths 128-256 units 1-1\"");
}

std::string bit_name(const BitConfig& config) {
  // What a name does not tell: small numerics, which follow the source of the weights.
  for (const Depth& depth : kDepths)
    for (int64_t factor = 1; factor <= 9; ++factor) {
      const BitConfig named = make(depth, factor);
      if (named.units == config.units && named.root == config.root &&
          named.widths == config.widths && named.groups == config.groups)
        return spell(depth, factor);
    }
  return "bit root " + std::to_string(config.root) + " widths " + joined(config.widths) +
         " units " + joined(config.units);
}

std::map<std::string, std::vector<int64_t>> bit_shapes(const BitConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes;
  auto norm = [&](const std::string& name, int64_t channels) {
    shapes[name + ".weight"] = shapes[name + ".bias"] = {channels};
  };
  shapes["stem.conv.weight"] = {config.root, 3, 7, 7};
  int64_t in = config.root;
  for (size_t stage = 0; stage < config.units.size(); ++stage) {
    const int64_t mid = config.bottleneck(stage), out = config.widths[stage];
    for (int64_t i = 0; i < config.units[stage]; ++i) {
      const std::string unit =
          "stages." + std::to_string(stage) + ".blocks." + std::to_string(i) + ".";
      norm(unit + "norm1", in);
      shapes[unit + "conv1.weight"] = {mid, in, 1, 1};
      norm(unit + "norm2", mid);
      shapes[unit + "conv2.weight"] = {mid, mid, 3, 3};
      norm(unit + "norm3", mid);
      shapes[unit + "conv3.weight"] = {out, mid, 1, 1};
      if (i == 0) shapes[unit + "downsample.conv.weight"] = {out, in, 1, 1};
      in = out;
    }
  }
  norm("norm", in);
  return shapes;
}

}  // namespace convpass
