#include "convpass/train/hyper_rule.h"

#include <algorithm>
#include <functional>

#include "convpass/core/error.h"
#include "convpass/data/dataset.h"
#include "convpass/train/progress.h"
#include "src/train/splits.h"

namespace convpass {
namespace {

/// Writes settings, but for those that the recipe gives itself.
class Filler {
 public:
  explicit Filler(Recipe& recipe) : recipe_(recipe) {}

  bool given(const std::string& pointer) const { return recipe_.given.count(pointer) != 0; }
  template <class Value>
  void fill(const std::string& pointer, Value& setting, const std::type_identity_t<Value>& value) {
    if (given(pointer))
      kept_.push_back(pointer);
    else
      setting = value;
  }
  void keep(const std::string& pointer) { kept_.push_back(pointer); }
  const std::vector<std::string>& kept() const { return kept_; }

 private:
  Recipe& recipe_;
  std::vector<std::string> kept_;
};

/// batch_size times accumulate is the rule's batch; what the recipe gives of the two stays.
void fill_batch(Filler& filler, Recipe& recipe, int64_t batch) {
  const bool size = filler.given("/train/batch_size"), times = filler.given("/train/accumulate");
  TrainConfig& train = recipe.train;
  if (size && times) {
    if (train.batch_size * train.accumulate != batch) filler.keep("/train/batch_size");
    return;
  }
  auto divide = [&](const char* pointer, int64_t divisor) {
    if (batch % divisor != 0) {
      throw RecipeError(recipe.file, pointer,
                        "got " + std::to_string(divisor) +
                            ", wanted a divisor of the rule's batch of " + std::to_string(batch) +
                            ", or both batch_size and accumulate");
    }
    return batch / divisor;
  };
  if (size)
    train.accumulate = divide("/train/batch_size", train.batch_size);
  else
    train.batch_size = divide("/train/accumulate", train.accumulate);
}

void fill_input(Filler& filler, Recipe& recipe, const BitRule& rule) {
  if (filler.given("/input/size") && !filler.given("/backbone/image_size"))
    filler.keep("/input/size");
  else
    filler.fill("/backbone/image_size", recipe.backbone.image_size, {rule.crop});
  filler.fill("/input/resize", recipe.input.resize, ResizeMode::stretch);
  filler.fill("/input/interpolation", recipe.input.interpolation, Interpolation::bilinear);
  filler.fill("/augment/crop", recipe.augment.crop, CropMode::random);
  if (recipe.augment.crop == CropMode::random)
    filler.fill("/augment/resize_to", recipe.augment.resize_to, {rule.resize});
  filler.fill("/augment/flip", recipe.augment.flip, 0.5);
  filler.fill("/augment/mixup", recipe.augment.mix.mixup, rule.mixup);
  filler.fill("/augment/mix_style", recipe.augment.mix.style, MixStyle::bit);
}

void fill_schedule(Filler& filler, Recipe& recipe, const BitRule& rule) {
  ScheduleConfig& schedule = recipe.schedule;
  filler.fill("/schedule/type", schedule.type, ScheduleType::steps);
  filler.fill("/schedule/unit", schedule.unit, ScheduleUnit::step);
  filler.fill("/schedule/warmup", schedule.warmup, static_cast<double>(rule.warmup));
  filler.fill("/schedule/warmup_lr", schedule.warmup_lr, 0);
  if (schedule.type == ScheduleType::steps) {
    filler.fill("/schedule/milestones", schedule.milestones, rule.milestones);
    filler.fill("/schedule/decay", schedule.decay, 0.1);
  }
  if (filler.given("/train/epochs") && !filler.given("/train/steps"))
    filler.keep("/train/epochs");
  else
    filler.fill("/train/steps", recipe.train.steps, rule.steps);
}

int64_t median_area(const Dataset& dataset) {
  constexpr int64_t kLooks = 25;
  std::vector<int64_t> areas;
  std::string broken;
  for (int64_t i = 0, looks = std::min(kLooks, dataset.size()); i < looks; ++i) {
    try {
      const Image image = dataset.image(i * dataset.size() / looks);
      areas.push_back(image.height * image.width);
    } catch (const FileError& error) {
      broken = error.what();  // counted and reported when all images are looked at
    }
  }
  if (areas.empty()) throw Error("rule: no image can be read, the last: " + broken);
  const auto middle = areas.begin() + static_cast<std::ptrdiff_t>(areas.size() / 2);
  std::nth_element(areas.begin(), middle, areas.end());
  return *middle;
}

}  // namespace

BitRule bit_hyper_rule(int64_t image_area, int64_t images, bool light) {
  const bool small_images = image_area < 96 * 96;
  BitRule rule;
  rule.resize = small_images ? 160 : 512;
  rule.crop = small_images ? 128 : 480;
  rule.mixup = images < 20'000 ? 0.0 : 0.1;
  rule.batch = light ? 128 : 512;
  rule.lr = light ? 0.001 : 0.003;
  if (images < 20'000) {
    rule.warmup = 100, rule.milestones = {201, 301, 401}, rule.steps = 500;
  } else if (images < 500'000) {
    rule.warmup = 500, rule.milestones = {3001, 6001, 9001}, rule.steps = 10'000;
  } else {
    rule.warmup = 500, rule.milestones = {6001, 12'001, 18'001}, rule.steps = 20'000;
  }
  return rule;
}

std::vector<std::string> apply_bit_hyper_rule(Recipe& recipe, int64_t image_area, int64_t images) {
  const BitRule rule =
      bit_hyper_rule(image_area, images, recipe.rule == RecipeRule::bit_hyperrule_light);
  Filler filler(recipe);
  filler.fill("/backbone/trainable", recipe.backbone.trainable, true);
  filler.fill("/head/init", recipe.head.init, HeadInit::zero);
  fill_input(filler, recipe, rule);
  filler.fill("/optimizer/type", recipe.optimizer.type, OptimizerType::sgd);
  filler.fill("/optimizer/lr", recipe.optimizer.lr, rule.lr);
  filler.fill("/optimizer/momentum", recipe.optimizer.momentum, 0.9);
  filler.fill("/optimizer/weight_decay", recipe.optimizer.weight_decay, 0);
  fill_schedule(filler, recipe, rule);
  fill_batch(filler, recipe, rule.batch);
  filler.fill("/train/drop_last", recipe.train.drop_last, false);
  filler.fill("/train/small_set", recipe.train.small_set, SmallSet::with_replacement);
  recipe.rule = RecipeRule::none;
  return filler.kept();
}

Recipe resolve_rule(const Recipe& recipe) {
  if (recipe.rule == RecipeRule::none) return recipe;
  const auto dataset = open_split(recipe, Split::train, recipe.data.classes);
  Recipe resolved = recipe;
  const int64_t area = median_area(*dataset);
  const std::vector<std::string> kept = apply_bit_hyper_rule(resolved, area, dataset->size());
  std::string text = "BiT-HyperRule for " + std::to_string(dataset->size()) + " images of about " +
                     std::to_string(area) + " pixels";
  for (const std::string& pointer : kept)
    text += (&pointer == &kept.front() ? "; the recipe's own " : ", ") + pointer;
  say(text + (kept.empty() ? "" : " stays"));
  try {
    validate(resolved, /*needs_data=*/true);
  } catch (const RecipeError& error) {
    throw Error(std::string(error.what()) + " (what the recipe does not give is BiT-HyperRule's)");
  }
  return resolved;
}

}  // namespace convpass
