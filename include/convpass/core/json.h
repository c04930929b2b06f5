#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "convpass/core/fields.h"

namespace convpass {

/// One walk over the fields of whatever is read or written: `[&](FieldVisitor& v) { fields(v, x);
/// }`.
using FieldWalk = std::function<void(FieldVisitor&)>;

/// Reads JSON text into the fields of a walk. `//` and `/* */` comments are allowed; keys that no
/// field names, keys that stand twice, values of a wrong type or out of bounds, nesting deeper than
/// 32 and ill-formed UTF-8 are errors. A single value is taken as a list of one. null stands for an
/// absent optional part and for nothing else. Relative paths start at the folder of `where`.
/// Errors: RecipeError with `where`, the JSON pointer, what, got and wanted.
void read_json(const std::string& text, const std::filesystem::path& where, const FieldWalk& walk);

/// Every field with its value in the order of declaration; reading it gives the same struct.
/// `indent` in spaces, lists of plain values on one line; negative: all on one line. Errors: Error
/// for a path that is not UTF-8.
std::string write_json(const FieldWalk& walk, int indent = -1);

/// A table of keys, types, defaults and meanings of the object at `part` ("data.train"; "" = the
/// root): what `convpass help recipe PART` prints. Errors: UsageError for a part that does not
/// exist.
std::string fields_help(const FieldWalk& walk, const std::string& part = "");

template <class Config>
void read_json_fields(const std::string& text, Config& config, const std::filesystem::path& where) {
  read_json(text, where, [&](FieldVisitor& visitor) { fields(visitor, config); });
}

template <class Config>
std::string write_json_fields(Config config, int indent = -1) {
  return write_json([&](FieldVisitor& visitor) { fields(visitor, config); }, indent);
}

/// The known name that `name` was most likely meant to be (edit distance, a swap counts as one), or
/// "" when none is near.
std::string nearest_name(std::string_view name, const std::vector<std::string>& known);

/// ` (did you mean "width"?)`, or "" when nothing is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& known);

/// `text` as a JSON string with its quotes: one line, cut after `limit` bytes.
std::string json_quote(std::string_view text, size_t limit = 80);

}  // namespace convpass
