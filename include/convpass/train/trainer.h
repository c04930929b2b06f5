#pragma once

#include <filesystem>
#include <string>

#include "convpass/train/recipe.h"

namespace convpass {

struct TrainOutcome {
  bool finished = false;    ///< false: stopped by a signal; `--resume` goes on
  std::string result_json;  ///< the one line of the command line contract, when finished
};

/// Trains as the recipe says, its rule resolved first, into the folder `out` (recipe.json,
/// log.jsonl, checkpoint.pt, adapter.safetensors, result.json).
///
/// `resume` continues from checkpoint.pt (from the start where there is none) and refuses a run of
/// another recipe. Without it a folder that already holds a run is refused. Errors: Error for the
/// user's; a loss that is not finite names the step and keeps the last checkpoint.
TrainOutcome train(const Recipe& recipe, const std::filesystem::path& out, bool resume);

}  // namespace convpass
