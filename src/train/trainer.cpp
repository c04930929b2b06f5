#include "convpass/train/trainer.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/rng.h"
#include "convpass/models/vit_checkpoint.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "convpass/train/hyper_rule.h"
#include "convpass/train/progress.h"
#include "convpass/train/run_dir.h"
#include "src/train/best_on_test.h"
#include "src/train/distiller.h"
#include "src/train/ema.h"
#include "src/train/made_from.h"
#include "src/train/memory.h"
#include "src/train/named_tensors.h"
#include "src/train/run_cache.h"
#include "src/train/run_progress.h"
#include "src/train/splits.h"
#include "src/train/step_plan.h"

namespace convpass {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr const char* kWantedFinite =
    ", wanted finite numbers (lower optimizer.lr or set optimizer.clip_norm)";

/// The best epoch on `val` so far.
struct Best {
  double top1 = -1;
  int64_t epoch = 0;
  bool average = false;  ///< it was the average of the weights
  TensorMap weights;     ///< only where the recipe selects by it
};

/// One run: the loop, the optimiser and the step count. Everything that resuming needs is in
/// state().
class Trainer {
 public:
  Trainer(const Recipe& recipe, RunDir& run, const TrainOptions& options)
      : recipe_(recipe),
        run_(run),
        cache_(options.cache ? options.cache : shared_cache(recipe.data, run.folder())),
        distiller_(recipe.distill.on() ? std::make_unique<Distiller>(recipe) : nullptr),
        splits_(
            open_splits(recipe, distiller_ ? distiller_->classes() : std::vector<std::string>{})),
        model_(build_for_training(recipe, static_cast<int64_t>(splits_.train->classes().size()),
                                  options.cache ? &cache_->checkpoint() : nullptr)),
        input_(resolve_input(recipe.input, model_)),
        training_view_(input_, recipe.augment),
        evaluation_view_(input_, AugmentConfig{}),
        trainable_(prepare_trainable()),
        optimizer_(recipe.optimizer, trainable_),
        kept_(cache_->for_training(model_, whole_images(), recipe, views())),
        stream_(*splits_.train, views(), kept_.apply(stream_options(recipe))) {
    if (recipe.train.ema.decay > 0)
      ema_.emplace(recipe.train.ema, model_.trainable(), model_.buffers());
    plan_ = step_plan(recipe.train, stream_.steps_per_epoch());
    steps_per_epoch_ = plan_.epoch_steps();
    validate_length(recipe, plan_.epoch_batches);
    total_steps_ = plan_.run_steps(recipe.train);
    const double epochs =
        options.share * static_cast<double>(total_steps_) / static_cast<double>(steps_per_epoch_);
    last_step_ = std::min(total_steps_, steps_per_epoch_ * static_cast<int64_t>(std::ceil(epochs)));
    constexpr int64_t kLogLines = 1000;
    const int64_t least = (total_steps_ / steps_per_epoch_ + kLogLines - 1) / kLogLines;
    log_every_ = std::max<int64_t>(1, recipe.train.log_every > 0 ? recipe.train.log_every : least);
  }

  TrainOutcome run() {
    if (stop_requested()) return {};  // while images were checked
    if (distiller_ && !distiller_->ask_ahead(*splits_.train, *cache_)) return {};
    if (run_.has_checkpoint()) {
      const TensorMap saved = run_.load_checkpoint();
      try {
        load_state(saved);
      } catch (const Error& error) {
        throw FileError(run_.checkpoint(), error.what());
      }
      say("resuming at step " + std::to_string(step_) + " of " + std::to_string(total_steps_));
    }
    run_.cut_log(step_);  // what was logged after the last checkpoint is done again
    say(model_.backbone->describe() + ": " + std::to_string(model_.trainable_parameters()) +
        " of " + std::to_string(model_.total_parameters()) + " parameters train, " +
        std::to_string(splits_.train->size()) + " images, " + std::to_string(total_steps_) +
        " steps");
    if (!train_steps()) return {};
    if (last_step_ < total_steps_) return {.paused = true};
    return finish();
  }

 private:
  /// The training set, once every image of the run has been looked at: after the model is built and
  /// compared with that of the run's beginning, so that a wrong backbone, teacher or adapter is
  /// reported without the wait.
  const Dataset& whole_images() {
    run_.check_made_from(made_from());
    if (distiller_ && recipe_.data.on_error == OnError::stop)
      distiller_->check_store(*splits_.train);
    if (cache_->known_whole(recipe_.data)) return *splits_.train;
    if (check_images(splits_, recipe_)) cache_->set_whole(recipe_.data);
    return *splits_.train;
  }

  /// What the recipe names and does not hold, as JSON text.
  std::string made_from() const {
    MadeFrom from{{"backbone", model_.identity.hash},
                  {"architecture", MadeFrom::parse(model_.identity.architecture)},
                  {"input", MadeFrom::parse(write_json_fields(input_))}};
    if (distiller_) from["teachers"] = distiller_->teachers_made_from();
    if (!recipe_.head.text.empty()) from["text"] = weights_hash(load_tensors(recipe_.head.text));
    return from.dump(2);
  }

  /// What the optimiser moves: the model's, and the projections of a distillation.
  NamedTensors prepare_trainable() {
    NamedTensors all = model_.trainable();
    if (!distiller_) return all;
    distiller_->check_classes(splits_.train->classes());
    const auto seed = static_cast<uint64_t>(recipe_.train.seed);
    distiller_->prepare(input_, model_.backbone->feature_dim(),
                        random_key(seed, 1, 0, Purpose::init), model_.device());
    for (auto& parameter : distiller_->parameters()) all.push_back(std::move(parameter));
    return all;
  }

  /// What a batch carries of each image: the student's view, then those of teachers that are asked
  /// in the step.
  std::vector<View> views() const {
    std::vector<View> views{{.pipeline = &training_view_}};
    if (distiller_)
      for (const View& view : distiller_->views()) views.push_back(view);
    return views;
  }

  /// False when a signal stopped it; the state is saved then.
  bool train_steps() {
    stream_.seek(plan_.first_batch(step_));
    Progress progress("training", total_steps_, "step");
    Clock::time_point saved = Clock::now();
    auto save = [&] {
      check_finite();
      run_.save_checkpoint(state());
      saved = Clock::now();
    };
    while (step_ < last_step_ || epoch_ended_) {
      if (!epoch_ended_ && !stop_requested()) {
        const Clock::time_point start = Clock::now();
        const double loss = train_step();
        train_seconds_ += seconds_since(start);
        loss_sum_ += loss;
        ++loss_steps_;
        if (step_++ == 0) run_.begin(recipe_, made_from());
        if (plan_.first_batch(step_) != plan_.first_batch(step_ - 1) + plan_.accumulate)
          stream_.seek(plan_.first_batch(step_));
        char note[80];
        std::snprintf(note, sizeof note, "loss %.4f  lr %.2e", loss, rate());
        progress.update(step_, note);
        epoch_ended_ = step_ % steps_per_epoch_ == 0 || step_ == total_steps_;
      }
      const bool at_epoch_end = epoch_ended_;
      if (epoch_ended_ && !stop_requested()) end_epoch();
      if (stop_requested()) {
        if (step_ > 0) save();
        progress.finish();
        return false;
      }
      const bool due = recipe_.train.save_every > 0 ? step_ % recipe_.train.save_every == 0
                                                    : at_epoch_end && seconds_since(saved) > 5;
      const double minutes = recipe_.train.save_minutes;
      const bool late = minutes > 0 && seconds_since(saved) > 60 * minutes;
      if (due || late || step_ == last_step_) save();
    }
    progress.finish();
    return true;
  }

  /// batch -> mix -> teachers -> student -> loss -> backward -> clip -> optimiser -> average, at
  /// the rate of this step.
  double train_step() {
    optimizer_.zero_grad();
    const int64_t accumulate = recipe_.train.accumulate;
    double mean_loss = 0;
    for (int64_t micro = 0; micro < accumulate; ++micro) {
      const auto seed = static_cast<uint64_t>(recipe_.train.seed);
      const Pass pass{seeded_generator(random_key(seed, static_cast<uint64_t>(step_),
                                                  static_cast<uint64_t>(micro), Purpose::model))};
      Batch batch;
      stream_.next(batch);
      const MixDraw mix = mix_of(recipe_, batch, plan_, input_.size);
      std::vector<TeacherOutput> answers;
      if (distiller_) answers = distiller_->ask(batch, mix);
      const at::Tensor features = student_features(batch, mix, pass);
      at::Tensor loss = objective(batch, mix, features, answers);
      mean_loss += loss.item<double>() / static_cast<double>(accumulate);
      (accumulate == 1 ? loss : loss / accumulate).backward();
      images_trained_ += batch.labels.size(0);
    }
    const double norm = optimizer_.clip();
    if (!std::isfinite(mean_loss) || !std::isfinite(norm))
      throw DivergedError("training: step " + std::to_string(step_ + 1) + " of " +
                          std::to_string(total_steps_) + ": got loss " + std::to_string(mean_loss) +
                          ", gradient norm " + std::to_string(norm) + kWantedFinite +
                          what_is_kept());
    optimizer_.step(rate());
    if (ema_) ema_->update(step_ + 1);
    return mean_loss;
  }

  /// [B, D], from what is kept of the images where that is allowed.
  at::Tensor student_features(const Batch& batch, const MixDraw& mix, const Pass& pass) const {
    if (kept_.stem) return model_.after_stem(kept_.stem->of(batch), pass);
    return model_.features(mix_images(batch.images.to(model_.device()), mix), pass);
  }

  /// The weighted sum of the loss on (mixed) labels and of what the teachers say.
  at::Tensor objective(const Batch& batch, const MixDraw& mix, const at::Tensor& features,
                       const std::vector<TeacherOutput>& answers) const {
    const auto [logits, distilled] = model_.head.answers(features);  // [B, K]
    const LossConfig& config = recipe_.loss;
    at::Tensor loss = at::zeros({}, logits.options());
    if (config.label_weight > 0) {
      const at::Tensor labels = batch.labels.to(logits.device());
      loss = mix.empty() ? at::cross_entropy_loss(logits, labels, {}, at::Reduction::Mean, -100,
                                                  config.label_smoothing)
                         : target_loss(logits, mix_targets(soft_targets(labels, logits.size(1),
                                                                        config.label_smoothing),
                                                           mix));
      if (config.label_weight != 1) loss = loss * config.label_weight;
    }
    return distiller_ ? loss + distiller_->loss(distilled, features, answers) : loss;
  }

  /// A step can end in weights that are not finite although its loss was: the last good checkpoint
  /// stays.
  void check_finite() const {
    for (const auto& [name, tensor] : trainable_)
      if (!at::isfinite(tensor.detach()).all().item<bool>())
        throw DivergedError("training: step " + std::to_string(step_) + " of " +
                            std::to_string(total_steps_) + ": got values in " + name +
                            " that are not finite" + kWantedFinite + what_is_kept());
  }
  std::string what_is_kept() const {
    return run_.has_checkpoint() ? "; the last checkpoint in " + run_.folder().string() + " is kept"
                                 : "";
  }

  double rate() const {
    return learning_rate(recipe_.schedule, recipe_.optimizer.lr, step_, steps_per_epoch_,
                         total_steps_);
  }

  /// Evaluates and logs. A signal on the way leaves the epoch to be ended by the run that resumes.
  void end_epoch() {
    const int64_t epoch = (step_ + steps_per_epoch_ - 1) / steps_per_epoch_;
    const bool last = step_ == last_step_;
    const bool evaluates = splits_.val && (epoch % recipe_.train.eval_every == 0 || last);
    const bool looks = splits_.test && best_on_test_.due(epoch, last);
    if (evaluates || looks || last || epoch % log_every_ == 0) {
      Json line{{"step", step_},
                {"epoch", epoch},
                {"lr", learning_rate(recipe_.schedule, recipe_.optimizer.lr, step_ - 1,
                                     steps_per_epoch_, total_steps_)},
                {"train_loss", loss_sum_ / static_cast<double>(std::max<int64_t>(1, loss_steps_))},
                {"images_per_second", images_per_second()}};
      if (evaluates && !evaluate_epoch(epoch, line)) return;
      auto on_test = [&] { return evaluate_split(*splits_.test, "test"); };
      if (looks && !best_on_test_.look(epoch, line,
                                       [&] { return ema_ ? with_average(on_test) : on_test(); }))
        return;
      run_.log(line.dump());
      loss_sum_ = 0;
      loss_steps_ = 0;
    }
    epoch_ended_ = false;
  }

  /// What `work` returns while the model holds the averaged weights.
  template <class Work>
  auto with_average(const Work& work) -> decltype(work()) {
    ema_->swap();
    auto result = work();
    ema_->swap();
    return result;
  }

  /// The weights, and their average where there is one, on `val`. False when a signal came.
  bool evaluate_epoch(int64_t epoch, Json& line) {
    if (!kept_of_val_)
      kept_of_val_ = cache_->for_evaluation(model_, *splits_.val, recipe_, evaluation_view_);
    auto evaluated = [&](const char* name) {
      return evaluate_split(*splits_.val, name, &*kept_of_val_);
    };
    const Metrics plain = evaluated("val");
    std::optional<Metrics> average;
    if (ema_) average = with_average([&] { return evaluated("val, average"); });
    if (distiller_)
      line["teacher"] = Json::parse(distiller_->distances_json(
          model_, *splits_.val, evaluation_view_, worker_count(recipe_.train)));
    if (stop_requested()) return false;
    line["val"] = Json::parse(metrics_json(plain));
    if (average) line["val_average"] = Json::parse(metrics_json(*average));
    average_is_better_ = average && average->top1 >= plain.top1;
    const double top1 = average_is_better_ ? average->top1 : plain.top1;
    if (top1 > best_.top1) {
      best_ = {.top1 = top1, .epoch = epoch, .average = average_is_better_, .weights = {}};
      if (recipe_.select == SelectRule::best_val)
        best_.weights = average_is_better_ ? with_average([&] { return copy_of(model_.state()); })
                                           : copy_of(model_.state());
    }
    char text[120];
    const int end = std::snprintf(text, sizeof text, "epoch %lld: val top-1 %.2f %%",
                                  static_cast<long long>(epoch), 100 * plain.top1);
    if (average)
      std::snprintf(text + end, sizeof text - static_cast<size_t>(end), ", average %.2f %%",
                    100 * average->top1);
    say(text);
    return true;
  }

  /// `kept`: of a data set that is evaluated again and again.
  Metrics evaluate_split(const Dataset& dataset, const std::string& name,
                         const SplitCache* kept = nullptr) const {
    return evaluate(model_, dataset, evaluation_view_,
                    {.batch_size = recipe_.train.batch_size,
                     .workers = worker_count(recipe_.train),
                     .what = name,
                     .kept = kept});
  }

  /// Writes the adapter, then evaluates it once on `test`, then writes the result. `last` is always
  /// of the last epoch; where `val` chose another, what the adapter reaches on `test` stands beside
  /// it. Of weights and average the better on `val` is kept, without `val` the average.
  TrainOutcome finish() {
    const bool take_best = recipe_.select == SelectRule::best_val && best_.epoch > 0;
    const bool last_average = ema_ && (!splits_.val || average_is_better_);
    const bool average = take_best ? best_.average : last_average;
    if (last_average) ema_->swap();  // what is best takes its place below
    auto evaluated = [&](const Dataset& dataset, const char* split) {
      Json metrics = Json::parse(metrics_json(evaluate_split(dataset, split)));
      metrics["split"] = split;
      return metrics;
    };
    Json last = nullptr, test = nullptr;
    if (splits_.val && (take_best || !splits_.test)) last = evaluated(*splits_.val, "val");
    if (stop_requested()) return {};
    if (take_best) load_into(model_.state(), best_.weights);
    save_adapter(run_.adapter(),
                 adapter_file_of(recipe_, model_, input_, splits_.train->classes()));
    if (splits_.test) test = evaluated(*splits_.test, "test");
    if (stop_requested()) return {};
    if (splits_.test && !take_best) last = test;
    Json best = nullptr;
    if (best_.epoch > 0)
      best = Json{{"top1", best_.top1}, {"epoch", best_.epoch}, {"split", "val"}};
    Json result{{"run", run_.folder().string()},
                {"trainable_parameters", model_.trainable_parameters()},
                {"total_parameters", model_.total_parameters()},
                {"epochs", recipe_.train.steps > 0 ? static_cast<double>(total_steps_) /
                                                         static_cast<double>(steps_per_epoch_)
                                                   : static_cast<double>(recipe_.train.epochs)},
                {"selected", take_best ? "best_val" : "last"},
                {"last", last},
                {"best", best},
                {"test", test},
                {"adapter_bytes", std::filesystem::file_size(run_.adapter())},
                {"images_per_second", images_per_second()},
                {"wall_seconds", wall_seconds()}};
    best_on_test_.report(result);
    if (ema_) result["weights"] = average ? "average" : "plain";
    const Dataset* measured = splits_.test ? splits_.test.get() : splits_.val.get();
    if (distiller_ && measured)
      result["teacher"] = Json::parse(distiller_->distances_json(
          model_, *measured, evaluation_view_, worker_count(recipe_.train)));
    if (stop_requested()) return {};
    // The folder's name need not be UTF-8.
    const std::string line = result.dump(-1, ' ', false, Json::error_handler_t::replace);
    run_.save_result(line);
    return {true, line};
  }

  double images_per_second() const {
    return train_seconds_ > 0 ? static_cast<double>(images_trained_) / train_seconds_ : 0.0;
  }

  // Counts what the processes before this one did too, as far as the checkpoint goes.
  double wall_seconds() const { return wall_before_ + seconds_since(start_); }

  /// Steps, weights, optimiser, best epoch, running loss and time spent; nothing of the data, whose
  /// order is a pure function of the step.
  TensorMap state() const {
    TensorMap map;
    auto add = [&](const std::string& part, const TensorMap& tensors) {
      for (const auto& [name, tensor] : tensors.tensors) map.tensors[part + "/" + name] = tensor;
    };
    add("model", copy_of(trainable_));
    add("buffers", copy_of(model_.buffers()));
    if (ema_) add("average", ema_->state());
    add("optimizer", optimizer_.state());
    add("best", best_.weights);
    best_on_test_.save(map);
    map.tensors["progress"] = encoded({.step = step_,
                                       .loss_sum = loss_sum_,
                                       .loss_steps = loss_steps_,
                                       .best_top1 = best_.top1,
                                       .best_epoch = best_.epoch,
                                       .best_is_average = best_.average,
                                       .epoch_ended = epoch_ended_,
                                       .average_is_better = average_is_better_,
                                       .images = images_trained_,
                                       .train_seconds = train_seconds_,
                                       .wall_seconds = wall_seconds()});
    return map;
  }

  void load_state(const TensorMap& map) {
    auto part = [&](const std::string& name) {
      TensorMap tensors;
      for (const auto& [key, tensor] : map.tensors)
        if (key.rfind(name + "/", 0) == 0) tensors.tensors[key.substr(name.size() + 1)] = tensor;
      return tensors;
    };
    const RunProgress progress = decoded_progress(map, total_steps_);
    load_into(trainable_, part("model"));
    load_into(model_.buffers(), part("buffers"));
    if (ema_) ema_->load_state(part("average"));
    optimizer_.load_state(part("optimizer"));
    best_.weights = part("best");
    best_on_test_.load(map);
    step_ = progress.step;
    loss_sum_ = progress.loss_sum;
    loss_steps_ = progress.loss_steps;
    best_.top1 = progress.best_top1;
    best_.epoch = progress.best_epoch;
    best_.average = progress.best_is_average;
    epoch_ended_ = progress.epoch_ended;
    average_is_better_ = progress.average_is_better;
    images_trained_ = progress.images;
    train_seconds_ = progress.train_seconds;
    wall_before_ = progress.wall_seconds;
  }

  const Clock::time_point start_ = Clock::now();
  const Recipe& recipe_;
  RunDir& run_;
  std::shared_ptr<RunCache> cache_;
  std::unique_ptr<Distiller> distiller_;  ///< null without teachers
  Splits splits_;
  TunedModel model_;
  InputConfig input_;
  ImagePipeline training_view_, evaluation_view_;
  NamedTensors trainable_;
  Optimizer optimizer_;
  SplitCache kept_;  ///< of the training images
  std::optional<SplitCache> kept_of_val_;
  BatchStream stream_;
  std::optional<Ema> ema_;
  StepPlan plan_;
  int64_t steps_per_epoch_ = 1, total_steps_ = 0;
  int64_t last_step_ = 0;  ///< of this call: the run's, or that of a pause
  int64_t step_ = 0;       ///< optimiser steps done
  int64_t log_every_ = 1;  ///< epochs
  double loss_sum_ = 0;    ///< since the last line of the log
  int64_t loss_steps_ = 0;
  bool epoch_ended_ = false;  ///< its last step is done, its evaluation is not
  Best best_;
  BestOnTest best_on_test_{recipe_.train.best_on_test_every};
  bool average_is_better_ = false;  ///< on `val`, when last evaluated
  int64_t images_trained_ = 0;
  double train_seconds_ = 0, wall_before_ = 0;
};

}  // namespace

TrainOutcome train(const Recipe& recipe, const std::filesystem::path& out,
                   const TrainOptions& options) {
  validate(recipe, /*needs_data=*/true);
  const Recipe resolved = resolve_rule(recipe);
  RunDir run(out, resolved, options.resume);
  if (std::string done = run.result(); !done.empty()) return {true, done};
  return Trainer(resolved, run, options).run();
}

}  // namespace convpass
