#pragma once

#include "convpass/adapters/tuned_model.h"
#include "convpass/train/build.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// Bytes that a training run needs at its fullest; rough, and nothing of images that wait.
struct MemoryNeed {
  double program = 0;      ///< LibTorch and what it loads, on the CPU
  double backbone = 0;     ///< its weights, for every direction that they are used in
  double trainable = 0;    ///< weights, gradients, the optimiser's moments
  double activations = 0;  ///< of a batch, for the backward pass
  double total() const { return program + backbone + trainable + activations; }
};
MemoryNeed memory_need(const Recipe& recipe, const TunedModel& model);

/// "1234.5 MiB".
std::string mebibytes(double bytes);

/// build_model() for a training run: with a train.memory_budget as few blocks as possible compute
/// again what the backward pass needs, which is said on stderr.
/// Errors: those of build_model; RecipeError when not even all of them fit the budget.
TunedModel build_for_training(const Recipe& recipe, int64_t classes,
                              LoadedCheckpoint* loaded = nullptr);

}  // namespace convpass
