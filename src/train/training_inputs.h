#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/data/batch_stream.h"

namespace convpass {

/// What a training step is fed: image batches, or, where a frozen backbone without adapter sees the
/// same views again and again (a linear probe without augmentation), features that were computed
/// once.
class TrainingInputs {
 public:
  struct Options {
    StreamOptions stream;
    bool features_once = false;
    std::vector<View> further_views{};  ///< carried behind the student's
  };
  /// All must outlive this object.
  TrainingInputs(const TunedModel& model, const Dataset& dataset, const ImagePipeline& pipeline,
                 const Options& options);

  int64_t batches_per_epoch() const;
  void seek(int64_t batch);
  /// The next batch; with features computed once, its images are features [B, D] on the model's
  /// device.
  Batch next();
  bool features_once() const { return !stream_.has_value(); }
  /// Time that computing features took, which a rate of training must count.
  double seconds_before() const { return seconds_before_; }

 private:
  void compute_features();

  const TunedModel& model_;
  const Dataset& dataset_;
  const ImagePipeline& pipeline_;
  StreamOptions options_;
  std::optional<BatchStream> stream_;  // absent when features are computed once
  at::Tensor features_, labels_;       // [images, D] float32, [images]
  std::optional<BatchOrder> order_;    // of the features
  int64_t next_ = 0;
  double seconds_before_ = 0;
};

}  // namespace convpass
