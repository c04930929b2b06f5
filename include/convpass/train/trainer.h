#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "convpass/core/error.h"
#include "convpass/train/recipe.h"

namespace convpass {

struct TrainOutcome {
  bool finished = false;      ///< false: paused, or stopped by a signal; `--resume` goes on
  std::string result_json{};  ///< the one line of the command line contract, when finished
  bool paused = false;        ///< where TrainOptions says
};

/// Loss, gradient or weights are not finite.
class DivergedError : public Error {
 public:
  using Error::Error;
};

/// What the runs of one process can take over from each other: the loaded backbone, decoded images,
/// what the frozen part made of them.
class RunCache;
/// With the budgets of `data`; `folder` is for what goes to disk.
std::shared_ptr<RunCache> shared_cache(const DataConfig& data, const std::filesystem::path& folder);

/// Whether and how far a run goes, and what it need not do again.
struct TrainOptions {
  bool resume = false;  ///< go on from checkpoint.pt, from the start where there is none
  double share = 1.0;  ///< pause, with a checkpoint, at the end of the epoch in which this share of
                       ///< the run's steps is done; the schedule is that of the whole run
  std::shared_ptr<RunCache> cache{};  ///< of the runs before; null: one of its own
};

/// Trains as the recipe says, its rule resolved first, into the folder `out` (recipe.json,
/// log.jsonl, checkpoint.pt, adapter.safetensors, result.json).
///
/// `resume` refuses a run of another recipe. Without it a folder that already holds a run is
/// refused. A run that paused and goes on ends in the same bytes as one that did not. Errors: Error
/// for the user's; DivergedError names the step, and the last checkpoint is kept.
TrainOutcome train(const Recipe& recipe, const std::filesystem::path& out,
                   const TrainOptions& options);
inline TrainOutcome train(const Recipe& recipe, const std::filesystem::path& out, bool resume) {
  return train(recipe, out, TrainOptions{.resume = resume});
}

}  // namespace convpass
