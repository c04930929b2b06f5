#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "convpass/core/json.h"

namespace convpass {
namespace {

/// Optimal string alignment: insert, delete, replace, swap two neighbours; each costs one.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t replace = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    std::swap(before, above);
    std::swap(above, row);
  }
  return above[b.size()];
}

}  // namespace

std::string nearest_name(std::string_view name, const std::vector<std::string>& known) {
  constexpr size_t kLongest = 64;
  if (name.size() > kLongest) return "";
  size_t best = std::max<size_t>(1, (name.size() + 1) / 3) + 1;
  std::string nearest;
  for (const std::string& candidate : known) {
    size_t distance = edit_distance(name, candidate);
    // Cut short or written on: "interp" for "interpolation".
    bool prefix = name.size() >= 3 && (candidate.starts_with(name) || name.starts_with(candidate));
    if (prefix && candidate.size() >= 3) distance = std::min<size_t>(distance, 1);
    if (distance < best && distance < candidate.size()) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& known) {
  std::string nearest = nearest_name(name, known);
  return nearest.empty() ? "" : " (did you mean " + json_quote(nearest) + "?)";
}

std::string json_quote(std::string_view text, size_t limit) {
  std::string shown(text.substr(0, limit));
  if (text.size() > limit) shown += "...";
  return nlohmann::json(shown).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace convpass
