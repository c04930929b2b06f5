#include "src/train/distiller.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/build.h"
#include "convpass/train/progress.h"

namespace convpass {
namespace {

std::string sha1(const std::string& text) { return c10::sha1(text).str(); }

/// The input of a teacher that sees what the student sees: its crops and filters, the teacher's
/// size and normalisation. Pixels before a random crop grow with the size.
InputConfig shared_input(const InputConfig& student, const InputConfig& teacher) {
  InputConfig input = student;
  input.size = teacher.size;
  input.mean = teacher.mean;
  input.std = teacher.std;
  for (int64_t& side : input.resize_to) side = side * teacher.size[0] / student.size[0];
  return input;
}

AugmentConfig shared_augment(AugmentConfig augment, const InputConfig& student,
                             const InputConfig& teacher) {
  for (int64_t& side : augment.resize_to) side = side * teacher.size[0] / student.size[0];
  return augment;
}

/// The same draw for images of another size.
MixDraw scaled(MixDraw draw, const std::array<int64_t, 2>& from, const std::array<int64_t, 2>& to) {
  for (MixRow& row : draw)
    row.box = {row.box.top * to[0] / from[0], row.box.left * to[1] / from[1],
               row.box.bottom * to[0] / from[0], row.box.right * to[1] / from[1]};
  return draw;
}

nlohmann::ordered_json summary(const at::Tensor& values) {
  return {{"mean", values.mean().item<double>()},
          {"min", values.min().item<double>()},
          {"max", values.max().item<double>()}};
}

}  // namespace

Distiller::Distiller(const Recipe& recipe) : recipe_(recipe), config_(recipe.distill) {
  for (size_t i = 0; i < config_.teachers.size(); ++i) {
    teachers_.push_back(load_teacher(config_.teachers[i], recipe.train.device));
    const std::string where = "/distill/teachers/" + std::to_string(i);
    if (teachers_[i]->classes().size() != teachers_[0]->classes().size())
      throw RecipeError(recipe.file, where,
                        "got " + std::to_string(teachers_[i]->classes().size()) +
                            " classes, wanted " + std::to_string(teachers_[0]->classes().size()) +
                            " like the first teacher");
    if (asks_features() && teachers_[i]->feature_dim() == 0)
      throw RecipeError(recipe.file, where,
                        "a TorchScript teacher has no features: wanted distill.feature 0, or a "
                        "teacher of the type \"adapter\"");
  }
}

void Distiller::check_classes(const std::vector<std::string>& classes) const {
  const std::vector<std::string>& ours = this->classes();
  if (classes.size() != ours.size())
    throw RecipeError(recipe_.file, "/distill/teachers/0",
                      "got a teacher of " + std::to_string(ours.size()) + " classes, wanted " +
                          std::to_string(classes.size()) + ", the classes of data.train");
  auto numbers = [](const std::vector<std::string>& names) {
    return std::all_of(names.begin(), names.end(), [](const std::string& name) {
      return !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
    });
  };
  if (numbers(classes) || numbers(ours)) return;
  for (size_t i = 0; i < ours.size(); ++i)
    if (classes[i] != ours[i])
      throw RecipeError(recipe_.file, "/distill/teachers/0",
                        "got a teacher whose class " + std::to_string(i) + " is " +
                            json_quote(ours[i]) + ", wanted " + json_quote(classes[i]) +
                            " as in data.train");
}

MadeFrom Distiller::teachers_made_from() const {
  MadeFrom all = MadeFrom::array();
  for (size_t i = 0; i < teachers_.size(); ++i)
    all.push_back({{"weights", teachers_[i]->identity()},
                   {"precision", c10::toString(dtype_of(config_.teachers[i].precision))},
                   {"input", MadeFrom::parse(write_json_fields(teachers_[i]->input()))}});
  return all;
}

void Distiller::prepare(const InputConfig& student, int64_t feature_dim, uint64_t seed,
                        c10::Device device) {
  device_ = device;
  student_size_ = student.size;
  at::Generator generator = seeded_generator(seed);
  const bool own_view = config_.view == DistillView::fix_rs || config_.view == DistillView::fix_cc;
  for (const auto& teacher : teachers_) {
    const InputConfig& own = teacher->input();
    pipelines_.push_back(
        own_view ? std::make_unique<ImagePipeline>(own, AugmentConfig{})
                 : std::make_unique<ImagePipeline>(shared_input(student, own),
                                                   shared_augment(recipe_.augment, student, own)));
    if (!asks_features()) continue;
    const double bound = 1 / std::sqrt(static_cast<double>(feature_dim));
    projections_.push_back(at::empty({teacher->feature_dim(), feature_dim})
                               .uniform_(-bound, bound, generator)
                               .to(device)
                               .set_requires_grad(true));
  }
}

std::vector<View> Distiller::views() const {
  std::vector<View> views;
  if (config_.fixed() || !config_.store.file.empty()) return views;
  const bool independent =
      config_.view == DistillView::ind_rc || config_.view == DistillView::ind_ic;
  for (size_t i = 0; i < pipelines_.size(); ++i)
    views.push_back(
        {.pipeline = pipelines_[i].get(), .draw = independent ? static_cast<int64_t>(i) + 1 : 0});
  return views;
}

TeacherOutput Distiller::ask_one(size_t teacher, const at::Tensor& images) const {
  return teachers_[teacher]->ask(images.to(device_), asks_features());
}

std::vector<TeacherOutput> Distiller::combined(std::vector<TeacherOutput> answers) const {
  if (config_.combine == TeacherCombination::sum || answers.size() < 2) return answers;
  at::Tensor mean = at::zeros_like(answers[0].logits);
  for (const TeacherOutput& answer : answers) mean += at::softmax(answer.logits, 1);
  answers[0].logits = (mean / static_cast<double>(answers.size())).log();
  answers.resize(1);
  return answers;
}

std::vector<TeacherOutput> Distiller::ask_views(const Batch& batch, size_t first,
                                                const MixDraw& mix) const {
  std::vector<TeacherOutput> answers;
  for (size_t i = 0; i < teachers_.size(); ++i) {
    const MixDraw own = scaled(mix, student_size_, teachers_[i]->input().size);
    answers.push_back(ask_one(i, mix_images(batch.views[first + i], own)));
  }
  return combined(std::move(answers));
}

std::vector<TeacherOutput> Distiller::ask(const Batch& batch, const MixDraw& mix) const {
  std::vector<TeacherOutput> answers;
  if (stored_) {
    std::vector<int64_t> rows = batch.indices;
    if (!config_.fixed()) {
      const int64_t first = batch.replayed / epoch_batches_ * epoch_rows_ +
                            batch.replayed % epoch_batches_ * batch_size_;
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = first + static_cast<int64_t>(i);
    }
    answers = stored_->rows(rows, batch.indices);
  } else if (!fixed_.empty()) {
    const at::Tensor rows = at::tensor(batch.indices, at::kLong);
    for (const TeacherOutput& all : fixed_)
      answers.push_back(
          {.logits = all.logits.index_select(0, rows),
           .features = all.features.defined() ? all.features.index_select(0, rows) : at::Tensor()});
  } else {
    return ask_views(batch, 1, mix);
  }
  for (TeacherOutput& answer : answers) {
    answer.logits = answer.logits.to(device_);
    if (answer.features.defined()) answer.features = answer.features.to(device_);
  }
  return answers;
}

bool Distiller::ask_fixed(const Dataset& dataset, const StreamOptions& options,
                          const PutBatch& put) const {
  const bool ensemble = config_.view == DistillView::fix_ic_ens;
  const int64_t crops = ensemble ? config_.ensemble_crops : 1;
  std::vector<View> views;
  for (const auto& pipeline : pipelines_) views.push_back({.pipeline = pipeline.get()});
  StreamOptions once = options;
  once.training = false;
  once.cache_bytes = 0;
  Progress progress("asking the teacher", dataset.size() * crops, "image");
  int64_t done = 0;
  if (!ensemble) {
    BatchStream stream(dataset, views, once);
    for (Batch batch; stream.next(batch);) {
      if (stop_requested()) return false;
      put(batch.indices, ask_views(batch, 0, {}));
      progress.update(done += static_cast<int64_t>(batch.indices.size()));
    }
    progress.finish();
    return true;
  }
  // The crops of one image at a time, as many as a batch holds. They do not depend on the run's
  // seed: stored answers serve the runs of all seeds.
  for (int64_t index = 0; index < dataset.size(); ++index) {
    const Image image = dataset.image(index);
    std::vector<at::Tensor> sums(teachers_.size());
    for (int64_t crop = 0; crop < crops; crop += options.batch_size) {
      if (stop_requested()) return false;
      const int64_t count = std::min(options.batch_size, crops - crop);
      for (size_t t = 0; t < teachers_.size(); ++t) {
        const ImagePipeline& pipeline = *pipelines_[t];
        at::Tensor images = at::empty({count, 3, pipeline.height(), pipeline.width()});
        for (int64_t i = 0; i < count; ++i)
          pipeline.normalise(
              pipeline.training_view(
                  image, Rng(view_key(/*seed=*/0, 0, index, /*draw=*/1, /*copy=*/crop + i))),
              images.mutable_data_ptr<float>() + i * images.stride(0));
        const at::Tensor sum = at::softmax(ask_one(t, images).logits, 1).sum(0, true);
        sums[t] = sums[t].defined() ? sums[t] + sum : sum;
      }
      progress.update(done += count);
    }
    std::vector<TeacherOutput> answers;
    for (const at::Tensor& sum : sums)
      answers.push_back({.logits = (sum / static_cast<double>(crops)).log(), .features = {}});
    put({index}, combined(std::move(answers)));
  }
  progress.finish();
  return true;
}

bool Distiller::ask_replayed(const Dataset& dataset, const StreamOptions& options,
                             const PutBatch& put) const {
  const bool independent =
      config_.view == DistillView::ind_rc || config_.view == DistillView::ind_ic;
  std::vector<View> views;
  for (size_t i = 0; i < pipelines_.size(); ++i)
    views.push_back(
        {.pipeline = pipelines_[i].get(), .draw = independent ? static_cast<int64_t>(i) + 1 : 0});
  BatchStream stream(dataset, views, options);
  Progress progress("storing predictions",
                    replayed_batches_ * std::min(options.batch_size, dataset.size()), "image");
  int64_t done = 0;
  Batch batch;
  for (int64_t step = 0; step < replayed_batches_; ++step) {
    if (stop_requested()) return false;
    stream.next(batch);
    put(batch.indices, ask_views(batch, 0, mix_of(recipe_, batch, student_size_)));
    progress.update(done += static_cast<int64_t>(batch.indices.size()));
  }
  progress.finish();
  return true;
}

MadeFrom Distiller::made_from(const Dataset& dataset, const StreamOptions& options) const {
  std::string teachers, views;
  for (size_t i = 0; i < teachers_.size(); ++i) {
    teachers += teachers_[i]->identity() + c10::toString(dtype_of(config_.teachers[i].precision));
    views +=
        write_json_fields(pipelines_[i]->input()) + write_json_fields(pipelines_[i]->augment());
  }
  views += std::to_string(static_cast<int>(config_.view)) + "/" +
           std::to_string(static_cast<int>(config_.combine)) + "/" +
           std::to_string(config_.ensemble_crops);
  std::string images = write_json_fields(*recipe_.data.train);
  for (int64_t label : dataset.labels()) images += std::to_string(label) + ",";
  MadeFrom from{{"teachers", sha1(teachers)}, {"views", sha1(views)}, {"images", sha1(images)}};
  if (!config_.fixed())
    from["order"] = "seed " + std::to_string(options.seed) + ", batches of " +
                    std::to_string(options.batch_size) + ", " +
                    std::to_string(replayed_batches_ / epoch_batches_) + " epochs" +
                    (options.repeats > 1 ? ", repeats " + std::to_string(options.repeats) : "");
  return from;
}

bool Distiller::ask_ahead(const Dataset& dataset, const StreamOptions& options) {
  const bool stores = !config_.store.file.empty();
  if (!config_.fixed() && !stores) return true;
  const BatchOrder order(dataset.size(), options);
  batch_size_ = options.batch_size;
  epoch_batches_ = order.steps_per_epoch();
  const TrainConfig& train = recipe_.train;
  const int64_t run_epochs =
      train.steps > 0 ? (train.steps * train.accumulate + epoch_batches_ - 1) / epoch_batches_
                      : train.epochs;
  const int64_t epochs = replay_epochs() > 0 ? replay_epochs() : run_epochs;
  replayed_batches_ = epoch_batches_ * epochs;
  if (!config_.fixed() && epoch_batches_ % train.accumulate != 0)
    throw RecipeError(recipe_.file, "/train/accumulate",
                      "got " + std::to_string(train.accumulate) + " with " +
                          std::to_string(epoch_batches_) +
                          " batches an epoch and distill.store, wanted a divisor of it");
  epoch_rows_ = options.drop_last ? std::min(batch_size_, order.epoch_size()) * epoch_batches_
                                  : order.epoch_size();
  if (options.small_set == SmallSet::with_replacement && dataset.size() < batch_size_)
    epoch_rows_ = batch_size_;
  auto produce = [&](const PutBatch& put) {
    return config_.fixed() ? ask_fixed(dataset, options, put) : ask_replayed(dataset, options, put);
  };
  if (!stores) {
    std::vector<std::vector<at::Tensor>> logits(teachers_.size()), features(teachers_.size());
    const bool whole =
        produce([&](const std::vector<int64_t>&, const std::vector<TeacherOutput>& outputs) {
          for (size_t i = 0; i < outputs.size(); ++i) {
            logits[i].push_back(outputs[i].logits.cpu());
            if (outputs[i].features.defined()) features[i].push_back(outputs[i].features.cpu());
          }
        });
    if (!whole) return false;
    for (size_t i = 0; i < logits.size() && !logits[i].empty(); ++i)
      fixed_.push_back({.logits = at::cat(logits[i]),
                        .features = features[i].empty() ? at::Tensor() : at::cat(features[i])});
    return true;
  }
  const PredictionShape shape{.rows = config_.fixed() ? dataset.size() : epoch_rows_ * epochs,
                              .teachers = config_.combine == TeacherCombination::mean
                                              ? 1
                                              : static_cast<int64_t>(teachers_.size()),
                              .classes = static_cast<int64_t>(classes().size())};
  const MadeFrom from = made_from(dataset, options);
  if (!std::filesystem::exists(config_.store.file) &&
      !write_predictions(config_.store, shape, from, produce))
    return false;
  stored_.emplace(config_.store, shape, from);
  return true;
}

at::Tensor Distiller::loss(const at::Tensor& logits, const at::Tensor& features,
                           const std::vector<TeacherOutput>& answers) const {
  at::Tensor sum = distillation_loss(config_.terms, logits, answers);
  for (size_t i = 0; i < projections_.size() && i < answers.size(); ++i)
    sum = sum +
          config_.terms.feature * feature_loss(at::linear(features.to(at::kFloat), projections_[i]),
                                               answers[i].features, config_.terms.feature_distance);
  return sum;
}

NamedTensors Distiller::parameters() const {
  NamedTensors all;
  for (size_t i = 0; i < projections_.size(); ++i)
    all.emplace_back("distill.projection." + std::to_string(i) + ".weight", projections_[i]);
  return all;
}

std::string Distiller::distances_json(const TunedModel& model, const Dataset& dataset,
                                      const ImagePipeline& student, int workers) const {
  at::NoGradGuard no_grad;
  const ImagePipeline own(teachers_[0]->input(), AugmentConfig{});
  BatchStream stream(
      dataset, {{.pipeline = &student}, {.pipeline = &own}},
      {.batch_size = recipe_.train.batch_size, .workers = workers, .training = false});
  std::vector<Distances> parts;
  for (Batch batch; !stop_requested() && stream.next(batch);)
    parts.push_back(teacher_distances(model.logits(batch.views[0].to(model.device()), Pass{}),
                                      ask_one(0, batch.views[1]).logits));
  auto all = [&](at::Tensor Distances::*member) {
    std::vector<at::Tensor> values;
    for (const Distances& part : parts) values.push_back(part.*member);
    return values.empty() ? at::zeros({1}) : at::cat(values);
  };
  return nlohmann::ordered_json{{"kl", summary(all(&Distances::kl))},
                                {"euclidean", summary(all(&Distances::euclidean))},
                                {"agree1", summary(all(&Distances::agree1))},
                                {"agree5", summary(all(&Distances::agree5))}}
      .dump();
}

MixDraw mix_of(const Recipe& recipe, const Batch& batch, const std::array<int64_t, 2>& size) {
  if (!recipe.augment.mix.on()) return {};
  const int64_t accumulate = recipe.train.accumulate;
  const auto rows = static_cast<int64_t>(batch.indices.size());
  return draw_mix(recipe.augment.mix, {rows, 3, size[0], size[1]},
                  {.seed = static_cast<uint64_t>(recipe.train.seed),
                   .step = batch.replayed / accumulate,
                   .micro = batch.replayed % accumulate});
}

}  // namespace convpass
