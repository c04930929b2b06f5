#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "convpass/data/dataset.h"
#include "convpass/data/pipeline.h"

namespace convpass {

struct Batch {
  at::Tensor images;             ///< [B, 3, H, W] float32, normalised, on the CPU
  at::Tensor labels;             ///< [B] int64
  std::vector<int64_t> indices;  ///< of the samples in the data set
  int64_t step = 0;              ///< counted over the whole run
};

struct StreamOptions {
  int64_t batch_size = 64;
  uint64_t seed = 42;
  int workers = 1;       ///< threads that decode ahead; at least 1
  bool training = true;  ///< shuffle by (seed, epoch), augment, drop the last partial batch, repeat
  int64_t cache_bytes = 0;  ///< budget for decoded images (evaluation views when nothing is
                            ///< random); what comes first is kept
};

/// The order of the `size` samples in an epoch of training: Fisher-Yates by
/// Rng(seed, epoch, 0, Purpose::shuffle).
std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t size);

/// Whole batches in an epoch of training; one (of what there is) when the set is smaller than a
/// batch.
int64_t training_steps_per_epoch(int64_t size, int64_t batch_size);

/// Batches in an order that depends on (seed, epoch) alone, made ahead by worker threads: at most
/// `workers + 1` wait or are being made. One thread calls seek() and next().
///
/// Training: endless; epoch e is a shuffle of the data set by Rng(seed, e, 0, Purpose::shuffle);
/// the augmentation of a sample draws from Rng(seed, e, index, Purpose::augment). A set smaller
/// than one batch gives one batch of what there is. Evaluation: one pass in order, last partial
/// batch kept.
class BatchStream {
 public:
  /// `dataset` and `pipeline` must outlive the stream.
  BatchStream(const Dataset& dataset, const ImagePipeline& pipeline, const StreamOptions& options);
  ~BatchStream();

  int64_t steps_per_epoch() const;
  /// Makes `step` (0-based) the next one; what workers have prepared is thrown away.
  void seek(int64_t step);
  /// Evaluation: false after the last batch. An image that fails to decode is rethrown here
  /// (FileError).
  bool next(Batch& batch);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace convpass
