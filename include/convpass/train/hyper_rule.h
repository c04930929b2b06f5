#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convpass/train/recipe.h"

namespace convpass {

/// What BiT-HyperRule says (Kolesnikov et al. 2020, arXiv 1912.11370; big_transfer
/// `bit_hyperrule.py`).
struct BitRule {
  int64_t resize = 0;  ///< training: both sides, before the random crop
  int64_t crop = 0;    ///< input size; evaluation resizes to it
  int64_t steps = 0, warmup = 0;
  std::vector<double> milestones;  ///< first steps at a lower rate: one later than the rule's own,
                                   ///< at which the rate has not fallen yet
  double mixup = 0;                ///< alpha
  int64_t batch = 0;               ///< images a step
  double lr = 0;
};

/// `image_area`: height times width of the data's own images, in pixels. `light`: the batch and the
/// rate that the authors recommend for ordinary GPUs.
BitRule bit_hyper_rule(int64_t image_area, int64_t images, bool light);

/// Puts what the recipe's rule says in the place of the rule. A setting that the recipe gives
/// itself (Recipe::given) stays; returns the pointers of those that do. Errors: RecipeError where
/// train.batch_size or train.accumulate does not divide the rule's batch.
std::vector<std::string> apply_bit_hyper_rule(Recipe& recipe, int64_t image_area, int64_t images);

/// The recipe with plain settings in place of its rule; itself where it has none. Opens data.train
/// for its size and for the median area of (up to 25 of) its images, and says what it found.
/// Errors: Error.
Recipe resolve_rule(const Recipe& recipe);

}  // namespace convpass
