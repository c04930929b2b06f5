#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace convpass {

/// Inclusive bounds of a number.
struct Bounds {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;  ///< min itself is not allowed
};
inline Bounds at_least(double min) { return {.min = min}; }
inline Bounds above(double min) { return {.min = min, .above_min = true}; }
inline Bounds between(double min, double max) { return {.min = min, .max = max}; }

/// One walk over the fields of a config struct.
///
/// Beside each config struct stands one function `void fields(FieldVisitor&, Config&)`, the only
/// place that names its fields. Four visitors walk it: the JSON reader, the JSON writer (resolved
/// recipe), the help text and the JSON Schema writer. The value that a member has before the walk
/// is its default.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  using Names = std::initializer_list<std::string_view>;

  // A scalar or a list: key, member, what it means (with its unit), bounds (of each element).
  virtual void field(std::string_view key, bool& value, std::string_view help) = 0;
  virtual void field(std::string_view key, int64_t& value, std::string_view help,
                     Bounds bounds = {}) = 0;
  virtual void field(std::string_view key, double& value, std::string_view help,
                     Bounds bounds = {}) = 0;
  virtual void field(std::string_view key, std::string& value, std::string_view help) = 0;
  /// A path in a recipe is relative to the recipe that names it; after reading it is absolute.
  /// An empty path is written as "".
  virtual void field(std::string_view key, std::filesystem::path& value, std::string_view help) = 0;
  /// A folder at which the relative paths of this object's later fields start, and of the objects
  /// within it; empty: they start where they would without it.
  void paths_root(std::string_view key, std::filesystem::path& value, std::string_view help) {
    field(key, value, help);
    start_paths_at(value);
  }
  virtual void field(std::string_view key, std::vector<double>& value, std::string_view help,
                     Bounds bounds = {}) = 0;
  virtual void field(std::string_view key, std::vector<int64_t>& value, std::string_view help,
                     Bounds bounds = {}) = 0;
  virtual void field(std::string_view key, std::vector<std::string>& value,
                     std::string_view help) = 0;

  /// A list of whole numbers or the word that stands for an empty one ("all", "auto", ...).
  virtual void list_or_word(std::string_view key, std::vector<int64_t>& value,
                            std::string_view word, std::string_view help, Bounds bounds = {}) = 0;

  /// One of `names`, which stand in the order of the enumerators (0, 1, 2, ...).
  template <class Enum>
  void choice(std::string_view key, Enum& value, Names names, std::string_view help) {
    int index = static_cast<int>(value);
    choice_index(key, index, names, help);
    value = static_cast<Enum>(index);
  }

  /// A nested object. Absent in the JSON means all defaults.
  template <class Config>
  void part(std::string_view key, Config& config, std::string_view help) {
    if (begin_part(key, help)) {
      fields(*this, config);
      end_part();
    }
  }

  /// A nested object that may be absent (or null), which is not the same as all defaults.
  template <class Config>
  void optional_part(std::string_view key, std::optional<Config>& config, std::string_view help) {
    if (!begin_optional(key, help, config.has_value())) {
      if (reads()) config.reset();
      return;
    }
    Config value = config.value_or(Config{});
    fields(*this, value);
    if (reads()) config = std::move(value);
    end_part();
  }

  /// A list of objects; one object stands for a list of one. A list given anew replaces the old
  /// one.
  template <class Config>
  void parts(std::string_view key, std::vector<Config>& list, std::string_view help) {
    std::optional<size_t> count = begin_list(key, help, list.size());
    if (!count) return;
    std::vector<Config> values = reads() ? std::vector<Config>{} : list;
    values.resize(*count);
    for (size_t i = 0; i < *count; ++i) {
      begin_element(i);
      fields(*this, values[i]);
      end_part();
    }
    end_list();
    if (reads()) list = std::move(values);
  }

  /// A closed choice: the word under `key` (in the current object) selects the alternative, whose
  /// own fields stand in the same object. `names` in the order of the alternatives.
  template <class... Configs>
  void variant(std::string_view key, std::variant<Configs...>& config, Names names,
               std::string_view help) {
    visit_alternatives(key, config, names, help, std::index_sequence_for<Configs...>{});
  }

 protected:
  /// True when the walk assigns to the members (the JSON reader).
  virtual bool reads() const = 0;
  virtual void choice_index(std::string_view key, int& index, Names names,
                            std::string_view help) = 0;
  virtual bool begin_part(std::string_view key, std::string_view help) = 0;
  virtual bool begin_optional(std::string_view key, std::string_view help, bool has_value) = 0;
  virtual void end_part() = 0;
  /// How many elements to walk: those that are there, or one that stands for all (help, schema);
  /// nothing when the key is absent. Each element ends with end_part().
  virtual std::optional<size_t> begin_list(std::string_view key, std::string_view help,
                                           size_t size) = 0;
  virtual void begin_element(size_t index) = 0;
  virtual void end_list() = 0;
  /// Says which alternatives to walk: the selected one, or all of them (help, schema).
  virtual std::vector<int> select_alternatives(std::string_view key, int current, Names names,
                                               std::string_view help) = 0;
  virtual void begin_alternative(int index) = 0;
  virtual void end_alternative() = 0;
  virtual void start_paths_at(const std::filesystem::path&) {}

 private:
  template <class Variant, size_t... I>
  void visit_alternatives(std::string_view key, Variant& config, Names names, std::string_view help,
                          std::index_sequence<I...>) {
    for (int index : select_alternatives(key, static_cast<int>(config.index()), names, help)) {
      begin_alternative(index);
      auto visit = [&]<size_t K>(std::integral_constant<size_t, K>) {
        std::variant_alternative_t<K, Variant> value{};
        if (auto* held = std::get_if<K>(&config)) value = *held;
        fields(*this, value);
        if (reads()) config = std::move(value);
      };
      ((static_cast<int>(I) == index ? visit(std::integral_constant<size_t, I>{}) : void()), ...);
      end_alternative();
    }
  }
};

}  // namespace convpass
