#include <c10/util/Exception.h>

#include <set>

#include "src/core/json_document.h"

namespace convpass {
namespace {

/// Builds a schema per object. A variant becomes one branch for each choice that is written down,
/// and one for objects without it: those overlay a parent's choice or take the default.
class SchemaWriter final : public FieldVisitor {
 public:
  SchemaWriter() { levels_.emplace_back(); }
  Json finish() { return close(levels_.back()); }

  void field(std::string_view key, bool& value, std::string_view help) override {
    add(key, {{"type", "boolean"}}, help, value);
  }
  void field(std::string_view key, int64_t& value, std::string_view help, Bounds bounds) override {
    add(key, number("integer", bounds), help, value);
  }
  void field(std::string_view key, double& value, std::string_view help, Bounds bounds) override {
    add(key, number("number", bounds), help, value);
  }
  void field(std::string_view key, std::string& value, std::string_view help) override {
    add(key, {{"type", "string"}}, help, value);
  }
  void field(std::string_view key, std::filesystem::path& value, std::string_view help) override {
    add(key, {{"type", "string"}}, help, value.string());
  }
  void field(std::string_view key, std::vector<double>& value, std::string_view help,
             Bounds bounds) override {
    add(key, list(number("number", bounds)), help, value);
  }
  void field(std::string_view key, std::vector<int64_t>& value, std::string_view help,
             Bounds bounds) override {
    add(key, list(number("integer", bounds)), help, value);
  }
  void field(std::string_view key, std::vector<std::string>& value,
             std::string_view help) override {
    add(key, list({{"type", "string"}}), help, value);
  }
  void list_or_word(std::string_view key, std::vector<int64_t>& value, std::string_view word,
                    std::string_view help, Bounds bounds) override {
    Json schema = list(number("integer", bounds));
    schema["anyOf"][1]["minItems"] = 1;
    schema["anyOf"].push_back({{"const", word}});
    add(key, schema, help, value.empty() ? Json(word) : Json(value));
  }

 protected:
  bool reads() const override { return false; }
  void choice_index(std::string_view key, int& index, Names names, std::string_view help) override {
    add(key, words(names), help, *(names.begin() + index));
  }
  bool begin_part(std::string_view key, std::string_view help) override {
    levels_.push_back({.key = std::string(key), .help = std::string(help)});
    return true;
  }
  bool begin_optional(std::string_view key, std::string_view help, bool) override {
    begin_part(key, help);
    levels_.back().optional = true;
    return true;
  }
  void end_part() override {
    Level level = std::move(levels_.back());
    levels_.pop_back();
    Json schema = close(level);
    if (level.list) schema = list(schema);
    if (level.optional) schema = {{"anyOf", {schema, {{"type", "null"}}}}};
    Json described = {{"description", level.help}};
    described.update(schema);
    put(level.key, described);
  }
  std::optional<size_t> begin_list(std::string_view key, std::string_view help, size_t) override {
    begin_part(key, help);
    levels_.back().list = true;
    return 1;
  }
  void begin_element(size_t) override {}
  void end_list() override {}
  std::vector<int> select_alternatives(std::string_view key, int current, Names names,
                                       std::string_view help) override {
    Level& level = levels_.back();
    TORCH_CHECK(level.tag.empty() && level.branch < 0, "one variant an object");
    level.tag = key;
    level.tag_help = help;
    level.tag_default = *(names.begin() + current);
    level.tag_words = words(names);
    std::vector<int> all;
    for (std::string_view name : names) {
      level.branches.push_back({std::string(name), Json::object()});
      all.push_back(static_cast<int>(all.size()));
    }
    return all;
  }
  void begin_alternative(int index) override { levels_.back().branch = index; }
  void end_alternative() override { levels_.back().branch = -1; }

 private:
  struct Branch {
    std::string choice;
    Json properties;
  };
  struct Level {
    std::string key{}, help{};
    bool optional = false, list = false;
    Json properties = Json::object();
    std::string tag{}, tag_help{}, tag_default{};
    Json tag_words{};
    std::vector<Branch> branches{};
    int branch = -1;  ///< the alternative being walked
  };

  static Json number(const char* type, const Bounds& bounds) {
    Json schema = {{"type", type}};
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (bounds.min > -kInfinity) {
      schema[bounds.above_min ? "exclusiveMinimum" : "minimum"] =
          Json::parse(number_text(bounds.min));
    }
    if (bounds.max < kInfinity) schema["maximum"] = Json::parse(number_text(bounds.max));
    return schema;
  }
  static Json list(const Json& element) {
    return {{"anyOf", Json::array({element, {{"type", "array"}, {"items", element}}})}};
  }
  static Json words(Names names) {
    return {{"enum", std::vector<std::string>(names.begin(), names.end())}};
  }

  void add(std::string_view key, const Json& type, std::string_view help, const Json& value) {
    Json schema = {{"description", help}};
    schema.update(type);
    schema["default"] = value;
    put(std::string(key), schema);
  }
  void put(const std::string& key, const Json& schema) {
    Level& level = levels_.back();
    Json& properties = level.branch < 0
                           ? level.properties
                           : level.branches[static_cast<size_t>(level.branch)].properties;
    properties[key] = schema;
  }

  static Json object(const Json& properties) {
    return {{"type", "object"}, {"properties", properties}, {"additionalProperties", false}};
  }
  static Json close(const Level& level) {
    if (level.tag.empty()) return object(level.properties);
    Json branches = Json::array();
    Json any = Json::object();
    for (const Branch& branch : level.branches) {
      Json properties = {{level.tag, {{"description", level.tag_help}, {"const", branch.choice}}}};
      properties.update(branch.properties);
      properties.update(level.properties);
      Json schema = object(properties);
      schema["required"] = Json::array({level.tag});
      branches.push_back(schema);
      for (const auto& [key, value] : branch.properties.items()) add_to_any(any, key, value);
    }
    any.update(level.properties);
    Json untagged = object(any);
    untagged["description"] =
        level.tag + " as in the recipe that this extends; else " + json_quote(level.tag_default);
    branches.push_back(untagged);
    return {{"oneOf", branches}};
  }
  /// A key of several choices may be what any of them says.
  static void add_to_any(Json& any, const std::string& key, const Json& schema) {
    if (!any.contains(key)) {
      any[key] = schema;
    } else if (any[key] != schema) {
      any[key] = {{"anyOf", {any[key], schema}}};
    }
  }

  std::vector<Level> levels_;
};

}  // namespace

Json fields_schema(const FieldWalk& walk) {
  SchemaWriter writer;
  walk(writer);
  return writer.finish();
}

}  // namespace convpass
