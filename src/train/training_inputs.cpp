#include "src/train/training_inputs.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <chrono>

#include "convpass/train/progress.h"

namespace convpass {

TrainingInputs::TrainingInputs(const TunedModel& model, const Dataset& dataset,
                               const ImagePipeline& pipeline, const Options& options)
    : model_(model), dataset_(dataset), pipeline_(pipeline), options_(options.stream) {
  if (options.features_once) {
    compute_features();
    return;
  }
  std::vector<View> views{{.pipeline = &pipeline}};
  views.insert(views.end(), options.further_views.begin(), options.further_views.end());
  stream_.emplace(dataset, std::move(views), options.stream);
}

int64_t TrainingInputs::batches_per_epoch() const {
  return stream_ ? stream_->steps_per_epoch() : order_->steps_per_epoch();
}

void TrainingInputs::seek(int64_t batch) {
  next_ = batch;
  if (stream_) stream_->seek(batch);
}

Batch TrainingInputs::next() {
  Batch batch;
  if (stream_) {
    stream_->next(batch);
    return batch;
  }
  batch.step = next_++;
  batch.replayed = order_->replayed(batch.step);
  BatchSamples samples = order_->samples(batch.step);
  batch.indices = std::move(samples.indices);
  batch.copies = std::move(samples.copies);
  const at::Tensor rows = at::tensor(batch.indices, at::kLong).to(features_.device());
  batch.images = features_.index_select(0, rows);
  batch.labels = labels_.index_select(0, rows);
  return batch;
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
