#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "convpass/core/json.h"

namespace convpass {

using Json = nlohmann::ordered_json;

/// Strict parse: one value, comments allowed, no key twice in one object, nesting of at most 32.
/// Errors: RecipeError with line and column, or with the JSON pointer.
Json parse_json(const std::string& text, const std::filesystem::path& where);

/// The object in a file of at most 4 MiB; `what` it is, for messages ("a recipe"). Errors:
/// RecipeError, FileError.
Json read_json_object(const std::filesystem::path& file, const std::string& what);

/// What a value is, for messages: `"8"`, `8.5`, `null`, `a list of 3`, `an object`.
std::string describe_value(const Json& value);

/// `pointer` with one more key, escaped as RFC 6901 says and kept to one line.
std::string child_pointer(const std::string& pointer, std::string_view key);

/// "at least 1", "above 0 and at most 1", "" without bounds.
std::string describe_bounds(const Bounds& bounds);
/// 1, 0.5, 1e-08: as short as reads back the same.
std::string number_text(double value);

/// JSON objects laid over one another (RFC 7396, JSON merge patch), remembering which layer each
/// value came from: messages name it and relative paths start at its folder.
///
/// A null of an upper layer stays in the document as a mark: it undoes what lies below, and the
/// reader can still refuse it when no such key exists.
class JsonDocument {
 public:
  /// `where` names the layer in messages; relative paths in it start at `folder`.
  void overlay(const Json& patch, const std::filesystem::path& where,
               const std::filesystem::path& folder);

  const Json& root() const { return root_; }
  /// 0 for the lowest.
  size_t layer(const std::string& pointer) const;
  const std::filesystem::path& where(const std::string& pointer) const {
    return layers_.at(layer(pointer)).where;
  }
  const std::filesystem::path& folder(const std::string& pointer) const {
    return layers_.at(layer(pointer)).folder;
  }

 private:
  struct Layer {
    std::filesystem::path where, folder;
  };
  void merge(Json& target, const Json& patch, const std::string& pointer);
  void claim(const std::string& pointer);

  Json root_ = Json::object();
  std::vector<Layer> layers_;
  std::map<std::string, size_t>
      origins_;  ///< pointer of a subtree -> its layer; the longest prefix counts
};

/// Reads the fields of a walk from the document. `also`: keys of the root that the caller has
/// already taken out, as further guesses for an unknown key. Errors: RecipeError.
void read_document(const JsonDocument& document, const FieldWalk& walk,
                   const std::vector<std::string>& also = {});

/// What write_json writes, as a value.
Json write_document(const FieldWalk& walk);
/// Lists of plain values on one line, everything else indented by `indent`.
std::string pretty_json(const Json& value, int indent);

/// JSON Schema (draft 2020-12) of an object with the fields of the walk; no "$schema" in it.
Json fields_schema(const FieldWalk& walk);

}  // namespace convpass
