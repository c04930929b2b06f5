#include "src/train/trial_grid.h"

#include <algorithm>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/core/rng.h"

namespace convpass {
namespace {

/// Cuts at commas that stand outside brackets, braces and quotes.
std::vector<std::string> values_of(std::string_view text) {
  std::vector<std::string> values(1);
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == ',' && depth == 0 && !quoted) {
      values.emplace_back();
      continue;
    }
    values.back() += c;
    if (quoted && c == '\\' && i + 1 < text.size())
      values.back() += text[++i];
    else if (c == '"')
      quoted = !quoted;
    else if (!quoted)
      depth += c == '[' || c == '{' ? 1 : c == ']' || c == '}' ? -1 : 0;
  }
  return values;
}

/// The grid's combination at `place`.
Setting setting_at(const std::vector<SearchAxis>& axes, int64_t place) {
  Setting setting;
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    const auto values = std::ssize(axis->values);
    setting.emplace_back(axis->key, axis->values[static_cast<size_t>(place % values)]);
    place /= values;
  }
  std::reverse(setting.begin(), setting.end());
  return setting;
}

}  // namespace

SearchAxis parse_axis(const std::string& text) {
  const size_t equals = text.find('=');
  const std::string wanted = ", wanted KEY=VALUE,VALUE,... with a key like adapter.scale";
  if (equals == std::string::npos || equals == 0)
    throw UsageError("--over: got " + json_quote(text) + wanted);
  SearchAxis axis{text.substr(0, equals), values_of(std::string_view(text).substr(equals + 1))};
  std::set<std::string> seen;
  for (const std::string& value : axis.values) {
    if (value.empty()) throw UsageError("--over " + json_quote(text) + ": got no value" + wanted);
    if (!seen.insert(value).second)
      throw UsageError("--over " + json_quote(text) + ": the value " + json_quote(value) +
                       " stands twice");
  }
  return axis;
}

std::vector<Setting> trial_settings(const std::vector<SearchAxis>& axes, int64_t random,
                                    int64_t seed) {
  constexpr int64_t kMost = 10'000;
  std::set<std::string> keys;
  int64_t count = 1;
  for (const SearchAxis& axis : axes) {
    if (!keys.insert(axis.key).second)
      throw UsageError("--over " + axis.key + ": the key stands twice");
    count *= std::ssize(axis.values);
    if (count > kMost)
      throw UsageError("--over: got a grid of more than " + std::to_string(kMost) +
                       " trials, wanted fewer values");
  }
  std::vector<int64_t> places(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) places[static_cast<size_t>(i)] = i;
  if (random > 0 && random < count) {
    auto key = [&](int64_t place) {
      return random_key(static_cast<uint64_t>(seed), 0, static_cast<uint64_t>(place),
                        Purpose::search);
    };
    std::sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    places.resize(static_cast<size_t>(random));
    std::sort(places.begin(), places.end());
  }
  std::vector<Setting> settings;
  for (int64_t place : places) settings.push_back(setting_at(axes, place));
  return settings;
}

}  // namespace convpass
