#pragma once

#include <vector>

#include "convpass/core/rng.h"
#include "src/data/image_ops.h"

namespace convpass {

/// torchvision's ColorJitter as timm calls it: `strengths` of brightness, contrast, saturation and,
/// if there is a fourth, hue; one number stands for the first three. Each factor is uniform from
/// max(0, 1 - strength) to 1 + strength, the turn of the hue from -strength to strength, in random
/// order; a strength of 0 leaves its operation out.
std::vector<Change> draw_color_jitter(const std::vector<double>& strengths, Rng& rng);

}  // namespace convpass
