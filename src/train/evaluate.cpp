#include "convpass/train/evaluate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "convpass/data/batch_stream.h"
#include "convpass/train/progress.h"
#include "src/train/run_cache.h"

namespace convpass {

Metrics evaluate(const TunedModel& model, const Dataset& dataset, const ImagePipeline& pipeline,
                 const EvaluateOptions& options) {
  at::NoGradGuard no_grad;
  const int64_t classes = options.among.empty() ? model.classes() : std::ssize(options.among);
  const at::Tensor among = at::tensor(options.among, at::kLong);
  const c10::Device device = model.device();
  StreamOptions once{
      .batch_size = options.batch_size, .workers = options.workers, .training = false};
  BatchStream stream(dataset, pipeline, options.kept ? options.kept->apply(once) : once);
  StemCache* const stem = options.kept ? options.kept->stem.get() : nullptr;
  Progress progress(options.what, dataset.size(), "image");
  Metrics metrics;
  double loss = 0;
  int64_t right1 = 0, right5 = 0;
  std::vector<int64_t> seen(static_cast<size_t>(classes)), right(static_cast<size_t>(classes));
  Batch batch;
  while (!stop_requested() && stream.next(batch)) {
    const at::Tensor features = stem ? model.after_stem(stem->of(batch), Pass{})
                                     : model.features(batch.images.to(device), Pass{});
    at::Tensor logits = model.head.forward(features).cpu();  // [B, K]
    if (!options.among.empty()) logits = logits.index_select(1, among);
    loss += at::cross_entropy_loss(logits, batch.labels, {}, at::Reduction::Sum).item<double>();
    const int64_t top = std::min<int64_t>(5, classes);
    at::Tensor hits = std::get<1>(logits.topk(top, 1)).eq(batch.labels.unsqueeze(1));  // [B, top]
    at::Tensor first = hits.select(1, 0);
    right1 += first.sum().item<int64_t>();
    right5 += hits.sum().item<int64_t>();
    for (int64_t i = 0; i < batch.labels.size(0); ++i) {
      const auto label = static_cast<size_t>(batch.labels[i].item<int64_t>());
      ++seen[label];
      right[label] += first[i].item<bool>();
    }
    metrics.images += batch.labels.size(0);
    progress.update(metrics.images);
  }
  progress.finish();
  const auto images = static_cast<double>(metrics.images);
  metrics.top1 = static_cast<double>(right1) / images;
  metrics.top5 = static_cast<double>(right5) / images;
  metrics.loss = loss / images;
  for (size_t c = 0; c < seen.size(); ++c)
    metrics.per_class.push_back(seen[c] == 0
                                    ? std::numeric_limits<double>::quiet_NaN()
                                    : static_cast<double>(right[c]) / static_cast<double>(seen[c]));
  return metrics;
}

std::string metrics_json(const Metrics& metrics) {
  return nlohmann::ordered_json{{"images", metrics.images},
                                {"top1", metrics.top1},
                                {"top5", metrics.top5},
                                {"loss", metrics.loss},
                                {"per_class", metrics.per_class}}  // NaN is written as null
      .dump();
}

std::vector<Prediction> predict(const TunedModel& model, const ImagePipeline& pipeline,
                                const std::vector<std::string>& classes, const Image& image,
                                int64_t top) {
  at::NoGradGuard no_grad;
  at::Tensor input = at::empty({1, 3, pipeline.height(), pipeline.width()});
  pipeline.normalise(pipeline.evaluation_view(image), input.data_ptr<float>());
  at::Tensor probabilities =
      at::softmax(model.logits(input.to(model.device()), Pass{}), 1).select(0, 0).cpu();
  auto [values, indices] = probabilities.topk(std::min(top, model.classes()));
  std::vector<Prediction> best;
  for (int64_t i = 0; i < values.size(0); ++i)
    best.push_back(
        {classes.at(static_cast<size_t>(indices[i].item<int64_t>())), values[i].item<double>()});
  return best;
}

}  // namespace convpass
