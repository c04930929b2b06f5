#pragma once

#include <memory>
#include <string>
#include <vector>

#include "convpass/data/batch_stream.h"
#include "convpass/data/dataset.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// The data sets of a run; val and test may be null.
struct Splits {
  std::unique_ptr<Dataset> train, val, test;
};

enum class Split { train, val, test };

/// One split as a run has it: what is held out of the training set is not in it, and data.val is
/// where the run trains on that too. No image is read. Errors: Error.
std::unique_ptr<Dataset> open_split(const Recipe& recipe, Split split, int64_t classes);

/// Opens the splits and checks that their classes agree, and a cosine head's texts with them; no
/// image is read. val and test must have
/// labels, train if a loss uses them; without, it takes its classes from data.classes,
/// data.class_names, `teacher_classes` or the other splits. Errors: Error.
Splits open_splits(const Recipe& recipe, const std::vector<std::string>& teacher_classes = {});

/// Errors: RecipeError where the recipe mixes pairs and so few training images make an odd batch.
void check_pairs(const Recipe& recipe, int64_t images);

/// Decodes every image once: broken ones stop the run (the first ten and a count) or are left out,
/// as `data.on_error` says. A stop that is requested meanwhile ends it early. Errors: Error, also
/// those of check_pairs before the wait.
/// Whether all were looked at and are whole.
bool check_images(Splits& splits, const Recipe& recipe);
/// The same of one data set, which messages call `where`.
bool check_images(Dataset& dataset, const Recipe& recipe, const std::string& where);

/// Opens one split, or other images, to evaluate on; they must have labels. No image is read.
std::unique_ptr<Dataset> open_labelled(const Recipe& recipe, Split split, int64_t classes);
std::unique_ptr<Dataset> open_labelled(const Recipe& recipe, const DatasetConfig& config,
                                       int64_t classes, const std::string& where);

/// Threads that decode: as configured, or one per two cores.
int worker_count(const TrainConfig& config);

/// How a run reads its training set.
StreamOptions stream_options(const Recipe& recipe);

}  // namespace convpass
