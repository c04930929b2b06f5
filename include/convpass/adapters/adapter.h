#pragma once

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "convpass/adapters/adaptformer.h"
#include "convpass/adapters/bitfit.h"
#include "convpass/adapters/bottleneck.h"
#include "convpass/adapters/convpass.h"
#include "convpass/adapters/fact.h"
#include "convpass/adapters/lora.h"
#include "convpass/adapters/repadapter.h"
#include "convpass/adapters/ssf.h"
#include "convpass/adapters/vpt.h"

namespace convpass {

/// The head alone trains, or the whole backbone.
struct NoAdapter {};
void fields(FieldVisitor& visitor, NoAdapter& config);

/// What stands beside the backbone; the page docs/adapters.md compares them.
using AdapterConfig =
    std::variant<NoAdapter, ConvpassConfig, LoraConfig, AdaptFormerConfig, BottleneckConfig,
                 RepAdapterConfig, SsfConfig, BitFitConfig, VptConfig, FactConfig>;
void fields(FieldVisitor& visitor, AdapterConfig& config);
/// "none", "convpass", "lora", ...: the word for it in a recipe.
const char* adapter_type(const AdapterConfig& config);
/// The `blocks` of a config; empty = all, or the kind has no such choice.
std::vector<int64_t> adapter_blocks(const AdapterConfig& config);

/// Builds what the config says with fresh weights drawn from `seed`, null for NoAdapter. Errors:
/// Error when the backbone has no such blocks, layers or tokens.
std::unique_ptr<Adapter> make_adapter(const AdapterConfig& config, const Backbone& backbone,
                                      uint64_t seed);

}  // namespace convpass
