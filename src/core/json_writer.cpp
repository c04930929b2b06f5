#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "convpass/core/error.h"
#include "src/core/json_document.h"

namespace convpass {
namespace {

class JsonWriter final : public FieldVisitor {
 public:
  explicit JsonWriter(Json& root) : levels_{&root} {}

  void field(std::string_view key, bool& value, std::string_view) override { put(key, value); }
  void field(std::string_view key, int64_t& value, std::string_view, Bounds) override {
    put(key, value);
  }
  void field(std::string_view key, double& value, std::string_view, Bounds) override {
    put(key, finite(key, value));
  }
  void field(std::string_view key, std::string& value, std::string_view) override {
    put(key, value);
  }
  void field(std::string_view key, std::filesystem::path& value, std::string_view) override {
    put(key, value.string());
  }
  void field(std::string_view key, std::vector<double>& value, std::string_view, Bounds) override {
    for (double element : value) finite(key, element);
    put(key, value);
  }
  void field(std::string_view key, std::vector<int64_t>& value, std::string_view, Bounds) override {
    put(key, value);
  }
  void field(std::string_view key, std::vector<std::string>& value, std::string_view) override {
    put(key, value);
  }
  void list_or_word(std::string_view key, std::vector<int64_t>& value, std::string_view word,
                    std::string_view, Bounds) override {
    if (value.empty()) {
      put(key, word);
    } else {
      put(key, value);
    }
  }

 protected:
  bool reads() const override { return false; }
  void choice_index(std::string_view key, int& index, Names names, std::string_view) override {
    put(key, *(names.begin() + index));
  }
  bool begin_part(std::string_view key, std::string_view) override {
    put(key, Json::object());
    levels_.push_back(&(*levels_.back())[std::string(key)]);
    return true;
  }
  bool begin_optional(std::string_view key, std::string_view help, bool has_value) override {
    return has_value && begin_part(key, help);
  }
  void end_part() override { levels_.pop_back(); }
  std::optional<size_t> begin_list(std::string_view key, std::string_view, size_t size) override {
    put(key, Json::array());
    Json& list = (*levels_.back())[std::string(key)];
    list.get_ref<Json::array_t&>().assign(size, Json::object());
    levels_.push_back(&list);
    return size;
  }
  void begin_element(size_t index) override { levels_.push_back(&(*levels_.back())[index]); }
  void end_list() override { levels_.pop_back(); }
  std::vector<int> select_alternatives(std::string_view key, int current, Names names,
                                       std::string_view) override {
    put(key, *(names.begin() + current));
    return {current};
  }
  void begin_alternative(int) override {}
  void end_alternative() override {}

 private:
  template <class Value>
  void put(std::string_view key, Value&& value) {
    (*levels_.back())[std::string(key)] = std::forward<Value>(value);
  }
  static double finite(std::string_view key, double value) {
    TORCH_CHECK(std::isfinite(value), "the field ", std::string(key), " is not finite");
    return value;
  }

  // Only the innermost object grows, so the ones around it do not move.
  std::vector<Json*> levels_;
};

bool is_plain(const Json& value) { return !value.is_object() && !value.is_array(); }

void print(const Json& value, int indent, int depth, std::string& out) {
  bool flat = is_plain(value) || value.empty() ||
              (value.is_array() && std::all_of(value.begin(), value.end(), is_plain));
  if (flat && value.is_array()) {
    out += '[';
    for (size_t i = 0; i < value.size(); ++i) out += (i ? ", " : "") + value[i].dump();
    out += ']';
    return;
  }
  if (flat) {
    out += value.dump();
    return;
  }
  std::string margin(static_cast<size_t>(indent * (depth + 1)), ' ');
  out += value.is_object() ? "{\n" : "[\n";
  size_t left = value.size();
  for (const auto& [key, child] : value.items()) {
    out += margin;
    if (value.is_object()) out += Json(key).dump() + ": ";
    print(child, indent, depth + 1, out);
    out += --left ? ",\n" : "\n";
  }
  out += std::string(static_cast<size_t>(indent * depth), ' ');
  out += value.is_object() ? '}' : ']';
}

}  // namespace

Json write_document(const FieldWalk& walk) {
  Json root = Json::object();
  JsonWriter writer(root);
  walk(writer);
  return root;
}

std::string pretty_json(const Json& value, int indent) {
  try {
    if (indent < 0) return value.dump();
    std::string text;
    print(value, indent, 0, text);
    return text;
  } catch (const nlohmann::json::type_error& error) {
    throw Error(std::string("cannot be written as JSON, wanted UTF-8: ") + error.what());
  }
}

std::string write_json(const FieldWalk& walk, int indent) {
  return pretty_json(write_document(walk), indent);
}

}  // namespace convpass
