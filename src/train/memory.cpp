#include "src/train/memory.h"

#include <cstdio>

#include "convpass/core/error.h"
#include "convpass/train/build.h"
#include "convpass/train/progress.h"

namespace convpass {
namespace {

/// A process that has loaded LibTorch and OpenCV, with what its allocator keeps: measured.
constexpr double kProgram = 300.0 * 1024 * 1024;

int64_t count(const NamedTensors& tensors) {
  int64_t sum = 0;
  for (const auto& [name, tensor] : tensors) sum += tensor.numel();
  return sum;
}

}  // namespace

MemoryNeed memory_need(const Recipe& recipe, const TunedModel& model) {
  MemoryNeed need;
  const Backbone::Size size = model.backbone->size();
  need.program = model.device().is_cpu() ? kProgram : 0;
  need.backbone = static_cast<double>(size.bytes);
  // Packed weights lie once more in the order of the backward pass.
  if (size.values > count(model.backbone->parameters())) need.backbone *= 2;
  // Those that train are counted as such; from forward to backward pass their casts lie beside
  // them.
  if (model.backbone_trainable)
    need.backbone =
        recipe.train.precision == Precision::f32 ? 0 : 2.0 * static_cast<double>(size.values);
  const double moments = recipe.optimizer.type == OptimizerType::sgd ? 1 : 2;
  // Weights and gradients, the average, the best so far, and all but the gradients again while a
  // checkpoint is written.
  const double kept = 1 + (recipe.train.ema.decay > 0) + (recipe.select == SelectRule::best_val);
  need.trainable =
      4.0 * (2 * (kept + moments) + 1) * static_cast<double>(model.trainable_parameters());
  need.activations = (recipe.train.precision == Precision::f32 ? 4.0 : 2.0) *
                     static_cast<double>(recipe.train.batch_size) *
                     static_cast<double>(model.backbone->step_values(model.adapter.get(),
                                                                     model.backbone_trainable));
  return need;
}

std::string mebibytes(double bytes) {
  char text[48];
  std::snprintf(text, sizeof text, "%.1f MiB", bytes / (1 << 20));
  return text;
}

TunedModel build_for_training(const Recipe& recipe, int64_t classes, LoadedCheckpoint* loaded) {
  TunedModel model = build_model(recipe, classes, loaded);
  if (recipe.train.memory_budget == 0) return model;
  const double budget = static_cast<double>(recipe.train.memory_budget) * 1024 * 1024;
  const int64_t depth = model.backbone->depth();
  for (int64_t again = 0; again <= depth; ++again) {
    model.backbone->set_recomputed(again);
    const MemoryNeed need = memory_need(recipe, model);
    if (need.total() > budget) continue;
    say("memory: about " + mebibytes(need.total()) + " of " + mebibytes(budget) +
        (again == 0 ? ""
                    : "; " + std::to_string(again) + " of " + std::to_string(depth) +
                          " blocks compute twice"));
    return model;
  }
  throw RecipeError(recipe.file, "/train/memory_budget",
                    "got " + mebibytes(budget) + ", wanted about " +
                        mebibytes(memory_need(recipe, model).total()) +
                        " or more, or a smaller train.batch_size (train.accumulate makes up for "
                        "it)");
}

}  // namespace convpass
