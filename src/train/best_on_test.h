#pragma once

#include <ATen/ATen.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "convpass/train/evaluate.h"
#include "convpass/train/progress.h"

namespace convpass {

/// The best of the looks at the test split that a recipe asks for during training, so that
/// published figures which were chosen so can be set beside something. It is reported by this name
/// alone, and nothing reads it to decide anything.
class BestOnTest {
 public:
  /// `every`: epochs between looks; 0 = none.
  explicit BestOnTest(int64_t every) : every_(every) {}

  bool due(int64_t epoch, bool last) const { return every_ > 0 && (epoch % every_ == 0 || last); }

  /// Adds what `evaluate` finds to the epoch's line of the log. False when a signal came.
  template <class Evaluate>
  bool look(int64_t epoch, nlohmann::ordered_json& line, const Evaluate& evaluate) {
    const Metrics metrics = evaluate();
    if (stop_requested()) return false;
    line["test_top1"] = metrics.top1;
    if (metrics.top1 > top1_) {
      top1_ = metrics.top1;
      epoch_ = epoch;
    }
    char text[80];
    std::snprintf(text, sizeof text, "epoch %lld: test top-1 %.2f %%, chooses nothing",
                  static_cast<long long>(epoch), 100 * metrics.top1);
    say(text);
    return true;
  }

  void report(nlohmann::ordered_json& result) const {
    if (epoch_ > 0)
      result["best_on_test"] = {{"top1", top1_},
                                {"epoch", epoch_},
                                {"note", "chosen on the test split: not comparable with last"}};
  }

  void save(TensorMap& map) const {
    if (epoch_ > 0)
      map.tensors["best_on_test"] = at::tensor({top1_, static_cast<double>(epoch_)}, at::kDouble);
  }
  /// Errors: Error when the checkpoint holds something else.
  void load(const TensorMap& map) {
    if (!map.has("best_on_test")) return;
    const at::Tensor saved = map.at("best_on_test");
    if (saved.numel() != 2 || saved.scalar_type() != at::kDouble)
      throw Error("checkpoint: best_on_test is not a top-1 and its epoch");
    const at::Tensor values = saved.contiguous();
    top1_ = values[0].item<double>();
    const double epoch = values[1].item<double>();
    if (!(epoch >= 1 && epoch < 1e15) || !(top1_ >= 0 && top1_ <= 1))
      throw Error("checkpoint: best_on_test is not a top-1 and its epoch");
    epoch_ = static_cast<int64_t>(epoch);
  }

 private:
  int64_t every_;
  double top1_ = -1;
  int64_t epoch_ = 0;  ///< 0 = not looked yet
};

}  // namespace convpass
