#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/data/batch_stream.h"
#include "convpass/data/mixing.h"
#include "convpass/train/recipe.h"
#include "convpass/train/teacher.h"
#include "src/train/made_from.h"
#include "src/train/run_cache.h"
#include "src/train/step_plan.h"
#include "src/train/stored_predictions.h"

namespace convpass {

/// The teachers of a run and their answers for each batch: asked in the step, asked once before it
/// (fixed views), or read from a file of stored predictions.
class Distiller {
 public:
  /// Loads the teachers. Errors: Error (a teacher that is none, teachers of different classes).
  explicit Distiller(const Recipe& recipe);

  /// The teachers' class names.
  const std::vector<std::string>& classes() const { return teachers_.front()->classes(); }
  /// Errors: Error for a training set of other classes.
  void check_classes(const std::vector<std::string>& classes) const;

  int64_t weight_bytes() const;
  /// Weights and input of each teacher.
  MadeFrom teachers_made_from() const;

  /// Makes the teachers' views for a student with this input, and the projections of its features.
  void prepare(const InputConfig& student, int64_t feature_dim, uint64_t seed, c10::Device device);

  /// Views that a stream has to carry behind the student's own; empty where teachers are not asked
  /// in the step.
  std::vector<View> views() const;
  /// Errors: Error where stored predictions were made from something else, or cannot be written.
  void check_store(const Dataset& dataset) const;
  /// Asks once what fixed or stored views need. False when a signal stopped it. Errors: Error.
  /// Answers that are held in memory come off the budget.
  bool ask_ahead(const Dataset& dataset, RunCache& cache);

  /// The teachers' answers for a batch, on the student's device.
  std::vector<TeacherOutput> ask(const Batch& batch, const MixDraw& mix) const;

  /// The loss against these answers. `features`: of the student [B, D].
  at::Tensor loss(const at::Tensor& logits, const at::Tensor& features,
                  const std::vector<TeacherOutput>& answers) const;

  /// Weights of the projections: they train and are in checkpoints, not in the adapter file.
  NamedTensors parameters() const;

  /// How far a model is from the first teacher on a data set, each on its own evaluation view:
  /// {"kl": {"mean", "min", "max"}, "euclidean", "agree1", "agree5"} as JSON text.
  std::string distances_json(const TunedModel& model, const Dataset& dataset,
                             const ImagePipeline& student, int workers) const;

 private:
  /// Errors: RecipeError at the teacher.
  [[noreturn]] void refuse(size_t teacher, const std::string& why) const;
  void check_classes_of(size_t teacher, const std::vector<std::string>& classes,
                        const std::string& whose) const;
  bool asks_features() const { return config_.terms.feature > 0; }
  TeacherOutput ask_one(size_t teacher, const at::Tensor& images) const;
  std::vector<TeacherOutput> combined(std::vector<TeacherOutput> answers) const;
  std::vector<TeacherOutput> ask_views(const Batch& batch, size_t first, const MixDraw& mix) const;
  std::vector<View> own_views() const;
  bool ask_fixed(const Dataset& dataset, const PutBatch& put) const;
  bool ask_replayed(const Dataset& dataset, const PutBatch& put) const;
  bool hold_fixed(const Dataset& dataset, RunCache& cache);
  /// The batches of all that is stored.
  struct Layout {
    StepPlan plan;
    int64_t epochs = 0, epoch_rows = 0;
  };
  Layout layout(const Dataset& dataset) const;
  PredictionShape shape(const Dataset& dataset) const;
  MadeFrom made_from(const Dataset& dataset) const;

  const Recipe& recipe_;
  const DistillConfig& config_;
  std::vector<std::unique_ptr<Teacher>> teachers_;
  std::array<int64_t, 2> student_size_{0, 0};
  std::vector<std::unique_ptr<ImagePipeline>> pipelines_;  ///< one view for each teacher
  c10::Device device_ = c10::kCPU;
  std::vector<at::Tensor> projections_;  ///< [teacher's D, student's D] each

  std::vector<TeacherOutput> fixed_;  ///< [N, K] each, when asked once and not stored
  std::optional<StoredPredictions> stored_;
  Layout stored_layout_;
};

/// The draw that mixes a batch for a student of this size: a pure function of the step that the
/// batch was made for, or, replayed, repeats.
MixDraw mix_of(const Recipe& recipe, const Batch& batch, const StepPlan& plan,
               const std::array<int64_t, 2>& size);

}  // namespace convpass
