#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "convpass/adapters/tuned_model.h"
#include "convpass/core/device.h"
#include "convpass/data/batch_stream.h"
#include "convpass/data/dataset.h"
#include "convpass/data/pipeline.h"
#include "convpass/models/vit.h"
#include "convpass/train/distill.h"
#include "convpass/train/objective.h"
#include "convpass/train/optimizer.h"
#include "convpass/train/schedule.h"

namespace convpass {

/// What a recipe reproduces; for readers, never acted on.
struct AboutConfig {
  std::string source, command, expected, measured;
};

struct BackboneConfig {
  std::filesystem::path weights;  ///< empty: random weights of `variant`
  std::string variant = "auto";
  std::vector<int64_t> image_size;  ///< empty = the checkpoint's; one number = square
  int64_t blocks = 0;               ///< of a ViT the first so many; 0 = all
  Pool pool = Pool::automatic;
  double drop_path = 0.0;
  bool trainable = false;
};

enum class EmaForm {
  v2,  ///< timm's ModelEmaV2 (USI)
  v3,  ///< timm's ModelEmaV3: may start late and warm up
};

/// An average of the weights and buffers, evaluated beside them. In the object of `train`:
/// ema_decay, ema_form, ema_start, ema_warmup, ema_copy_buffers.
struct EmaConfig {
  double decay = 0;  ///< 0 = no average
  EmaForm form = EmaForm::v2;
  int64_t start = 0;          ///< v3: steps in which the average is a copy
  bool warmup = false;        ///< v3: the decay rises to its value, 1 - (1 + t)^(-2/3) at first
  bool copy_buffers = false;  ///< v3: running statistics are copied, not averaged
};

struct TrainConfig {
  int64_t epochs = 100;
  int64_t steps = 0;  ///< when not 0, in place of epochs
  int64_t batch_size = 64;
  int64_t accumulate = 1;  ///< micro-batches of batch_size a step
  bool drop_last = true;   ///< leave out the partial batch of an epoch; false: micro-batches run on
                           ///< from epoch to epoch
  SmallSet small_set = SmallSet::one_batch;
  int64_t seed = 42;
  DeviceChoice device = DeviceChoice::automatic;
  Precision precision = Precision::f32;
  int64_t memory_budget = 0;       ///< MiB that a training run may take; 0 = any
  int64_t workers = 0;             ///< threads that decode; 0 = one per two cores, at least one
  int64_t eval_every = 1;          ///< epochs between evaluations on `val`
  int64_t best_on_test_every = 0;  ///< epochs between looks at `test` that choose nothing; 0 = none
  int64_t log_every = 0;    ///< epochs between lines of log.jsonl; 0 = at most 1,000 lines a run
  int64_t save_every = 0;   ///< steps between checkpoints; 0 = at ends of epochs, at most every 5 s
  double save_minutes = 0;  ///< also a checkpoint when so much time has passed; 0 = not
  EmaConfig ema;
};

enum class SelectRule { last, best_val };

/// Fills in settings that follow from the training images (hyper_rule.h).
enum class RecipeRule { none, bit_hyperrule, bit_hyperrule_light };

/// A whole run, resolved (but for `rule`): plain nested structs, no JSON inside.
struct Recipe {
  std::filesystem::path file;  ///< where it came from, for messages
  /// JSON pointers of the values that files and --set name, and who: what a rule leaves alone.
  std::map<std::string, std::filesystem::path> given;
  /// The file whose value stands at `pointer` or around it, or "--set"; `file` for a default.
  const std::filesystem::path& where(std::string pointer) const;
  AboutConfig about;
  RecipeRule rule = RecipeRule::none;
  BackboneConfig backbone;
  AdapterConfig adapter = ConvpassConfig{};
  HeadConfig head;
  DataConfig data;
  InputConfig input;
  AugmentConfig augment;
  LossConfig loss;
  DistillConfig distill;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  TrainConfig train;
  SelectRule select = SelectRule::last;
};

void fields(FieldVisitor& visitor, AboutConfig& config);
void fields(FieldVisitor& visitor, BackboneConfig& config);
void fields(FieldVisitor& visitor, EmaConfig& config);
void fields(FieldVisitor& visitor, TrainConfig& config);
void fields(FieldVisitor& visitor, Recipe& recipe);

/// Reads a recipe with its parents (`extends`) and overlays `sets` ("a.b.c=value", value JSON or a
/// bare word) last. Errors: RecipeError with file and JSON pointer; UsageError for a malformed
/// --set.
Recipe load_recipe(const std::filesystem::path& file, const std::vector<std::string>& sets = {});
/// A piece of a recipe (a JSON object) that another file lays over recipes.
struct RecipeOverlay {
  std::string json = "{}";
  std::filesystem::path where;   ///< names it in messages
  std::filesystem::path folder;  ///< where its relative paths start
};
/// The same with `overlay` between the file and `sets`.
Recipe load_recipe(const std::filesystem::path& file, const RecipeOverlay& overlay,
                   const std::vector<std::string>& sets);
/// Only --set, from defaults (for `bench` without a recipe).
Recipe recipe_from_sets(const std::vector<std::string>& sets);

/// Checks what no single field can: combinations, required parts. `needs_data` asks for weights and
/// data.train. Errors: RecipeError.
void validate(const Recipe& recipe, bool needs_data);
/// What validate() cannot know without the training images: whether an epoch of so many batches has
/// a step, and whether warm-up and cooldown fit in the run. Errors: RecipeError.
void validate_length(const Recipe& recipe, int64_t epoch_batches);

/// The resolved recipe as JSON text (two spaces), every field written: reading it gives the same
/// recipe.
std::string recipe_json(const Recipe& recipe);
/// 16 hexadecimal digits of recipe_json without `about`, and without device, workers, cache size,
/// data.root and the file of stored predictions, which do not change what is learned.
std::string recipe_hash(const Recipe& recipe);

/// `convpass help recipe [PART]`. Errors: UsageError for a part that does not exist.
std::string recipe_help(const std::string& part = "");
/// JSON Schema (draft 2020-12) of a recipe file, for editors.
std::string recipe_schema();

}  // namespace convpass
