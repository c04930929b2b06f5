#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "convpass/models/bit_resnet.h"

namespace convpass {

/// Every tensor of a BiT ResNet under timm's name, with its shape.
std::map<std::string, std::vector<int64_t>> bit_shapes(const BitConfig& config);

}  // namespace convpass
