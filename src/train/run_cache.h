#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/data/batch_stream.h"
#include "convpass/data/sample_cache.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// What the frozen part of a model, below all that trains, makes of each image of a data set that
/// is always seen in the same view: computed when an image first comes, then kept.
class StemCache {
 public:
  /// `where` names the data set in messages; `model` must outlive this.
  StemCache(const TunedModel& model, int64_t images, std::shared_ptr<CacheBudget> budget,
            std::string where)
      : model_(model), kept_(images, std::move(budget)), where_(std::move(where)) {}

  bool known(int64_t image) const { return kept_.known(image); }
  /// Of each image of the batch (see TunedModel::stem), on the model's device. The batch may leave
  /// out the pixels of images that are known.
  at::Tensor of(const Batch& batch);

 private:
  const TunedModel& model_;
  SampleTensors kept_;
  std::string where_;

  void report() const;
};

/// What is kept of the images of one split: one or the other, or nothing.
struct SplitCache {
  std::unique_ptr<StemCache> stem;     ///< in place of images
  std::shared_ptr<ImageCache> images;  ///< decoded, or views where none changes

  /// `options` for a stream that neither decodes nor prepares what is kept.
  StreamOptions apply(StreamOptions options) const;
};

/// What a run keeps of its images so as not to compute it again, all within one budget
/// (data.cache_mb of memory, then data.cache_disk_mb in `folder`), and the one place that says what
/// may be kept.
class RunCache {
 public:
  RunCache(const DataConfig& config, const std::filesystem::path& folder)
      : budget_(std::make_shared<CacheBudget>(config.cache_mb << 20, config.cache_disk_mb << 20,
                                              folder)),
        on_(config.cache_mb > 0 || config.cache_disk_mb > 0) {}

  const std::shared_ptr<CacheBudget>& budget() const { return budget_; }

  /// Of a split on which the model is evaluated again and again: its view is always the same.
  SplitCache for_evaluation(const TunedModel& model, const Dataset& split,
                            const std::string& where) const;
  /// Of the training images, which a step needs in these views (the student's first): as there, if
  /// the student's view never changes, nothing is mixed and no teacher looks at pixels; else
  /// decoded images.
  SplitCache for_training(const TunedModel& model, const Dataset& split, const Recipe& recipe,
                          const std::vector<View>& views) const;

 private:
  std::shared_ptr<CacheBudget> budget_;
  bool on_;
};

}  // namespace convpass
