#pragma once

#include <string>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/data/dataset.h"
#include "convpass/data/pipeline.h"

namespace convpass {

struct Metrics {
  int64_t images = 0;
  double top1 = 0, top5 = 0;  ///< fractions
  double loss = 0;            ///< mean cross-entropy
  std::vector<double>
      per_class;  ///< top-1 of each of the set's classes; NaN where there is no image
};

struct SplitCache;

struct EvaluateOptions {
  int64_t batch_size = 64;
  int workers = 1;
  std::string what = "evaluating";   ///< for the progress line
  const SplitCache* kept = nullptr;  ///< what is kept of the data set's images, if anything
  /// The model's class for each of the data set's: these alone are answers. Empty: the same
  /// classes.
  std::vector<int64_t> among{};
};

/// Runs the model over a data set without a graph.
Metrics evaluate(const TunedModel& model, const Dataset& dataset, const ImagePipeline& pipeline,
                 const EvaluateOptions& options);

/// {"images","top1","top5","loss","per_class"} as JSON text, one line.
std::string metrics_json(const Metrics& metrics);

struct Prediction {
  std::string label;
  double probability;
};
/// The `top` most probable classes of one decoded image, most probable first.
std::vector<Prediction> predict(const TunedModel& model, const ImagePipeline& pipeline,
                                const std::vector<std::string>& classes, const Image& image,
                                int64_t top);

}  // namespace convpass
