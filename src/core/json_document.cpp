#include "src/core/json_document.h"

#include <algorithm>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/file.h"

namespace convpass {
namespace {

constexpr size_t kMaxDepth = 32;

/// "line 3, column 14" of a byte offset.
std::string line_and_column(const std::string& text, size_t byte) {
  size_t end = std::min(byte, text.size());
  auto begin = text.begin();
  auto stop = begin + static_cast<std::ptrdiff_t>(end);
  auto line = std::count(begin, stop, '\n') + 1;
  size_t line_start = end == 0 ? std::string::npos : text.rfind('\n', end - 1);
  size_t column = line_start == std::string::npos ? end + 1 : end - line_start;
  return "line " + std::to_string(line) + ", column " + std::to_string(column);
}

/// nlohmann's message without its tag and position: "syntax error while parsing value - ...".
std::string reason(const std::string& message) {
  size_t from = message.find("] ");
  from = from == std::string::npos ? 0 : from + 2;
  if (message.compare(from, 11, "parse error") == 0) {
    size_t colon = message.find(": ", from);
    if (colon != std::string::npos) from = colon + 2;
  }
  return message.substr(from);
}

/// Watches a parse for what the grammar alone allows: keys that stand twice, bottomless nesting.
class ParseWatch {
 public:
  explicit ParseWatch(const std::filesystem::path& where) : where_(where) {}

  bool operator()(Json::parse_event_t event, const Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (levels_.size() >= kMaxDepth) {
          throw RecipeError(
              where_, "",
              "nested too deeply, wanted at most " + std::to_string(kMaxDepth) + " levels");
        }
        levels_.emplace_back();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        levels_.pop_back();
        break;
      case Json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        levels_.back().key = key;
        if (!levels_.back().seen.insert(key).second) {
          throw RecipeError(where_, pointer(), "the key stands twice in one object");
        }
        break;
      }
      default:
        break;
    }
    return true;
  }

 private:
  struct Level {
    std::set<std::string> seen;
    std::string key;
  };
  std::string pointer() const {
    std::string pointer;
    for (const Level& level : levels_) pointer = child_pointer(pointer, level.key);
    return pointer;
  }

  std::filesystem::path where_;
  std::vector<Level> levels_;
};

}  // namespace

Json parse_json(const std::string& text, const std::filesystem::path& where) {
  ParseWatch watch(where);
  try {
    return Json::parse(
        text,
        [&watch](int, Json::parse_event_t event, Json& parsed) { return watch(event, parsed); },
        /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const nlohmann::json::parse_error& error) {
    size_t byte = error.byte == 0 ? 0 : error.byte - 1;
    throw RecipeError(where, "",
                      "not JSON: " + line_and_column(text, byte) + ": " + reason(error.what()));
  } catch (const nlohmann::json::out_of_range& error) {
    throw RecipeError(where, "", "not JSON: " + reason(error.what()));
  }
}

Json read_json_object(const std::filesystem::path& file, const std::string& what) {
  namespace fs = std::filesystem;
  constexpr uintmax_t kMaxBytes = 4 << 20;
  if (!fs::exists(file)) throw FileError(file, "no such file, wanted " + what + " (JSON)");
  if (!fs::is_regular_file(file)) throw FileError(file, "not a file, wanted " + what + " (JSON)");
  if (fs::file_size(file) > kMaxBytes) {
    throw RecipeError(file, "",
                      "got a file of " + std::to_string(fs::file_size(file)) + " bytes, wanted " +
                          what + " of at most " + std::to_string(kMaxBytes));
  }
  std::string text;
  if (fs::file_size(file) > 0) {
    const std::vector<uint8_t> bytes = read_file(file);
    text.assign(bytes.begin(), bytes.end());
  }
  Json json = parse_json(text, file);
  if (!json.is_object()) {
    throw RecipeError(file, "", "wrong type, got " + describe_value(json) + ", wanted an object");
  }
  return json;
}

std::string describe_value(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list of " + std::to_string(value.size());
  if (value.is_string()) return json_quote(value.get_ref<const std::string&>());
  if (value.is_number_float()) return number_text(value.get<double>());
  return value.dump();
}

std::string child_pointer(const std::string& pointer, std::string_view key) {
  std::string escaped;
  for (char c : key) {
    if (c == '~') {
      escaped += "~0";
    } else if (c == '/') {
      escaped += "~1";
    } else {
      escaped += c;
    }
  }
  std::string printable = json_quote(escaped, 200);
  return pointer + "/" + printable.substr(1, printable.size() - 2);
}

std::string number_text(double value) {
  std::string text = Json(value).dump();
  if (text.size() > 2 && text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

std::string describe_bounds(const Bounds& bounds) {
  bool lower = bounds.min > -std::numeric_limits<double>::infinity();
  bool upper = bounds.max < std::numeric_limits<double>::infinity();
  if (lower && upper && !bounds.above_min) {
    return "from " + number_text(bounds.min) + " to " + number_text(bounds.max);
  }
  std::string text;
  if (lower) text = (bounds.above_min ? "above " : "at least ") + number_text(bounds.min);
  if (upper) text += (lower ? " and at most " : "at most ") + number_text(bounds.max);
  return text;
}

void JsonDocument::overlay(const Json& patch, const std::filesystem::path& where,
                           const std::filesystem::path& folder) {
  layers_.push_back({where, folder});
  merge(root_, patch, "");
}

size_t JsonDocument::layer(const std::string& pointer) const {
  for (std::string prefix = pointer;;) {
    auto found = origins_.find(prefix);
    if (found != origins_.end()) return found->second;
    size_t slash = prefix.rfind('/');
    if (slash == std::string::npos) return 0;
    prefix.resize(slash);
  }
}

void JsonDocument::merge(Json& target, const Json& patch, const std::string& pointer) {
  if (!patch.is_object()) {
    target = patch;
    claim(pointer);
    return;
  }
  if (!target.is_object()) {
    target = Json::object();
    claim(pointer);
  }
  for (const auto& [key, value] : patch.items()) {
    std::string child = child_pointer(pointer, key);
    merge(target[key], value, child);
  }
}

void JsonDocument::claim(const std::string& pointer) {
  std::string inside = pointer + "/";
  auto first = origins_.lower_bound(inside);
  auto last = first;
  while (last != origins_.end() && last->first.starts_with(inside)) ++last;
  origins_.erase(first, last);
  origins_[pointer] = layers_.size() - 1;
}

}  // namespace convpass
