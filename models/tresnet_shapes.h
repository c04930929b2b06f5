#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "convpass/models/tresnet.h"

namespace convpass {

inline constexpr int64_t kMostTResnetBlocks = 1024;  // of a stage; more is no model but a bad file

/// What the names of a block's tensors begin with: "body.layer1.0.", counted from stage 0, block 0.
std::string tresnet_block(size_t stage, int64_t block);

/// Every parameter and running statistic of a TResNet under timm's name, with its shape.
std::map<std::string, std::vector<int64_t>> tresnet_shapes(const TResnetConfig& config);

}  // namespace convpass
