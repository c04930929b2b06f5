#include "convpass/train/recipe.h"

#include <c10/util/hash.h>

#include <algorithm>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "src/core/json_document.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxParents = 16;

FieldWalk walk_of(Recipe& recipe) {
  return [&recipe](FieldVisitor& visitor) { fields(visitor, recipe); };
}

std::string join(const std::vector<fs::path>& chain, const fs::path& last) {
  std::string text;
  for (const fs::path& file : chain) text += file.string() + " -> ";
  return text + last.string();
}

/// The recipe `file` names in "extends", or an empty path.
fs::path take_parent(Json& json, const fs::path& file) {
  json.erase("$schema");
  auto found = json.find("extends");
  if (found == json.end()) return {};
  if (!found->is_string() || found->get_ref<const std::string&>().empty()) {
    throw RecipeError(
        file, "/extends",
        "wrong type, got " + describe_value(*found) + ", wanted the path of one recipe");
  }
  fs::path parent = (file.parent_path() / found->get<std::string>()).lexically_normal();
  json.erase(found);
  if (!fs::is_regular_file(parent)) {
    throw RecipeError(file, "/extends",
                      std::string(fs::exists(parent) ? "not a file" : "no such file") + ", got " +
                          json_quote(parent.string(), 400) + ", wanted a recipe");
  }
  return parent;
}

/// Lays `file` over its parents. `children`: the files that have led here.
void overlay_file(JsonDocument& document, const fs::path& file, std::vector<fs::path>& children) {
  for (const fs::path& child : children) {
    if (fs::equivalent(child, file)) {
      throw RecipeError(children.back(), "/extends",
                        "a recipe cannot extend itself, got " + join(children, file));
    }
  }
  if (children.size() >= kMaxParents) {
    throw RecipeError(children.back(), "/extends",
                      "too many parents, wanted at most " + std::to_string(kMaxParents));
  }
  Json json = read_json_object(file, "a recipe");
  fs::path parent = take_parent(json, file);
  if (!parent.empty()) {
    children.push_back(file);
    overlay_file(document, parent, children);
  }
  document.overlay(json, file, fs::absolute(file).parent_path());
}

/// JSON, or a bare word as a string; what starts like a list, an object or a string has to be one.
Json parse_value(const std::string& text, const std::string& set) {
  try {
    return parse_json(text, "--set");
  } catch (const RecipeError& error) {
    if (text.empty() || std::string_view("[{\"").find(text[0]) == std::string_view::npos)
      return text;
    throw UsageError("--set " + json_quote(set) + ": value is " +
                     std::string(error.what()).substr(std::string_view("--set: /: ").size()));
  }
}

void overlay_set(JsonDocument& document, const std::string& set) {
  size_t equals = set.find('=');
  std::string path = set.substr(0, equals);
  if (equals == std::string::npos || path.empty() || path.front() == '.' || path.back() == '.' ||
      path.find("..") != std::string::npos) {
    throw UsageError("--set: got " + json_quote(set) +
                     ", wanted KEY=VALUE with a key like train.epochs");
  }
  Json patch = parse_value(set.substr(equals + 1), set);
  for (size_t end = path.size(); end != std::string::npos;) {
    size_t dot = path.rfind('.', end - 1);
    size_t begin = dot == std::string::npos ? 0 : dot + 1;
    Json around = Json::object();
    around[path.substr(begin, end - begin)] = std::move(patch);
    patch = std::move(around);
    end = dot;
  }
  document.overlay(patch, "--set", fs::current_path());
}

/// The pointers of all plain values and lists; a null gives nothing.
void collect_given(const JsonDocument& document, const Json& value, const std::string& pointer,
                   Recipe& recipe) {
  if (!value.is_object()) {
    if (!value.is_null()) recipe.given.emplace(pointer, document.where(pointer));
    return;
  }
  for (const auto& [key, child] : value.items()) {
    collect_given(document, child, child_pointer(pointer, key), recipe);
  }
}

/// So that a run's recipe.json says in what it computed.
void resolve_precisions(Recipe& recipe) {
  const DeviceChoice device = recipe.train.device;
  recipe.train.precision = resolve_precision(recipe.train.precision, device);
  for (TeacherConfig& teacher : recipe.distill.teachers)
    teacher.precision = resolve_precision(teacher.precision, device);
}

Recipe read_recipe(JsonDocument& document, const std::vector<std::string>& sets,
                   const fs::path& file) {
  for (const std::string& set : sets) overlay_set(document, set);
  Recipe recipe;
  read_document(document, walk_of(recipe), {"extends", "$schema"});
  recipe.file = file;
  collect_given(document, document.root(), "", recipe);
  resolve_view(recipe);
  resolve_precisions(recipe);
  return recipe;
}

}  // namespace

const fs::path& Recipe::where(std::string pointer) const {
  for (; !pointer.empty(); pointer.erase(pointer.rfind('/')))
    if (auto found = given.find(pointer); found != given.end()) return found->second;
  return file;
}

Recipe load_recipe(const fs::path& file, const std::vector<std::string>& sets) {
  return load_recipe(file, RecipeOverlay{}, sets);
}

Recipe load_recipe(const fs::path& file, const RecipeOverlay& overlay,
                   const std::vector<std::string>& sets) {
  JsonDocument document;
  std::vector<fs::path> children;
  overlay_file(document, file, children);
  document.overlay(parse_json(overlay.json, overlay.where), overlay.where, overlay.folder);
  return read_recipe(document, sets, file);
}

Recipe recipe_from_sets(const std::vector<std::string>& sets) {
  JsonDocument document;
  document.overlay(Json::object(), "defaults", fs::current_path());
  return read_recipe(document, sets, "--set");
}

std::string recipe_json(const Recipe& recipe) {
  Recipe copy = recipe;
  return write_json(walk_of(copy), 2) + "\n";
}

std::string recipe_hash(const Recipe& recipe) {
  Recipe copy = recipe;
  Json json = write_document(walk_of(copy));
  json.erase("about");
  json["train"].erase("device");
  json["train"].erase("workers");
  json["data"].erase("cache_mb");
  json["data"].erase("cache_disk_mb");
  json["data"].erase("root");  // the paths that it led to are there
  json["distill"]["store"].erase("file");
  return c10::sha1(pretty_json(json, -1)).str().substr(0, 16);
}

std::string recipe_help(const std::string& part) {
  Recipe recipe;
  std::string text = fields_help(walk_of(recipe), part);
  if (!part.empty()) return text;
  return "A recipe is a JSON object of these parts; // comments are allowed. `convpass help recipe "
         "PART` "
         "lists the keys of a part.\n\n" +
         text +
         "\nIn a recipe file also:\n"
         "  extends   path of one recipe that this one overlays (JSON merge patch)\n"
         "  $schema   for editors; ignored\n"
         "Relative paths start at the folder of the recipe that names them, from --set at the "
         "working "
         "directory.\n";
}

std::string recipe_schema() {
  Recipe recipe;
  Json own = fields_schema(walk_of(recipe));
  Json properties = {
      {"$schema", {{"description", "this schema, for editors"}, {"type", "string"}}},
      {"extends",
       {{"description", "path of one recipe that this one overlays (JSON merge patch)"},
        {"type", "string"},
        {"minLength", 1}}}};
  properties.update(own["properties"]);
  own["properties"] = properties;
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "convpass recipe"}};
  schema.update(own);
  return pretty_json(schema, 2) + "\n";
}

}  // namespace convpass
