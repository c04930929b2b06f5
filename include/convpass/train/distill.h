#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "convpass/train/objective.h"
#include "convpass/train/teacher.h"

namespace convpass {

class FieldVisitor;
struct Recipe;

/// What teacher and student each see of an image (Beyer et al. 2021, figure 2). The student's crop
/// follows from the view: none (fix_rs), mild random (fix_cc, ind_rc, same_rc) or inception.
enum class DistillView {
  same,        ///< the teacher sees the student's view, whatever `augment` says, mixed alike
  fix_rs,      ///< both the whole image, resized; the teacher is asked once
  fix_cc,      ///< teacher once, on its evaluation view; student a mild random crop
  fix_ic_ens,  ///< teacher's mean over many inception crops, asked once; student one of its own
  ind_rc,      ///< two independent mild random crops
  ind_ic,      ///< two independent inception crops
  same_rc,     ///< the same mild random crop
  same_ic,     ///< the same inception crop
  mix,         ///< the same inception crop after the same mixup: FunMatch
};

/// How several teachers make one loss.
enum class TeacherCombination {
  sum,   ///< their losses add
  mean,  ///< one loss against the mean of their probabilities
};

enum class StoredType { f32, f16 };

/// Teachers' predictions kept in a file, so that a second run need not ask them.
struct StoreConfig {
  std::filesystem::path file;  ///< empty: nothing is stored
  int64_t epochs = 0;  ///< random views: order, views and mixing repeat after so many epochs,
                       ///< stored or not; 0 = never
  StoredType type = StoredType::f32;
  int64_t top_k = 0;  ///< keep the largest k logits alone (f16), the rest of the probability spread
                      ///< evenly; 0 = all
};

struct DistillConfig {
  std::vector<TeacherConfig> teachers;  ///< none: no distillation
  DistillView view = DistillView::same;
  int64_t ensemble_crops = 1000;  ///< fix_ic_ens: crops that a teacher's mean is taken over
  TeacherCombination combine = TeacherCombination::sum;
  DistillTerms terms;
  StoreConfig store;

  bool on() const { return !teachers.empty(); }
  /// Whether a teacher is asked once an image, before training.
  bool fixed() const {
    return view == DistillView::fix_rs || view == DistillView::fix_cc ||
           view == DistillView::fix_ic_ens;
  }
  /// Epochs after which order, views and mixing repeat, so that stored predictions fit; 0 = never.
  int64_t replay_epochs() const { return on() && !fixed() ? store.epochs : 0; }
};

void fields(FieldVisitor& visitor, StoreConfig& config);
void fields(FieldVisitor& visitor, DistillConfig& config);

/// Puts what the view says of crops and mixing into `augment`. A crop or mixing of the recipe's own
/// that is another is an error. Errors: RecipeError.
void resolve_view(Recipe& recipe);

}  // namespace convpass
