#include <algorithm>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/recipe.h"
#include "src/data/rand_augment.h"
#include "src/train/step_plan.h"

namespace convpass {
namespace {

/// Throws for one recipe, so that each check below is a line or two.
class Checker {
 public:
  explicit Checker(const Recipe& recipe) : recipe_(recipe) {}

  void require(bool holds, const std::string& pointer, const std::string& what) const {
    if (!holds) throw RecipeError(recipe_.where(pointer), pointer, what);
  }
  void length(const std::string& pointer, size_t got, std::initializer_list<size_t> allowed,
              const std::string& wanted) const {
    require(std::find(allowed.begin(), allowed.end(), got) != allowed.end(), pointer,
            "wrong length, got a list of " + std::to_string(got) + ", wanted " + wanted);
  }
  /// Two numbers, the first not above the second.
  void range(const std::string& pointer, const std::vector<double>& list) const {
    length(pointer, list.size(), {2}, "two numbers, smallest and largest");
    require(list[0] > 0 && list[0] <= list[1], pointer,
            "wrong order, got [" + number(list[0]) + ", " + number(list[1]) +
                "], wanted 0 < smallest <= largest");
  }
  static std::string number(double value) {
    std::ostringstream out;
    out << value;
    return out.str();
  }

 private:
  const Recipe& recipe_;
};

void check_backbone(const Checker& check, const Recipe& recipe, bool needs_weights) {
  const BackboneConfig& backbone = recipe.backbone;
  check.length("/backbone/image_size", backbone.image_size.size(), {0, 1, 2},
               "height and width, or one number");
  const bool from_scratch = backbone.trainable && backbone.variant != "auto";
  check.require(!needs_weights || !backbone.weights.empty() || from_scratch, "/backbone/weights",
                "missing, wanted a checkpoint file (from scratch: a variant and trainable)");
  check.require(!backbone.weights.empty() || backbone.variant != "auto", "/backbone/variant",
                "got \"auto\" without weights, wanted backbone.weights or a variant such as "
                "\"vit_base_patch16\"");
  check.require(
      !backbone.trainable || recipe.train.precision != Precision::int8, "/train/precision",
      "got \"int8\" with backbone.trainable, wanted \"bf16\" or \"f32\": only frozen weights "
      "are quantised");
}

/// A list in which each word is one of `known` and none stands twice.
void check_words(const Checker& check, const std::string& key,
                 const std::vector<std::string>& words, const std::vector<std::string>& known) {
  std::string wanted;
  for (const std::string& word : known)
    wanted += (wanted.empty() ? "" : word == known.back() ? " or " : ", ") + json_quote(word);
  const std::string pointer = "/adapter/" + key + "s";
  check.require(!words.empty(), pointer, "got an empty list, wanted some of " + wanted);
  std::set<std::string> seen;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string at = pointer + "/" + std::to_string(i);
    check.require(std::find(known.begin(), known.end(), words[i]) != known.end(), at,
                  "unknown " + key + ", got " + json_quote(words[i]) + ", wanted " + wanted +
                      did_you_mean(words[i], known));
    check.require(seen.insert(words[i]).second, at,
                  "the " + key + " stands twice, got " + json_quote(words[i]));
  }
}

void check_adapter(const Checker& check, const Recipe& recipe) {
  std::visit(
      [&](const auto& config) {
        if constexpr (requires { config.sites; })
          check_words(check, "site", config.sites, {"attn", "mlp"});
        if constexpr (requires { config.layers; })
          check_words(check, "layer", config.layers, {"q", "k", "v", "qkv", "proj", "fc1", "fc2"});
      },
      recipe.adapter);
  std::set<int64_t> seen;
  const std::vector<int64_t> blocks = adapter_blocks(recipe.adapter);
  for (size_t i = 0; i < blocks.size(); ++i) {
    check.require(seen.insert(blocks[i]).second, "/adapter/blocks/" + std::to_string(i),
                  "the block stands twice, got " + std::to_string(blocks[i]));
  }
  check.require(!std::holds_alternative<BitFitConfig>(recipe.adapter) || !recipe.backbone.trainable,
                "/adapter/type",
                "got \"bitfit\" with backbone.trainable, wanted one of them: its biases train "
                "already");
}

void check_input(const Checker& check, const Recipe& recipe) {
  const InputConfig& input = recipe.input;
  check.length("/input/mean", input.mean.size(), {0, 3}, "one number for each of red, green, blue");
  check.length("/input/std", input.std.size(), {0, 3}, "one number for each of red, green, blue");
  check.require(input.mean.empty() == input.std.empty(),
                input.mean.empty() ? "/input/mean" : "/input/std",
                "missing, wanted mean and std or neither");
  for (size_t i = 0; i < input.std.size(); ++i) {
    check.require(
        input.std[i] > 0, "/input/std/" + std::to_string(i),
        "out of range, got " + Checker::number(input.std[i]) + ", wanted a number above 0");
  }
  check.length("/input/resize_to", input.resize_to.size(), {0, 1, 2},
               "height and width, or one number");
  check.require(
      input.resize_to.empty() || input.crop_fraction == 1, "/input/crop_fraction",
      "got " + Checker::number(input.crop_fraction) + " with input.resize_to, wanted one of them");
}

void check_augment(const Checker& check, const AugmentConfig& augment) {
  const bool part = augment.crop == CropMode::random_resized || augment.crop == CropMode::inception;
  for (const auto& [pointer, list] : {std::pair{"/augment/crop_area", &augment.crop_area},
                                      std::pair{"/augment/crop_ratio", &augment.crop_ratio}}) {
    if (list->empty()) continue;
    check.require(part, pointer,
                  "got a range without the crop \"random_resized\" or \"inception\" that draws "
                  "from it");
    check.range(pointer, *list);
  }
  check.require(augment.crop_area.empty() || augment.crop_area[1] <= 1, "/augment/crop_area/1",
                "out of range, got " +
                    Checker::number(augment.crop_area.empty() ? 0 : augment.crop_area[1]) +
                    ", wanted a fraction of at most 1");
  check.length("/augment/resize_to", augment.resize_to.size(), {0, 1, 2},
               "height and width, or one number");
  check.require(augment.resize_to.empty() || augment.crop == CropMode::random, "/augment/resize_to",
                "got pixels without the crop \"random\", which alone is cut from them");
}

void check_repeats(const Checker& check, const Recipe& recipe) {
  if (recipe.augment.repeated == 1) return;
  check.require(recipe.train.small_set == SmallSet::one_batch, "/augment/repeated",
                "got " + std::to_string(recipe.augment.repeated) +
                    " with train.small_set \"with_replacement\", wanted 1: such a batch repeats "
                    "images by itself");
}

void check_average(const Checker& check, const EmaConfig& ema) {
  if (ema.form == EmaForm::v3) return;
  const std::string wanted = " with train.ema_form \"v2\", wanted the form \"v3\" that has it";
  check.require(ema.start == 0, "/train/ema_start", "got " + std::to_string(ema.start) + wanted);
  check.require(!ema.warmup, "/train/ema_warmup", "got true" + wanted);
  check.require(!ema.copy_buffers, "/train/ema_copy_buffers", "got true" + wanted);
}

void check_changes(const Checker& check, const Recipe& recipe) {
  const AugmentConfig& augment = recipe.augment;
  const ErasingConfig& erasing = augment.erasing;
  check.require(
      erasing.probability > 0 || erasing == ErasingConfig{},
      erasing.mode == ErasingMode::constant ? "/augment/erasing_count" : "/augment/erasing_mode",
      "got a setting of random erasing with augment.random_erasing 0, wanted a "
      "probability above 0");
  const std::vector<double>& jitter = augment.color_jitter;
  check.length("/augment/color_jitter", jitter.size(), {0, 1, 3, 4},
               "one strength, or those of brightness, contrast, saturation and, if wanted, hue");
  check.require(jitter.size() < 4 || jitter[3] <= 0.5, "/augment/color_jitter/3",
                "out of range, got " + Checker::number(jitter.empty() ? 0 : jitter.back()) +
                    ", wanted a hue from 0 to 0.5");
  if (augment.rand_augment.empty()) return;
  try {
    parse_rand_augment(augment.rand_augment);
  } catch (const Error& error) {
    check.require(false, "/augment/rand_augment", error.what());
  }
  check.require(jitter.empty(), "/augment/color_jitter",
                "got strengths with augment.rand_augment, wanted one of them");
  check.require(!is_tensorflow(recipe.input.interpolation), "/input/interpolation",
                "got a filter of TensorFlow with augment.rand_augment, wanted \"bicubic\" or "
                "\"bilinear\", which its rotations know");
}

void check_mixing(const Checker& check, const Recipe& recipe) {
  const MixConfig& mix = recipe.augment.mix;
  if (!mix.on()) return;
  const std::string style = mix.style == MixStyle::bit ? "\"bit\"" : "\"funmatch\"";
  if (mix.style != MixStyle::timm) {
    check.require(mix.cutmix == 0, "/augment/cutmix",
                  "got " + Checker::number(mix.cutmix) + " with the style " + style +
                      ", wanted 0 or the style \"timm\"");
    check.require(mix.mode == MixMode::batch, "/augment/mix_mode",
                  "got one of the style \"timm\" with " + style + ", wanted \"batch\"");
    check.require(mix.probability == 1, "/augment/mix_probability",
                  "got " + Checker::number(mix.probability) + " with the style " + style +
                      ", wanted 1 or the style \"timm\"");
    return;
  }
  check.require(recipe.train.batch_size % 2 == 0, "/train/batch_size",
                "got " + std::to_string(recipe.train.batch_size) +
                    ", wanted an even number: augment.mix_style \"timm\" mixes pairs");
  check.require(recipe.train.drop_last, "/train/drop_last",
                "got false, wanted true: augment.mix_style \"timm\" mixes pairs of whole batches");
}

/// `length`: of the run, in the schedule's unit.
void check_length(const Checker& check, const ScheduleConfig& schedule, double length) {
  check.require(schedule.warmup + schedule.cooldown <= length, "/schedule/warmup",
                "got " + Checker::number(schedule.warmup) + " and a cooldown of " +
                    Checker::number(schedule.cooldown) + ", wanted together at most the run's " +
                    Checker::number(length) +
                    (schedule.unit == ScheduleUnit::epoch ? " epochs" : " steps"));
}

void check_schedule(const Checker& check, const Recipe& recipe) {
  const OptimizerConfig& optimizer = recipe.optimizer;
  check.length("/optimizer/betas", optimizer.betas.size(), {2}, "two numbers");
  for (size_t i = 0; i < 2; ++i) {
    check.require(optimizer.betas[i] >= 0 && optimizer.betas[i] < 1,
                  "/optimizer/betas/" + std::to_string(i),
                  "out of range, got " + Checker::number(optimizer.betas[i]) +
                      ", wanted at least 0 and below 1");
  }
  const ScheduleConfig& schedule = recipe.schedule;
  for (size_t i = 1; i < schedule.milestones.size(); ++i) {
    check.require(schedule.milestones[i - 1] < schedule.milestones[i],
                  "/schedule/milestones/" + std::to_string(i),
                  "wrong order, got " + Checker::number(schedule.milestones[i]) + " after " +
                      Checker::number(schedule.milestones[i - 1]) + ", wanted ascending numbers");
  }
  check.require(schedule.type != ScheduleType::steps || !schedule.milestones.empty(),
                "/schedule/milestones", "missing, wanted at least one for the type \"steps\"");
  check.require(schedule.total == 0 || schedule.warmup < schedule.total, "/schedule/total",
                "got " + Checker::number(schedule.total) + ", wanted more than the warm-up of " +
                    Checker::number(schedule.warmup));
  const TrainConfig& train = recipe.train;
  const bool by_epoch = schedule.unit == ScheduleUnit::epoch;
  if (by_epoch == (train.steps == 0))  // the other two cases need the number of images
    check_length(check, schedule, static_cast<double>(by_epoch ? train.epochs : train.steps));
}

/// The same files, whatever part of them is kept.
bool same_source(const DatasetConfig& a, const DatasetConfig& b) {
  DatasetConfig left{.source = a.source}, right{.source = b.source};
  return write_json_fields(left) == write_json_fields(right);
}

void check_path(const Checker& check, const std::string& pointer, const std::filesystem::path& path,
                const std::string& wanted) {
  check.require(!path.empty(), pointer, "missing, wanted " + wanted);
}

struct SourceChecker {
  const Checker& check;
  std::string at;

  void operator()(const FolderSource& source) const {
    check_path(check, at + "/path", source.path, "a folder that holds one folder for each class");
  }
  void operator()(const ListSource& source) const {
    check_path(check, at + "/path", source.path, "a text file of `path label` lines");
  }
  void operator()(const IdxSource& source) const {
    check_path(check, at + "/images", source.images, "an idx file of images");
    check_path(check, at + "/labels", source.labels, "an idx file of labels");
  }
  void operator()(const CifarSource& source) const {
    check_path(check, at + "/path", source.path, "the folder of the binary files");
  }
  void operator()(const NpzSource& source) const {
    check_path(check, at + "/path", source.path, "an npz file");
  }
  void operator()(const ImagesSource& source) const {
    check_path(check, at + "/path", source.path, "a folder of images");
  }
  void operator()(const HeldOutSource&) const {
    check.require(
        at == "/data/val", at + "/format",
        "got \"held_out\", wanted images of its own: data.val alone is cut from data.train");
  }
};

/// What is held out goes by data.train, whose own limits come first.
void check_val(const Checker& check, const Recipe& recipe) {
  const DataConfig& data = recipe.data;
  check.require(!data.train_on_val || data.val.has_value(), "/data/train_on_val",
                "got true without data.val, wanted validation images or false");
  if (!data.val || !std::holds_alternative<HeldOutSource>(data.val->source)) return;
  for (const auto& [key, value] :
       {std::pair{"limit", data.val->limit}, std::pair{"per_class", data.val->per_class}})
    check.require(value == 0, std::string("/data/val/") + key,
                  "got " + std::to_string(value) +
                      " with the format \"held_out\", wanted data.val.fraction or data.train." +
                      key);
}

void check_data(const Checker& check, const Recipe& recipe, bool needs_data) {
  const DataConfig& data = recipe.data;
  check.require(!needs_data || data.train, "/data/train", "missing, wanted the training images");
  if (data.train) std::visit(SourceChecker{check, "/data/train"}, data.train->source);
  if (data.val) std::visit(SourceChecker{check, "/data/val"}, data.val->source);
  if (data.test) std::visit(SourceChecker{check, "/data/test"}, data.test->source);
  check.require(recipe.train.best_on_test_every == 0 || data.test || !needs_data,
                "/train/best_on_test_every",
                "got " + std::to_string(recipe.train.best_on_test_every) +
                    " without data.test, wanted test images or 0");
  check_val(check, recipe);
  if (recipe.select != SelectRule::best_val) return;
  check.require(
      !data.train_on_val, "/select",
      "got \"best_val\" with data.train_on_val, wanted \"last\": no image is left to choose "
      "by");
  check.require(data.val.has_value(), "/select",
                "got \"best_val\" without data.val, wanted validation images or \"last\"");
  if (!data.test) return;
  check.require(
      !same_source(*data.test, *data.val), "/data/val",
      "got the images of data.test with select \"best_val\", wanted others: the test split "
      "never chooses");
  check.require(!data.train || !same_source(*data.test, *data.train), "/data/test",
                "got the images of data.train with select \"best_val\", wanted others");
}

struct TeacherChecker {
  const Checker& check;
  std::string at;

  void operator()(const AdapterTeacher& source) const {
    check_file("/adapter", source.adapter, "an adapter.safetensors or the run folder with it");
    if (!source.backbone.empty())  // what was trained from scratch is whole without one
      check_file("/backbone", source.backbone, "the checkpoint that the adapter was trained on");
  }
  void operator()(const CheckpointTeacher& source) const {
    check_file("/weights", source.weights, "a classifier's checkpoint");
    check.length(at + "/image_size", source.image_size.size(), {0, 1, 2},
                 "height and width, or one number");
  }
  void operator()(const TorchScriptTeacher& source) const {
    check_file("/file", source.file, "a TorchScript file");
  }
  void check_file(const std::string& key, const std::filesystem::path& path,
                  const std::string& wanted) const {
    check_path(check, at + key, path, wanted);
    check.require(std::filesystem::exists(path), at + key,
                  "no such file, got " + path.string() + ", wanted " + wanted);
  }
};

void check_head(const Checker& check, const Recipe& recipe) {
  const HeadConfig& head = recipe.head;
  const bool cosine = head.type == HeadType::cosine;
  check.require((head.type != HeadType::none && !cosine) || head.init == HeadInit::torch_default,
                "/head/init",
                std::string("got initial weights for head.type ") +
                    (cosine ? "\"cosine\"" : "\"none\"") + ", wanted \"default\"" +
                    (cosine ? ": it starts from head.text" : ""));
  check.require(cosine || head.text.empty(), "/head/text",
                "got embeddings for another head, wanted head.type \"cosine\", which alone starts "
                "from them");
}

/// Each of DeiT's two heads learns from a loss of its own.
void check_two_heads(const Checker& check, const Recipe& recipe, bool needs_data) {
  if (recipe.head.type != HeadType::distilled) return;
  check.require(recipe.loss.label_weight > 0, "/head/type",
                "got \"distilled\" with loss.label_weight 0, wanted \"linear\" or a weight above "
                "0: the head on the class token learns from the labels alone");
  const DistillTerms& terms = recipe.distill.terms;
  const bool taught = terms.kl + terms.soft_cross_entropy + terms.mse + terms.hard > 0;
  check.require((recipe.distill.on() || !needs_data) && taught, "/head/type",
                std::string("got \"distilled\" ") +
                    (recipe.distill.on() ? "with distill.feature alone" : "without teachers") +
                    ", wanted \"linear\" or a loss on a teacher's answers: the head on the "
                    "distillation token learns from them alone");
}

void check_distillation(const Checker& check, const Recipe& recipe, bool needs_data) {
  const DistillConfig& distill = recipe.distill;
  // A recipe that others extend need not name its teacher.
  check.require(!needs_data || distill.on() || recipe.loss.label_weight > 0, "/loss/label_weight",
                "got 0 without distill.teachers, wanted a weight above 0 or a teacher");
  check.require(!needs_data || distill.on() || distill.view == DistillView::same, "/distill/view",
                "got a view without distill.teachers, wanted a teacher or \"same\"");
  if (!distill.on()) return;
  const StoreConfig& store = distill.store;
  check.require(
      !distill.fixed() || store.epochs == 0, "/distill/store/epochs",
      "got " + std::to_string(store.epochs) + " with a view whose teacher is asked once, wanted 0");
  check.require(!store.file.empty() || store.top_k == 0, "/distill/store/top_k",
                "got " + std::to_string(store.top_k) + " without distill.store.file, wanted 0");
  check.require(!store.file.empty() || store.type == StoredType::f32, "/distill/store/type",
                "got \"f16\" without distill.store.file, wanted the file or \"f32\"");
  check.require(store.top_k == 0 || store.type == StoredType::f32, "/distill/store/type",
                "got \"f16\" with distill.store.top_k, wanted one of them: the largest logits are "
                "always kept in f16");
  const DistillTerms& terms = distill.terms;
  check.require(store.top_k == 0 || terms.mse == 0, "/distill/mse",
                "got " + Checker::number(terms.mse) +
                    " with distill.store.top_k, wanted 0: the other logits are not kept");
  check.require(terms.kl + terms.soft_cross_entropy + terms.mse + terms.hard + terms.feature > 0,
                "/distill/kl", "got no loss at all, wanted a weight above 0 for one of the terms");
  for (size_t i = 0; needs_data && i < distill.teachers.size(); ++i)
    std::visit(TeacherChecker{check, "/distill/teachers/" + std::to_string(i)},
               distill.teachers[i].source);
  check.require(
      terms.feature == 0 || distill.view != DistillView::fix_ic_ens, "/distill/feature",
      "got a weight with the view \"fix_ic_ens\", wanted 0: a mean over crops has no features");
  check.require(terms.feature == 0 || distill.store.file.empty(), "/distill/store/file",
                "got a file with distill.feature, wanted none: features are not stored");
  check.require(terms.feature == 0 || distill.combine == TeacherCombination::sum ||
                    distill.teachers.size() == 1,
                "/distill/combine",
                "got \"mean\" with distill.feature, wanted \"sum\": features have no mean");
}

}  // namespace

void validate_length(const Recipe& recipe, int64_t epoch_batches) {
  const TrainConfig& train = recipe.train;
  const Checker check(recipe);
  check.require(!train.drop_last || train.accumulate <= epoch_batches, "/train/accumulate",
                "got " + std::to_string(train.accumulate) + ", wanted at most " +
                    std::to_string(epoch_batches) +
                    ", the batches of an epoch (or train.drop_last false: a step then goes on in "
                    "the next one)");
  const StepPlan plan = step_plan(train, epoch_batches);
  const auto steps = static_cast<double>(plan.run_steps(train));
  const bool by_epoch = recipe.schedule.unit == ScheduleUnit::epoch;
  check_length(check, recipe.schedule,
               by_epoch ? steps / static_cast<double>(plan.epoch_steps()) : steps);
}

void validate(const Recipe& recipe, bool needs_data) {
  Checker check(recipe);
  check_backbone(check, recipe, needs_data);
  check_adapter(check, recipe);
  check_data(check, recipe, needs_data);
  check_input(check, recipe);
  check_distillation(check, recipe, needs_data);
  check_head(check, recipe);
  check_two_heads(check, recipe, needs_data);
  check_average(check, recipe.train.ema);
  if (recipe.rule != RecipeRule::none) return;  // it has yet to fill in what the rest goes with
  check_augment(check, recipe.augment);
  check_repeats(check, recipe);
  check_changes(check, recipe);
  check_mixing(check, recipe);
  check_schedule(check, recipe);
}

}  // namespace convpass
