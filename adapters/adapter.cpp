#include "convpass/adapters/adapter.h"

#include <iterator>

#include "convpass/core/fields.h"

namespace convpass {
namespace {

constexpr const char* kTypes[] = {"none",       "convpass", "lora",   "adaptformer", "bottleneck",
                                  "repadapter", "ssf",      "bitfit", "vpt",         "fact"};
static_assert(std::size(kTypes) == std::variant_size_v<AdapterConfig>);

struct Make {
  const Backbone& backbone;
  uint64_t seed;

  std::unique_ptr<Adapter> operator()(const NoAdapter&) const { return nullptr; }
  std::unique_ptr<Adapter> operator()(const ConvpassConfig& config) const {
    return std::make_unique<Convpass>(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const LoraConfig& config) const {
    return make_lora(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const AdaptFormerConfig& config) const {
    return make_adaptformer(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const BottleneckConfig& config) const {
    return make_bottleneck(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const RepAdapterConfig& config) const {
    return make_repadapter(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const SsfConfig& config) const {
    return make_ssf(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const BitFitConfig& config) const {
    return make_bitfit(config, backbone);
  }
  std::unique_ptr<Adapter> operator()(const VptConfig& config) const {
    return make_vpt(config, backbone, seed);
  }
  std::unique_ptr<Adapter> operator()(const FactConfig& config) const {
    return make_fact(config, backbone, seed);
  }
};

}  // namespace

void fields(FieldVisitor&, NoAdapter&) {}

void fields(FieldVisitor& visitor, AdapterConfig& config) {
  visitor.variant("type", config,
                  {"none", "convpass", "lora", "adaptformer", "bottleneck", "repadapter", "ssf",
                   "bitfit", "vpt", "fact"},
                  "which adapter stands in or beside the backbone (docs/adapters.md)");
}

const char* adapter_type(const AdapterConfig& config) { return kTypes[config.index()]; }

std::vector<int64_t> adapter_blocks(const AdapterConfig& config) {
  return std::visit(
      [](const auto& one) -> std::vector<int64_t> {
        if constexpr (requires { one.blocks; }) return one.blocks;
        return {};
      },
      config);
}

std::unique_ptr<Adapter> make_adapter(const AdapterConfig& config, const Backbone& backbone,
                                      uint64_t seed) {
  return std::visit(Make{backbone, seed}, config);
}

}  // namespace convpass
