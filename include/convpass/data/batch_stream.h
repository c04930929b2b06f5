#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "convpass/data/dataset.h"
#include "convpass/data/pipeline.h"
#include "convpass/data/sample_cache.h"

namespace convpass {

struct Batch {
  at::Tensor images;              ///< [B, 3, H, W] float32, normalised, on the CPU: views[0]
  std::vector<at::Tensor> views;  ///< one such tensor for each view of the stream
  at::Tensor labels;              ///< [B] int64; -1 without labels
  std::vector<int64_t> indices;   ///< of the samples in the data set
  std::vector<int64_t> copies;    ///< which copy of the image each is: 0 in a plain shuffle
  int64_t step = 0;               ///< counted over the whole run
  int64_t replayed = 0;           ///< the step whose order and views these are: `step`, or with
                                  ///< replay_epochs the one of the first pass
  std::vector<bool> blanks;       ///< rows without pixels: of samples that StreamOptions::known
                                  ///< named; empty: none

  bool blank(size_t row) const { return !blanks.empty() && blanks[row]; }
};

/// A training set smaller than a batch.
enum class SmallSet {
  one_batch,         ///< one batch an epoch, of what there is
  with_replacement,  ///< one whole batch an epoch, each image drawn from all (BiT, few-shot)
};

struct StreamOptions {
  int64_t batch_size = 64;
  uint64_t seed = 42;
  int workers = 1;       ///< threads that decode ahead; at least 1
  bool training = true;  ///< shuffle by (seed, epoch), augment, repeat; else one pass in order
  /// Where decoded images (finished views when none changes) are kept; null: nowhere.
  std::shared_ptr<ImageCache> images{};
  /// Whether the pixels of a sample are not wanted: asked by the workers, for the rows of a batch
  /// one by one. Empty: all are wanted.
  std::function<bool(int64_t)> known{};
  bool drop_last = true;  ///< training: leave out the partial batch at the end of an epoch
  SmallSet small_set = SmallSet::one_batch;
  int64_t replay_epochs = 0;  ///< training: everything repeats after this many epochs; 0 = never
  int64_t repeats = 1;  ///< training: each drawn image stands so many times in a row, each copy
                        ///< augmented by itself; an epoch keeps its length (see BatchOrder)
};

/// The order of the `size` samples in an epoch of training: Fisher-Yates by
/// Rng(seed, epoch, 0, Purpose::shuffle).
std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t size);

/// The samples of a batch, and which copy of its image each is.
struct BatchSamples {
  std::vector<int64_t> indices, copies;
};

/// Which samples stand in which batch: a pure function of (options, size, step). next() of a stream
/// and every other walk over a training set ask here. May be used by several threads.
///
/// With `repeats` r an epoch is that of timm's RepeatAugSampler in one process: the shuffled
/// images, each r times in a row, cut to the largest multiple of 256 within the size of the set (to
/// the size itself below 256). So an epoch shows about an r-th of the images.
class BatchOrder {
 public:
  BatchOrder(int64_t size, const StreamOptions& options);
  /// Training: rows of all batches of an epoch, whatever drop_last leaves out.
  int64_t epoch_size() const { return epoch_size_; }
  /// Training: whole batches in an epoch (with `drop_last` off also the partial one), at least one.
  int64_t steps_per_epoch() const { return steps_; }
  /// The step of the first pass that `step` (0-based) repeats; itself without replay_epochs.
  int64_t replayed(int64_t step) const;
  /// Of the batch at `step`.
  BatchSamples samples(int64_t step);

 private:
  std::shared_ptr<const std::vector<int64_t>> shuffled(int64_t epoch);

  int64_t size_, epoch_size_, steps_;
  StreamOptions options_;
  std::mutex mutex_;
  // Workers are at most a few steps apart, so two epochs are enough.
  std::map<int64_t, std::shared_ptr<const std::vector<int64_t>>> orders_;
};

/// One of the views that a batch carries of each sample.
struct View {
  const ImagePipeline* pipeline = nullptr;  ///< must outlive the stream
  /// Which random stream the crop and the flip are drawn from. Views with the same number see the
  /// same part of the image and the same flip, whatever their sizes and normalisations.
  int64_t draw = 0;
  bool fixed = false;  ///< drawn once: the same in every epoch
};

/// The key of one view of one sample. Draw and copy 0: random_key(seed, epoch, index,
/// Purpose::augment). `copy` is the sample's copy in the batch or, repeated, in the epoch.
uint64_t view_key(uint64_t seed, int64_t epoch, int64_t index, int64_t draw = 0, int64_t copy = 0);

/// Batches in an order that depends on (seed, epoch) alone, made ahead by worker threads: at most
/// `workers + 1` wait or are being made. One thread calls seek() and next().
///
/// Training: endless; epoch e is a shuffle of the data set by Rng(seed, e, 0, Purpose::shuffle);
/// the views of a sample are drawn by view_key(seed, e, index, draw, copy), fixed
/// ones by epoch 0. Evaluation: one pass in order of evaluation views, last partial batch kept.
class BatchStream {
 public:
  /// `dataset` and `pipeline` must outlive the stream.
  BatchStream(const Dataset& dataset, const ImagePipeline& pipeline, const StreamOptions& options);
  /// Several views of each sample, at least one; those that share a draw have the same crop and
  /// flip settings.
  BatchStream(const Dataset& dataset, std::vector<View> views, const StreamOptions& options);
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
