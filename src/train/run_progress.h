#pragma once

#include <ATen/ATen.h>

#include <string>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"

namespace convpass {

/// How far a run has come: what its checkpoint holds besides weights, averages and moments.
struct RunProgress {
  int64_t step = 0;        ///< optimiser steps done
  double loss_sum = 0;     ///< since the last line of the log
  int64_t loss_steps = 0;  ///< summed in it
  double best_top1 = -1;   ///< on `val`
  int64_t best_epoch = 0;  ///< 0: none yet
  bool best_is_average = false;
  bool epoch_ended = false;  ///< its last step is done, its evaluation is not
  bool average_is_better = false;
  int64_t images = 0;  ///< trained on
  double train_seconds = 0, wall_seconds = 0;
};

/// [11] float64. The order is that of the files, and older ones are to be read.
inline at::Tensor encoded(const RunProgress& progress) {
  auto number = [](auto value) { return static_cast<double>(value); };
  return at::tensor(
      {number(progress.step), progress.loss_sum, progress.best_top1, number(progress.best_epoch),
       number(progress.epoch_ended), number(progress.images), progress.train_seconds,
       progress.wall_seconds, number(progress.loss_steps), number(progress.best_is_average),
       number(progress.average_is_better)},
      at::kDouble);
}

/// Errors: Error for a checkpoint without, and for one beyond the run.
inline RunProgress decoded_progress(const TensorMap& checkpoint, int64_t total_steps) {
  if (!checkpoint.has("progress") || checkpoint.at("progress").numel() != 11)
    throw Error("checkpoint: got no progress of a run, wanted a checkpoint.pt of convpass train");
  if (!checkpoint.at("progress").is_floating_point())
    throw Error("checkpoint: got a progress of whole numbers, wanted floating point");
  const at::Tensor values = checkpoint.at("progress").to(at::kDouble).contiguous();
  const double* value = values.const_data_ptr<double>();
  const double step = value[0], best_epoch = value[3];
  const bool sane = values.abs().lt(1e15).all().item<bool>();  // false for NaN too
  const auto end = static_cast<double>(total_steps);
  if (!sane || !(step >= 0 && step <= end) || !(best_epoch >= 0 && best_epoch <= end))
    throw Error("checkpoint: got a progress of step " + std::to_string(step) + " and best epoch " +
                std::to_string(best_epoch) + ", wanted 0 to " + std::to_string(total_steps));
  return {.step = static_cast<int64_t>(step),
          .loss_sum = value[1],
          .loss_steps = static_cast<int64_t>(value[8]),
          .best_top1 = value[2],
          .best_epoch = static_cast<int64_t>(best_epoch),
          .best_is_average = value[9] != 0,
          .epoch_ended = value[4] != 0,
          .average_is_better = value[10] != 0,
          .images = static_cast<int64_t>(value[5]),
          .train_seconds = value[6],
          .wall_seconds = value[7]};
}

}  // namespace convpass
