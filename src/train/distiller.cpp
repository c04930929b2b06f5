#include "src/train/distiller.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/hash.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/build.h"
#include "convpass/train/progress.h"
#include "src/train/build_head.h"
#include "src/train/memory.h"
#include "src/train/splits.h"

namespace convpass {
namespace {

/// Of the images' names, lengths and labels in their order: none is read.
std::string images_hash(const Dataset& dataset) {
  std::string text;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const std::string name = dataset.name(i);
    std::error_code none;
    const auto bytes = std::filesystem::file_size(file_of(name), none);
    text += name + ' ' + std::to_string(bytes) + ' ' + std::to_string(dataset.label(i)) + '\n';
  }
  return c10::sha1(text).str();
}

/// Logarithm of probabilities that may have vanished.
at::Tensor log_of(const at::Tensor& probabilities) {
  return probabilities.clamp_min(std::numeric_limits<float>::min()).log();
}

/// One side or two, of pixels for the student, for the teacher.
void scale_sides(std::vector<int64_t>& sides, const InputConfig& student,
                 const InputConfig& teacher) {
  for (size_t i = 0; i < sides.size(); ++i) sides[i] = sides[i] * teacher.size[i] / student.size[i];
}

/// The input of a teacher that sees what the student sees: its crops and filters, the teacher's
/// size and normalisation. Pixels before a random crop grow with the size.
InputConfig shared_input(const InputConfig& student, const InputConfig& teacher) {
  InputConfig input = student;
  input.size = teacher.size;
  input.mean = teacher.mean;
  input.std = teacher.std;
  scale_sides(input.resize_to, student, teacher);
  return input;
}

AugmentConfig shared_augment(AugmentConfig augment, const InputConfig& student,
                             const InputConfig& teacher) {
  scale_sides(augment.resize_to, student, teacher);
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
    try {
      teachers_.push_back(load_teacher(config_.teachers[i], recipe.train.device));
    } catch (const Error& error) {
      refuse(i, error.what());
    }
    if (asks_features() && teachers_[i]->feature_dim() == 0)
      refuse(i,
             "a TorchScript teacher has no features: wanted distill.feature 0, or a teacher of the "
             "type \"adapter\"");
    check_classes_of(i, classes(), "the first teacher");
  }
  const auto classes = static_cast<int64_t>(this->classes().size());
  if (config_.store.top_k >= classes)
    throw RecipeError(recipe.file, "/distill/store/top_k",
                      "got " + std::to_string(config_.store.top_k) + ", wanted fewer than the " +
                          std::to_string(classes) + " classes, or 0 for all of them");
}

void Distiller::refuse(size_t teacher, const std::string& why) const {
  throw RecipeError(recipe_.file, "/distill/teachers/" + std::to_string(teacher), why);
}

void Distiller::check_classes(const std::vector<std::string>& classes) const {
  for (size_t i = 0; i < teachers_.size(); ++i) check_classes_of(i, classes, "data.train");
}

void Distiller::check_classes_of(size_t teacher, const std::vector<std::string>& classes,
                                 const std::string& whose) const {
  const std::vector<std::string>& theirs = teachers_[teacher]->classes();
  const std::string difference = class_difference(theirs, classes, whose);
  if (!difference.empty()) refuse(teacher, difference);
  if (are_counted(theirs) && !are_counted(classes))
    say("distill.teachers/" + std::to_string(teacher) +
        ": its classes have no names, so whether they stand in the order of " + whose +
        " is not checked");
}

int64_t Distiller::weight_bytes() const {
  int64_t sum = 0;
  for (const auto& teacher : teachers_) sum += teacher->weight_bytes();
  return sum;
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
  return config_.fixed() || !config_.store.file.empty() ? std::vector<View>{} : own_views();
}

std::vector<View> Distiller::own_views() const {
  const bool independent =
      config_.view == DistillView::ind_rc || config_.view == DistillView::ind_ic;
  std::vector<View> views;
  for (size_t i = 0; i < pipelines_.size(); ++i)
    views.push_back(
        {.pipeline = pipelines_[i].get(), .draw = independent ? static_cast<int64_t>(i) + 1 : 0});
  return views;
}

TeacherOutput Distiller::ask_one(size_t teacher, const at::Tensor& images) const {
  TeacherOutput output = teachers_[teacher]->ask(images.to(device_), asks_features());
  if (!at::isfinite(output.logits).all().item<bool>())
    refuse(teacher, "its answers: got values that are not finite, wanted finite numbers");
  return output;
}

std::vector<TeacherOutput> Distiller::combined(std::vector<TeacherOutput> answers) const {
  if (config_.combine == TeacherCombination::sum || answers.size() < 2) return answers;
  at::Tensor mean = at::zeros_like(answers[0].logits);
  for (const TeacherOutput& answer : answers) mean += at::softmax(answer.logits, 1);
  answers[0].logits = log_of(mean / static_cast<double>(answers.size()));
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
      const int64_t epoch_batches = stored_layout_.plan.epoch_batches;
      const int64_t first = batch.replayed / epoch_batches * stored_layout_.epoch_rows +
                            batch.replayed % epoch_batches * recipe_.train.batch_size;
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

bool Distiller::ask_fixed(const Dataset& dataset, const PutBatch& put) const {
  const bool ensemble = config_.view == DistillView::fix_ic_ens;
  const int64_t crops = ensemble ? config_.ensemble_crops : 1;
  std::vector<View> views;
  for (const auto& pipeline : pipelines_) views.push_back({.pipeline = pipeline.get()});
  StreamOptions once = stream_options(recipe_);
  once.training = false;
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
    for (int64_t crop = 0; crop < crops; crop += once.batch_size) {
      if (stop_requested()) return false;
      const int64_t count = std::min(once.batch_size, crops - crop);
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
      answers.push_back({.logits = log_of(sum / static_cast<double>(crops)), .features = {}});
    put({index}, combined(std::move(answers)));
  }
  progress.finish();
  return true;
}

bool Distiller::ask_replayed(const Dataset& dataset, const PutBatch& put) const {
  const Layout stored = layout(dataset);
  BatchStream stream(dataset, own_views(), stream_options(recipe_));
  Progress progress("storing predictions", stored.epochs * stored.epoch_rows, "image");
  int64_t done = 0;
  Batch batch;
  for (int64_t i = 0; i < stored.epochs * stored.plan.epoch_batches; ++i) {
    if (stop_requested()) return false;
    stream.next(batch);
    put(batch.indices, ask_views(batch, 0, mix_of(recipe_, batch, stored.plan, student_size_)));
    progress.update(done += static_cast<int64_t>(batch.indices.size()));
  }
  progress.finish();
  return true;
}

Distiller::Layout Distiller::layout(const Dataset& dataset) const {
  const StreamOptions options = stream_options(recipe_);
  const BatchOrder order(dataset.size(), options);
  const TrainConfig& train = recipe_.train;
  Layout layout{.plan = step_plan(train, order.steps_per_epoch())};
  layout.epochs = options.replay_epochs > 0 ? options.replay_epochs
                                            : layout.plan.epochs_read(layout.plan.run_steps(train));
  layout.epoch_rows =
      train.drop_last ? std::min(train.batch_size, order.epoch_size()) * layout.plan.epoch_batches
                      : order.epoch_size();
  if (train.small_set == SmallSet::with_replacement && dataset.size() < train.batch_size)
    layout.epoch_rows = train.batch_size;
  return layout;
}

PredictionShape Distiller::shape(const Dataset& dataset) const {
  const Layout stored = layout(dataset);
  return {.rows = config_.fixed() ? dataset.size() : stored.epoch_rows * stored.epochs,
          .teachers = config_.combine == TeacherCombination::mean
                          ? 1
                          : static_cast<int64_t>(teachers_.size()),
          .classes = static_cast<int64_t>(classes().size())};
}

MadeFrom Distiller::made_from(const Dataset& dataset) const {
  MadeFrom views = MadeFrom::array();
  for (const auto& pipeline : pipelines_)
    views.push_back({{"input", MadeFrom::parse(write_json_fields(pipeline->input()))},
                     {"augment", MadeFrom::parse(write_json_fields(pipeline->augment()))}});
  const MadeFrom distill = MadeFrom::parse(write_json_fields(config_));
  MadeFrom from{{"teachers", teachers_made_from()},
                {"view", distill["view"]},
                {"views", views},
                {"combine", distill["combine"]},
                {"data", MadeFrom::parse(write_json_fields(*recipe_.data.train))},
                {"images", images_hash(dataset)}};
  if (config_.view == DistillView::fix_ic_ens) from["ensemble_crops"] = config_.ensemble_crops;
  if (config_.fixed()) return from;
  const TrainConfig& train = recipe_.train;
  from["seed"] = train.seed;
  from["batch_size"] = train.batch_size;
  from["epochs"] = layout(dataset).epochs;
  from["repeated"] = recipe_.augment.repeated;
  const MixConfig& mix = recipe_.augment.mix;
  if (!mix.on()) return from;
  from["accumulate"] = train.accumulate;
  from["drop_last"] = train.drop_last;
  if (mix.cutmix > 0) from["student_size"] = student_size_;
  return from;
}

void Distiller::check_store(const Dataset& dataset) const {
  const std::filesystem::path& file = config_.store.file;
  if (file.empty()) return;
  if (std::filesystem::exists(file)) {
    StoredPredictions(config_.store, shape(dataset), made_from(dataset));
    return;
  }
  const auto folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    throw FileError(file, std::string("cannot be written: ") + std::strerror(errno));
}

bool Distiller::ask_ahead(const Dataset& dataset, RunCache& cache) {
  if (config_.store.file.empty()) return !config_.fixed() || hold_fixed(dataset, cache);
  const PredictionShape rows = shape(dataset);
  const MadeFrom from = made_from(dataset);
  auto produce = [&](const PutBatch& put) {
    return config_.fixed() ? ask_fixed(dataset, put) : ask_replayed(dataset, put);
  };
  if (!std::filesystem::exists(config_.store.file) &&
      !write_predictions(config_.store, rows, from, produce))
    return false;
  stored_.emplace(config_.store, rows, from);
  stored_layout_ = layout(dataset);
  return true;
}

bool Distiller::hold_fixed(const Dataset& dataset, RunCache& cache) {
  const PredictionShape of = shape(dataset);
  int64_t values = of.teachers * of.classes;  // of one image
  if (asks_features())
    for (const auto& teacher : teachers_) values += teacher->feature_dim();
  const int64_t bytes = of.rows * values * static_cast<int64_t>(sizeof(float));
  if (!cache.take_answers(bytes))
    throw RecipeError(recipe_.file, "/data/cache_mb",
                      "got less than the " + mebibytes(static_cast<double>(bytes)) +
                          " that the teachers' answers to " + std::to_string(of.rows) +
                          " images take, wanted more, or a file for them in distill.store.file");
  std::vector<std::vector<at::Tensor>> logits(teachers_.size()), features(teachers_.size());
  const bool whole = ask_fixed(
      dataset, [&](const std::vector<int64_t>&, const std::vector<TeacherOutput>& outputs) {
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

MixDraw mix_of(const Recipe& recipe, const Batch& batch, const StepPlan& plan,
               const std::array<int64_t, 2>& size) {
  if (!recipe.augment.mix.on()) return {};
  const auto rows = static_cast<int64_t>(batch.indices.size());
  return draw_mix(recipe.augment.mix, {rows, 3, size[0], size[1]},
                  plan.mix_key(static_cast<uint64_t>(recipe.train.seed), batch.replayed));
}

}  // namespace convpass
