#include "src/cli/official_convpass.h"

#include <ATen/core/Tensor.h>

#include <charconv>
#include <map>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/json.h"

namespace convpass::cli {
namespace {

constexpr std::string_view kBlocks = "blocks.";
constexpr std::string_view kDown = ".adapter_down.weight";

/// Block and site of "blocks.3.adapter_attn.adapter_down.weight".
bool parse_down(std::string_view name, int64_t& block, std::string& site) {
  if (!name.starts_with(kBlocks) || !name.ends_with(kDown)) return false;
  name.remove_prefix(kBlocks.size());
  name.remove_suffix(kDown.size());
  auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), block);
  if (error != std::errc()) return false;
  std::string_view rest = name.substr(static_cast<size_t>(end - name.data()));
  site = rest == ".adapter_attn" ? "attn" : rest == ".adapter_mlp" ? "mlp" : "";
  return !site.empty();
}

}  // namespace

bool is_official_convpass(const TensorMap& map) {
  int64_t block;
  std::string site;
  for (const auto& [name, tensor] : map.tensors) {
    if (parse_down(name, block, site)) return true;
  }
  return false;
}

ConvpassConfig official_config(const TensorMap& map, const std::filesystem::path& file) {
  std::map<int64_t, std::set<std::string>> blocks;
  ConvpassConfig config;
  config.width = 0;
  for (const auto& [name, tensor] : map.tensors) {
    int64_t block = 0;
    std::string site;
    if (!parse_down(name, block, site)) continue;
    if (tensor.dim() != 2 || tensor.size(0) < 1) {
      throw FileError(file, name + ": wanted a matrix [width, D]");
    }
    if (config.width == 0) config.width = tensor.size(0);
    if (tensor.size(0) != config.width) {
      throw FileError(file, name + ": got width " + std::to_string(tensor.size(0)) + ", wanted " +
                                std::to_string(config.width) + " as in the other blocks");
    }
    blocks[block].insert(site);
  }
  if (blocks.empty()) throw FileError(file, "no tensor blocks.0.adapter_attn.adapter_down.weight");
  const std::set<std::string>& sites = blocks.begin()->second;
  config.sites.assign(sites.begin(), sites.end());
  for (const auto& [block, here] : blocks) {
    if (here != sites) {
      throw FileError(file, "block " + std::to_string(block) +
                                " has bypasses at other sites than block " +
                                std::to_string(blocks.begin()->first));
    }
    config.blocks.push_back(block);
  }
  return config;
}

}  // namespace convpass::cli
