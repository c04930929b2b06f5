#pragma once

#include <algorithm>
#include <cstdint>

#include "convpass/data/mixing.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// Which batches of the stream make which step of a run. With drop_last each epoch begins with the
/// data's own first batch, whatever `accumulate` leaves over; without it nothing is left over.
struct StepPlan {
  int64_t epoch_batches = 1;  ///< of the stream
  int64_t accumulate = 1;
  bool drop_last = true;

  int64_t epoch_steps() const { return std::max<int64_t>(1, epoch_batches / accumulate); }
  int64_t run_steps(const TrainConfig& train) const {
    return train.steps > 0 ? train.steps : train.epochs * epoch_steps();
  }
  /// Epochs of the stream that a run of so many steps reads from.
  int64_t epochs_read(int64_t steps) const {
    return (first_batch(steps - 1) + accumulate + epoch_batches - 1) / epoch_batches;
  }
  int64_t first_batch(int64_t step) const {
    if (!drop_last) return step * accumulate;
    return step / epoch_steps() * epoch_batches + step % epoch_steps() * accumulate;
  }
  /// Step and micro-batch that mix this batch of the stream.
  MixKey mix_key(uint64_t seed, int64_t batch) const {
    if (!drop_last) return {.seed = seed, .step = batch / accumulate, .micro = batch % accumulate};
    const int64_t epoch = batch / epoch_batches, within = batch % epoch_batches;
    return {.seed = seed,
            .step = epoch * epoch_steps() + within / accumulate,
            .micro = within % accumulate};
  }
};

inline StepPlan step_plan(const TrainConfig& train, int64_t epoch_batches) {
  return {
      .epoch_batches = epoch_batches, .accumulate = train.accumulate, .drop_last = train.drop_last};
}

}  // namespace convpass
