#pragma once

#include <memory>
#include <string>
#include <vector>

#include "convpass/data/dataset.h"
#include "src/cli/trained.h"

namespace convpass::cli {

/// Labelled images to evaluate on.
struct TestSet {
  std::string name;  ///< of --on; empty: the one set without a name
  std::unique_ptr<Dataset> dataset;
  std::vector<int64_t> among;  ///< EvaluateOptions::among
};

/// --data, --split and --on.
std::vector<Option> test_set_options();

/// The sets that the options name, else the recipe's test split. The classes of all of them are
/// compared with the model's before their images are looked at. Those of --on may be fewer, in
/// folders; all others the same. Errors: Error.
std::vector<TestSet> open_test_sets(const Trained& trained, const Arguments& arguments,
                                    const LoadedModel& model);

}  // namespace convpass::cli
