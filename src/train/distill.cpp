#include "convpass/train/distill.h"

#include <optional>
#include <string>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "convpass/train/recipe.h"

namespace convpass {
namespace {

/// The student's crop; nothing where the view leaves it to `augment`.
std::optional<CropMode> crop_of(DistillView view) {
  switch (view) {
    case DistillView::same:
      return std::nullopt;
    case DistillView::fix_rs:
      return CropMode::none;
    case DistillView::fix_cc:
    case DistillView::ind_rc:
    case DistillView::same_rc:
      return CropMode::random;
    case DistillView::fix_ic_ens:
    case DistillView::ind_ic:
    case DistillView::same_ic:
    case DistillView::mix:
      return CropMode::inception;
  }
  return std::nullopt;
}

constexpr const char* kCropNames[] = {"none", "random_resized", "random", "inception"};
constexpr const char* kStyleNames[] = {"timm", "funmatch", "bit"};

}  // namespace

void fields(FieldVisitor& visitor, StoreConfig& config) {
  visitor.field("file", config.file,
                "stored predictions: made where it is not there, used where it is; empty: none");
  visitor.field(
      "epochs", config.epochs,
      "with random views: epochs after which order, views and mixing repeat (stored or not), "
      "so that no more have to be stored; 0: never",
      between(0, 1e6));
  visitor.choice("type", config.type, {"f32", "f16"}, "of the stored logits");
  visitor.field("top_k", config.top_k,
                "keep the k largest logits (in f16) and spread the rest of the probability evenly; "
                "0: all logits",
                between(0, 1e6));
}

void fields(FieldVisitor& visitor, DistillConfig& config) {
  visitor.parts("teachers", config.teachers, "networks whose answers are learned; none = off");
  visitor.choice(
      "view", config.view,
      {"same", "fix_rs", "fix_cc", "fix_ic_ens", "ind_rc", "ind_ic", "same_rc", "same_ic", "mix"},
      "what teacher and student each see: the same view as `augment` draws it, or one of "
      "the eight ways of \"A good teacher is patient and consistent\"; mix = FunMatch");
  visitor.field("ensemble_crops", config.ensemble_crops,
                "fix_ic_ens: inception crops that a teacher's mean prediction is taken over",
                between(1, 1e6));
  visitor.choice("combine", config.combine, {"sum", "mean"},
                 "several teachers: their losses add, or one loss against the mean of their "
                 "probabilities");
  fields(visitor, config.terms);
  visitor.part("store", config.store, "predictions kept in a file and used again");
}

void resolve_view(Recipe& recipe) {
  const DistillConfig& distill = recipe.distill;
  const std::optional<CropMode> crop = crop_of(distill.view);
  if (!distill.on() || !crop) return;
  AugmentConfig& augment = recipe.augment;
  if (augment.crop != *crop && recipe.given.count("/augment/crop") != 0)
    throw RecipeError(recipe.where("/augment/crop"), "/augment/crop",
                      std::string("got \"") + kCropNames[static_cast<int>(augment.crop)] +
                          "\", wanted \"" + kCropNames[static_cast<int>(*crop)] +
                          "\" or nothing: distill.view says it");
  augment.crop = *crop;
  recipe.given.emplace("/augment/crop", recipe.file);  // no rule chooses another
  const bool mixes = distill.view == DistillView::mix;
  if (mixes && recipe.given.emplace("/augment/mixup", recipe.file).second) augment.mix.mixup = 1.0;
  if (mixes && recipe.given.emplace("/augment/mix_style", recipe.file).second)
    augment.mix.style = MixStyle::funmatch;
  if (mixes && augment.mix.style != MixStyle::funmatch)
    throw RecipeError(recipe.where("/augment/mix_style"), "/augment/mix_style",
                      std::string("got \"") + kStyleNames[static_cast<int>(augment.mix.style)] +
                          "\", wanted \"funmatch\" or nothing: distill.view \"mix\" says it");
  if (mixes != augment.mix.on())
    throw RecipeError(recipe.file, "/augment/mixup",
                      mixes ? "got 0, wanted a number above 0 for distill.view \"mix\""
                            : "got mixing, wanted none: only the views \"mix\" and \"same\" mix");
}

}  // namespace convpass
