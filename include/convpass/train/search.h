#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "convpass/train/recipe.h"

namespace convpass {

/// A key of the recipe that a search varies, and the values that it tries, as --set takes them.
struct SearchAxis {
  std::string key;
  std::vector<std::string> values;
};

/// "adapter.scale=0.1,1,10"; a comma inside brackets, braces or quotes belongs to a value.
/// Errors: UsageError.
SearchAxis parse_axis(const std::string& text);

struct SearchOptions {
  std::vector<SearchAxis> axes{};
  int64_t seeds = 1;     ///< runs of each trial: train.seed, train.seed + 1, ...
  int64_t random = 0;    ///< so many trials, drawn from the grid by train.seed; 0 = the whole grid
  bool halving = false;  ///< all go to a quarter of the run, the better half of them on to a half
                         ///< of it, and the better half of those to its end
};

/// A value for each axis.
using Setting = std::vector<std::pair<std::string, std::string>>;

/// What will be tried, checked before anything is trained.
struct SearchPlan {
  struct Trial {
    Setting setting;
    Recipe recipe;  ///< without the test split, which no trial sees
  };
  SearchOptions options;
  Recipe recipe;  ///< as it was given
  std::vector<Trial> trials;

  /// The shares of a whole run after which trials are compared.
  std::vector<double> rungs() const;
};

/// The grid of `options` over the recipe, or what is drawn from it. Errors: UsageError, RecipeError
/// (a key or value that is none; no data.val to choose by, or one that is data.test).
SearchPlan plan_search(const std::filesystem::path& recipe, const std::vector<std::string>& sets,
                       const SearchOptions& options);

/// What a run reaches on `val`.
struct ValScore {
  int64_t images = 0, right = 0;
  double loss = 0;  ///< mean cross-entropy
};

struct TrialRun {
  int64_t seed = 0;
  std::vector<ValScore> scores{};  ///< one for each rung that it has come to
  bool diverged = false;
};

/// A setting that was tried, once for each seed.
struct Trial {
  int64_t number = 0;  ///< from 0, in the order of the grid
  Setting setting;
  std::vector<TrialRun> runs;

  bool diverged() const;
  /// Whether a seed diverged before it came to this rung.
  bool diverged(size_t rung) const;
  /// Rungs that every seed has come to.
  size_t rungs() const;
  /// Over the seeds at a rung that all have come to.
  int64_t right(size_t rung) const;
  double top1(size_t rung) const, loss(size_t rung) const;
  /// Sample standard deviation of top-1; NaN of one seed.
  double deviation(size_t rung) const;
};

/// {"trial","setting","trained","val":{"top1","top1_std","loss","images","per_seed"},"seeds"} as
/// JSON text, one line; "trained" is the share of a whole run, "val" null where a run diverged.
std::string trial_json(const Trial& trial, const SearchPlan& plan);

struct SearchOutcome {
  bool finished = false;  ///< false: stopped by a signal; `resume` goes on
  std::vector<Trial> trials{};
  int64_t chosen = -1;  ///< its number; -1 while there is none
  std::string reason{};
  std::string final_json{};  ///< the result of the last run
};

/// Trains every trial without the test split and chooses by the mean top-1 on `val` over the seeds
/// (of equals the lower mean loss, then the earlier trial). The chosen setting is trained once more
/// on train and val together, with the recipe's own seed, and evaluated on the test split, once.
///
/// `out` gets trials/NUMBER/seed_SEED and final, which are run folders, and search.json. `resume`
/// goes on with a search of the same plan. `ended` is called for each trial that goes no further.
/// Errors: Error (images of data.test in data.train or data.val; every trial diverged).
SearchOutcome search(const SearchPlan& plan, const std::filesystem::path& out, bool resume,
                     const std::function<void(const Trial&)>& ended);

}  // namespace convpass
