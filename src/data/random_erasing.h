#pragma once

#include <cstdint>
#include <vector>

#include "convpass/core/rng.h"
#include "convpass/data/pipeline.h"
#include "src/data/crop_box.h"

namespace convpass {

/// Boxes of timm's RandomErasing, often none: with the config's probability 1 to `count` of them,
/// each of 0.02 to 1/3 of the area divided by their number and height / width 0.3 to 1/0.3 by its
/// logarithm, in ten tries each. Source: timm 1.0.31, random_erasing.py (Zhong et al., 2017).
std::vector<Box> draw_erased(const ErasingConfig& config, int64_t height, int64_t width, Rng& rng);

/// Fills the boxes of a normalised image `[3, height, width]`: const = 0, rand = one normal number
/// for each box and channel, pixel = one for each value.
void erase(float* image, int64_t height, int64_t width, const ErasingConfig& config, Rng rng);

}  // namespace convpass
