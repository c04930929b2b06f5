#pragma once

#include <memory>

#include "convpass/data/dataset.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// The data sets of a run; val and test may be null.
struct Splits {
  std::unique_ptr<Dataset> train, val, test;
};

/// Opens the splits, checks that their classes agree, and decodes every image once: broken ones
/// stop the run (the first ten and a count) or are left out, as `data.on_error` says. Errors:
/// Error.
Splits open_splits(const Recipe& recipe);

/// Opens and checks one split.
std::unique_ptr<Dataset> open_checked(const DatasetConfig& config, const DataConfig& data,
                                      int64_t classes, int workers, const std::string& where);

/// Threads that decode: as configured, or one per two cores.
int worker_count(const TrainConfig& config);

}  // namespace convpass
