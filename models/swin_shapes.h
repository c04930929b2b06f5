#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "convpass/models/swin.h"

namespace convpass {

inline constexpr int64_t kMostSwinStages = 8, kMostSwinBlocks = 1024;  // more is a bad file
inline constexpr double kSwinEps = 1e-5;                               // of every LayerNorm

/// What the names of a stage's tensors begin with: "layers.1.", counted from 0.
std::string swin_stage_name(size_t stage);
/// Of a block's: "layers.1.blocks.0.".
std::string swin_block_name(size_t stage, int64_t block);

/// Every tensor of a Swin under timm's name, with its shape.
std::map<std::string, std::vector<int64_t>> swin_shapes(const SwinConfig& config);

}  // namespace convpass
