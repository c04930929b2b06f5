#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/data/batch_stream.h"
#include "convpass/data/sample_cache.h"
#include "convpass/train/build.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// What the frozen part of a model, below all that trains, makes of each image of a data set that
/// is always seen in the same view: computed when an image first comes, then kept.
class StemCache {
 public:
  /// `where` names the data set in messages; `model` must outlive this. What is `kept` may come
  /// from a model with the same frozen part.
  StemCache(const TunedModel& model, std::shared_ptr<SampleTensors> kept, std::string where)
      : model_(model), kept_(std::move(kept)), where_(std::move(where)) {}

  bool known(int64_t image) const { return kept_->known(image); }
  /// Of each image of the batch (see TunedModel::stem), on the model's device. The batch may leave
  /// out the pixels of images that are known.
  at::Tensor of(const Batch& batch);

 private:
  const TunedModel& model_;
  std::shared_ptr<SampleTensors> kept_;
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

/// What a run, or one run of this process after another, keeps so as not to compute it again: of
/// images all within one budget (data.cache_mb of memory, then data.cache_disk_mb in `folder`). The
/// one place that says what may be kept, and which run may take it over: one that says the same of
/// the images, of their view and, for stems, of the frozen part.
class RunCache {
 public:
  RunCache(const DataConfig& config, const std::filesystem::path& folder)
      : budget_(std::make_shared<CacheBudget>(config.cache_mb << 20, config.cache_disk_mb << 20,
                                              folder)),
        on_(config.cache_mb > 0 || config.cache_disk_mb > 0) {}

  /// Of data.val, on which the model is evaluated again and again: its view is always the same.
  SplitCache for_evaluation(const TunedModel& model, const Dataset& val, const Recipe& recipe,
                            const ImagePipeline& view);
  /// Of data.train, which a step needs in these views (the student's first): as there, if the
  /// student's view never changes, nothing is mixed and no teacher looks at pixels; else decoded
  /// images, or all views if none of them changes.
  SplitCache for_training(const TunedModel& model, const Dataset& train, const Recipe& recipe,
                          const std::vector<View>& views);

  /// Takes memory off the budget for the teachers' answers of one run after another; or nothing,
  /// and false.
  bool take_answers(int64_t bytes);

  /// Whether all images of these data were found whole, so that they need not be looked at again.
  bool known_whole(const DataConfig& data) const;
  void set_whole(const DataConfig& data);

  /// The checkpoint that the last run began from.
  LoadedCheckpoint& checkpoint() { return checkpoint_; }

 private:
  SplitCache always_same(const TunedModel& model, const Dataset& split, const Recipe& recipe,
                         const ImagePipeline& view, const std::string& where);
  std::shared_ptr<ImageCache> images(const std::string& key, const Dataset& split);

  std::shared_ptr<CacheBudget> budget_;
  bool on_;
  int64_t answers_ = 0;
  std::map<std::string, std::shared_ptr<SampleTensors>> stems_;
  std::map<std::string, std::shared_ptr<ImageCache>> images_;
  std::set<std::string> whole_;
  LoadedCheckpoint checkpoint_;
};

}  // namespace convpass
