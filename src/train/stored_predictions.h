#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "convpass/core/tensor_map.h"
#include "convpass/train/distill.h"
#include "src/train/made_from.h"

namespace convpass {

/// The shape of what is stored: `rows` samples in the order in which a run meets them, each with
/// the logits of every teacher.
struct PredictionShape {
  int64_t rows = 0;
  int64_t teachers = 1;
  int64_t classes = 0;
};

/// Writes the file row by row, whole or not at all. `produce` calls `put(indices, outputs)` for one
/// batch after another, `rows` samples in all, and returns false to give up (nothing is written
/// then, and false returned). Errors: FileError, also for a logit that the type cannot hold.
using PutBatch =
    std::function<void(const std::vector<int64_t>&, const std::vector<TeacherOutput>&)>;
bool write_predictions(const StoreConfig& config, const PredictionShape& shape,
                       const MadeFrom& made_from,
                       const std::function<bool(const PutBatch&)>& produce);

/// A file of predictions, mapped into memory.
class StoredPredictions {
 public:
  /// Errors: FileError for a file that is damaged, cut short or of another shape or type, or made
  /// from something else: it says from what.
  StoredPredictions(const StoreConfig& config, const PredictionShape& shape,
                    const MadeFrom& made_from);

  /// Logits that stand in these rows, which must be of these samples.
  /// Errors: FileError when the file's order is another or a row is damaged.
  std::vector<TeacherOutput> rows(const std::vector<int64_t>& rows,
                                  const std::vector<int64_t>& samples) const;

 private:
  std::filesystem::path file_;
  StoreConfig config_;
  PredictionShape shape_;
  TensorMap map_;
};

}  // namespace convpass
