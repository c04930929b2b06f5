#include "src/data/color_jitter.h"

#include <algorithm>
#include <utility>

namespace convpass {

std::vector<Change> draw_color_jitter(const std::vector<double>& strengths, Rng& rng) {
  constexpr Operation kOperations[] = {Operation::brightness, Operation::contrast, Operation::color,
                                       Operation::shift_hue};
  const std::vector<double> each =
      strengths.size() == 1 ? std::vector<double>(3, strengths.front()) : strengths;
  std::vector<Change> changes;
  for (size_t i = 0; i < each.size(); ++i) {
    if (each[i] == 0) continue;
    const double middle = kOperations[i] == Operation::shift_hue ? 0 : 1;
    const double low = middle - each[i];
    changes.push_back(
        {kOperations[i], rng.uniform(middle == 0 ? low : std::max(0.0, low), middle + each[i])});
  }
  for (size_t i = changes.size(); i > 1; --i) {
    std::swap(changes[i - 1], changes[static_cast<size_t>(rng.below(static_cast<int64_t>(i)))]);
  }
  return changes;
}

}  // namespace convpass
