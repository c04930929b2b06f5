#include "src/train/training_inputs.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <chrono>

#include "convpass/train/progress.h"

namespace convpass {

TrainingInputs::TrainingInputs(const TunedModel& model, const Dataset& dataset,
                               const ImagePipeline& pipeline, const Options& options)
    : model_(model), dataset_(dataset), pipeline_(pipeline), options_(options.stream) {
  if (options.features_once)
    compute_features();
  else
    stream_.emplace(dataset, pipeline, options.stream);
}

int64_t TrainingInputs::steps_per_epoch() const {
  return stream_ ? stream_->steps_per_epoch() : order_->steps_per_epoch();
}

void TrainingInputs::seek(int64_t step) {
  step_ = step;
  if (stream_) stream_->seek(step);
}

std::pair<at::Tensor, at::Tensor> TrainingInputs::next(const Pass& pass) {
  if (stream_) {
    Batch batch;
    stream_->next(batch);
    return {model_.logits(batch.images.to(model_.device()), pass),
            batch.labels.to(model_.device())};
  }
  const at::Tensor rows = at::tensor(order_->indices(step_++), at::kLong).to(features_.device());
  return {model_.head.forward(features_.index_select(0, rows)), labels_.index_select(0, rows)};
}

void TrainingInputs::compute_features() {
  at::NoGradGuard no_grad;
  const auto start = std::chrono::steady_clock::now();
  StreamOptions once = options_;
  once.training = false;
  once.cache_bytes = 0;
  BatchStream stream(dataset_, pipeline_, once);
  Progress progress("features", dataset_.size(), "image");
  std::vector<at::Tensor> features, labels;
  int64_t done = 0;
  // A signal ends this early; the trainer then stops before it takes a step.
  for (Batch batch; stream.next(batch) && (features.empty() || !stop_requested());) {
    features.push_back(
        model_.backbone->forward(batch.images.to(model_.device()), nullptr, Pass{}).to(at::kFloat));
    labels.push_back(batch.labels.to(model_.device()));
    progress.update(done += batch.labels.size(0));
  }
  progress.finish();
  features_ = at::cat(features);
  labels_ = at::cat(labels);
  order_.emplace(features_.size(0), options_);
  seconds_before_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace convpass
