#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convpass/core/rng.h"
#include "src/data/image_ops.h"

namespace convpass {

/// timm's RandAugment: for each image `operations` of 15 kinds, drawn alike and with replacement,
/// each applied with `probability` at a strength around `magnitude`. Source: timm 1.0.31,
/// auto_augment.py, rand_augment_transform.
struct RandAugment {
  int64_t operations = 2;
  double probability = 0.5;   ///< of applying an operation that was drawn
  double magnitude = 10;      ///< 10 = the strongest that timm's ranges are made for
  double deviation = 0;       ///< of the normal distribution around magnitude; infinity = uniform
                              ///< from 0 to magnitude
  double max_magnitude = 10;  ///< what is drawn is clipped to 0 and this
  bool increasing = false;    ///< posterize, solarize and the factors change more with magnitude

  /// Those that are applied, with their arguments.
  std::vector<Change> draw(Rng& rng) const;
};

/// "rand-m7-mstd0.5-inc1": m magnitude, n operations, mstd deviation (above 100 = infinity), mmax
/// max_magnitude, inc increasing (0 = no), p probability; in any order, each at most once.
/// Errors: Error, "got ..., wanted ...": also for timm's `t` (other sets of operations), which is
/// not supported, and for parts that timm passes over in silence.
RandAugment parse_rand_augment(const std::string& text);

/// What timm hands to the operation at that magnitude (0 to max_magnitude). `negative` turns the
/// sign, where the operation has one. 0 for those without an argument.
double argument_of(Operation operation, double magnitude, bool increasing, bool negative);

}  // namespace convpass
