#include <algorithm>
#include <cmath>
#include <map>

#include "convpass/core/error.h"
#include "src/core/json_document.h"

namespace convpass {
namespace {

std::string join_quoted(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + json_quote(name);
  return text;
}

/// Walks fields and takes their values out of a document.
///
/// Of a variant it walks every alternative, the selected one last: the others only to learn their
/// keys, so that a key which is known, but belongs to another choice, gets a message of its own.
class JsonReader final : public FieldVisitor {
 public:
  JsonReader(const JsonDocument& document, const std::vector<std::string>& also)
      : document_(document) {
    if (!document.root().is_object()) fail("", document.root(), "an object");
    levels_.push_back({.object = &document.root(), .also = also});
  }

  /// To be called after the walk: looks for keys of the root that no field has named.
  void finish() { check_keys(); }

  void field(std::string_view key, bool& value, std::string_view) override {
    if (const Json* found = find(key)) {
      if (!found->is_boolean()) fail(pointer(key), *found, "true or false");
      value = found->get<bool>();
    }
  }
  void field(std::string_view key, int64_t& value, std::string_view, Bounds bounds) override {
    if (const Json* found = find(key)) value = read_integer(pointer(key), *found, bounds);
  }
  void field(std::string_view key, double& value, std::string_view, Bounds bounds) override {
    if (const Json* found = find(key)) value = read_number(pointer(key), *found, bounds);
  }
  void field(std::string_view key, std::string& value, std::string_view) override {
    if (const Json* found = find(key)) value = read_string(pointer(key), *found);
  }
  void field(std::string_view key, std::filesystem::path& value, std::string_view) override {
    const Json* found = find(key);
    if (!found) return;
    std::string at = pointer(key);
    std::string text = read_string(at, *found);
    if (text.find('\0') != std::string::npos) fail(at, *found, "a path without a NUL character");
    value = text.empty() ? std::filesystem::path() : (paths_start(at) / text).lexically_normal();
  }
  void field(std::string_view key, std::vector<double>& value, std::string_view,
             Bounds bounds) override {
    read_list(key, value, "a list of numbers", [&](const std::string& at, const Json& element) {
      return read_number(at, element, bounds);
    });
  }
  void field(std::string_view key, std::vector<int64_t>& value, std::string_view,
             Bounds bounds) override {
    read_list(key, value, "a list of whole numbers",
              [&](const std::string& at, const Json& element) {
                return read_integer(at, element, bounds);
              });
  }
  void field(std::string_view key, std::vector<std::string>& value, std::string_view) override {
    read_list(key, value, "a list of strings",
              [&](const std::string& at, const Json& element) { return read_string(at, element); });
  }
  void list_or_word(std::string_view key, std::vector<int64_t>& value, std::string_view word,
                    std::string_view, Bounds bounds) override {
    std::string wanted = json_quote(word) + " or a list of whole numbers";
    if (const Json* found = peek(key)) {
      if (found->is_string() && found->get_ref<const std::string&>() == word) {
        find(key);
        value.clear();
        return;
      }
      // An empty list would read like the word, which means the opposite.
      if (found->is_array() && found->empty()) fail(pointer(key), *found, wanted);
    }
    read_list(key, value, wanted, [&](const std::string& at, const Json& element) {
      return read_integer(at, element, bounds);
    });
  }

 protected:
  bool reads() const override { return foreign_choice_.empty(); }
  void start_paths_at(const std::filesystem::path& folder) override {
    levels_.back().paths_root = folder;
  }

  void choice_index(std::string_view key, int& index, Names names, std::string_view) override {
    if (const Json* found = find(key)) index = read_choice(pointer(key), *found, names);
  }

  bool begin_part(std::string_view key, std::string_view) override {
    const Json* found = find(key);
    if (!found) return false;
    if (!found->is_object()) fail(pointer(key), *found, "an object");
    levels_.push_back({.object = found, .pointer = pointer(key)});
    return true;
  }
  bool begin_optional(std::string_view key, std::string_view help, bool) override {
    const Json* found = peek(key);
    if (found && found->is_null()) {
      find(key, /*null_allowed=*/true);
      return false;
    }
    return begin_part(key, help);
  }
  void end_part() override {
    check_keys();
    levels_.pop_back();
  }

  std::optional<size_t> begin_list(std::string_view key, std::string_view, size_t) override {
    const Json* found = find(key);
    if (!found) return std::nullopt;
    const std::string at = pointer(key);
    if (!found->is_object() && !found->is_array()) fail(at, *found, "a list of objects");
    lists_.push_back({found, at});
    return found->is_array() ? found->size() : 1;
  }
  void begin_element(size_t index) override {
    const auto& [list, at] = lists_.back();
    const Json& element = list->is_array() ? (*list)[index] : *list;
    const std::string here = list->is_array() ? at + "/" + std::to_string(index) : at;
    if (!element.is_object()) fail(here, element, "an object");
    levels_.push_back({.object = &element, .pointer = here});
  }
  void end_list() override { lists_.pop_back(); }

  std::vector<int> select_alternatives(std::string_view key, int current, Names names,
                                       std::string_view) override {
    int selected = current;
    choice_index(key, selected, names, "");
    if (!reads()) return {};
    Level& level = levels_.back();
    level.tag = key;
    level.choice = *(names.begin() + selected);
    alternatives_.push_back({names, selected});
    std::vector<int> order;
    for (int i = 0; i < static_cast<int>(names.size()); ++i) {
      if (i != selected) order.push_back(i);
    }
    order.push_back(selected);
    return order;
  }
  void begin_alternative(int index) override {
    const Alternatives& variant = alternatives_.back();
    if (index != variant.selected) foreign_choice_ = *(variant.names.begin() + index);
  }
  void end_alternative() override {
    // The selected one stands last.
    if (reads()) alternatives_.pop_back();
    foreign_choice_.clear();
  }

 private:
  struct Level {
    const Json* object = nullptr;
    std::string pointer{};
    std::vector<std::string> known{};
    std::vector<std::string> also{};               ///< known to the caller alone
    std::filesystem::path paths_root{};            ///< where relative paths start, if not empty
    std::string tag{}, choice{};                   ///< of the variant in this object
    std::map<std::string, std::string> foreign{};  ///< key -> the choice that it belongs to
  };
  struct Alternatives {
    std::vector<std::string_view> names;
    int selected;
    Alternatives(Names all, int index) : names(all), selected(index) {}
  };

  [[noreturn]] void fail(const std::string& pointer, const std::string& what) const {
    throw RecipeError(document_.where(pointer), pointer, what);
  }
  [[noreturn]] void fail(const std::string& pointer, const Json& got,
                         const std::string& wanted) const {
    fail(pointer, "wrong type, got " + describe_value(got) + ", wanted " + wanted);
  }

  std::string pointer(std::string_view key) const {
    return child_pointer(levels_.back().pointer, key);
  }
  /// The innermost root that an object around the value names, else the folder of its layer.
  const std::filesystem::path& paths_start(const std::string& at) const {
    for (auto level = levels_.rbegin(); level != levels_.rend(); ++level)
      if (!level->paths_root.empty()) return level->paths_root;
    return document_.folder(at);
  }
  /// The value in the current object, null when there is none.
  const Json* peek(std::string_view key) const {
    if (!reads()) return nullptr;
    auto found = levels_.back().object->find(std::string(key));
    return found == levels_.back().object->end() ? nullptr : &*found;
  }
  /// The same, and notes that the key is known. A null that an upper layer has laid over a value
  /// means the default.
  const Json* find(std::string_view key, bool null_allowed = false) {
    Level& level = levels_.back();
    if (!reads()) {
      level.foreign.emplace(key, foreign_choice_);
      return nullptr;
    }
    level.known.emplace_back(key);
    const Json* found = peek(key);
    if (found && found->is_null() && !null_allowed && document_.layer(pointer(key)) > 0) {
      return nullptr;
    }
    return found;
  }

  void check_keys() const {
    const Level& level = levels_.back();
    for (const auto& [key, value] : level.object->items()) {
      if (std::find(level.known.begin(), level.known.end(), key) != level.known.end()) continue;
      std::string at = child_pointer(level.pointer, key);
      auto foreign = level.foreign.find(key);
      if (foreign == level.foreign.end()) {
        std::vector<std::string> guesses = level.known;
        guesses.insert(guesses.end(), level.also.begin(), level.also.end());
        fail(at, "unknown key, got " + json_quote(key) + ", wanted one of " +
                     join_quoted(level.known) + did_you_mean(key, guesses));
      }
      // What a parent set for its own choice goes with that choice.
      if (document_.layer(at) < document_.layer(child_pointer(level.pointer, level.tag))) continue;
      fail(at, "got a key of " + json_quote(level.tag) + " " + json_quote(foreign->second) +
                   ", wanted one of " + json_quote(level.choice) + ": " + join_quoted(level.known));
    }
  }

  void check_bounds(const std::string& at, const Json& json, double value, const Bounds& bounds,
                    const char* kind) const {
    bool low = bounds.above_min ? value <= bounds.min : value < bounds.min;
    if (low || value > bounds.max) {
      std::string limits = describe_bounds(bounds);
      fail(at, "out of range, got " + describe_value(json) + ", wanted " + kind +
                   (limits.starts_with("at ") ? " of " : " ") + limits);
    }
  }
  double read_number(const std::string& at, const Json& json, const Bounds& bounds) const {
    if (!json.is_number()) fail(at, json, "a number");
    double value = json.get<double>();
    check_bounds(at, json, value, bounds, "a number");
    return value;
  }
  int64_t read_integer(const std::string& at, const Json& json, const Bounds& bounds) const {
    if (!json.is_number()) fail(at, json, "a whole number");
    // Above 2^53 a double no longer tells neighbours apart.
    constexpr double kExact = 9007199254740992.0;
    double approximate = json.get<double>();
    if (json.is_number_float() && std::trunc(approximate) != approximate) {
      fail(at, json, "a whole number");
    }
    bool fits = json.is_number_float()
                    ? std::abs(approximate) <= kExact
                    : !json.is_number_unsigned() ||
                          json.get<uint64_t>() <=
                              static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (!fits)
      fail(at, "out of range, got " + describe_value(json) + ", wanted a whole number below 2^63");
    check_bounds(at, json, approximate, bounds, "a whole number");
    return json.is_number_float() ? static_cast<int64_t>(approximate) : json.get<int64_t>();
  }
  std::string read_string(const std::string& at, const Json& json) const {
    if (!json.is_string()) fail(at, json, "a string");
    return json.get<std::string>();
  }
  int read_choice(const std::string& at, const Json& json, Names names) const {
    std::vector<std::string> words(names.begin(), names.end());
    std::string wanted = "one of " + join_quoted(words);
    if (!json.is_string()) fail(at, json, wanted);
    const auto& word = json.get_ref<const std::string&>();
    auto found = std::find(words.begin(), words.end(), word);
    if (found == words.end()) {
      fail(at, "unknown choice, got " + json_quote(word) + ", wanted " + wanted +
                   did_you_mean(word, words));
    }
    return static_cast<int>(found - words.begin());
  }
  template <class Element, class Read>
  void read_list(std::string_view key, std::vector<Element>& value, const std::string& wanted,
                 const Read& read) {
    const Json* found = find(key);
    if (!found) return;
    std::string at = pointer(key);
    if (found->is_object() || found->is_null() || found->is_boolean()) fail(at, *found, wanted);
    std::vector<Element> list;
    if (!found->is_array()) {
      bool words = std::is_same_v<Element, std::string>;
      if (found->is_string() != words) fail(at, *found, wanted);
      list.push_back(read(at, *found));
    } else {
      for (size_t i = 0; i < found->size(); ++i) {
        list.push_back(read(at + "/" + std::to_string(i), (*found)[i]));
      }
    }
    value = std::move(list);
  }

  const JsonDocument& document_;
  std::vector<Level> levels_;
  std::vector<Alternatives> alternatives_;
  std::vector<std::pair<const Json*, std::string>> lists_;  ///< with their pointers
  std::string foreign_choice_;  ///< not empty: the alternative walked is not the selected one
};

}  // namespace

void read_document(const JsonDocument& document, const FieldWalk& walk,
                   const std::vector<std::string>& also) {
  JsonReader reader(document, also);
  walk(reader);
  reader.finish();
}

void read_json(const std::string& text, const std::filesystem::path& where, const FieldWalk& walk) {
  Json json = parse_json(text, where);
  if (!json.is_object()) {
    throw RecipeError(where, "", "wrong type, got " + describe_value(json) + ", wanted an object");
  }
  JsonDocument document;
  document.overlay(json, where, std::filesystem::absolute(where).parent_path());
  read_document(document, walk);
}

}  // namespace convpass
