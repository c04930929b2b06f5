#include "convpass/train/suite.h"

#include <algorithm>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "src/core/json_document.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSet = "set";
constexpr const char* kSetHelp =
    "a piece of a recipe that is laid over every run's, such as {\"train\": {\"epochs\": 5}}";

FieldWalk walk_of(SuiteConfig& config) {
  return [&config](FieldVisitor& visitor) { fields(visitor, config); };
}

/// Takes `set` out of the suite's JSON.
RecipeOverlay take_set(Json& json, const fs::path& file) {
  RecipeOverlay overlay{.where = file.string() + " (set)",
                        .folder = fs::absolute(file).parent_path()};
  auto found = json.find(kSet);
  if (found == json.end()) return overlay;
  if (!found->is_object())
    throw RecipeError(
        file, "/set",
        "wrong type, got " + describe_value(*found) + ", wanted an object: " + kSetHelp);
  overlay.json = found->dump();
  json.erase(found);
  return overlay;
}

/// Names are folders, so they are what every file system takes.
bool is_name(const std::string& name) {
  constexpr size_t kLongest = 100;
  return !name.empty() && name.size() <= kLongest && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return c < 0x80 && (std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.');
         });
}

void check(const SuiteConfig& config, const fs::path& file) {
  if (config.runs.empty())
    throw RecipeError(file, "/runs", "got no run, wanted at least one {\"name\", \"recipe\"}");
  std::set<std::string> names;
  for (size_t i = 0; i < config.runs.size(); ++i) {
    const SuiteRun& run = config.runs[i];
    const std::string at = "/runs/" + std::to_string(i);
    if (!is_name(run.name))
      throw RecipeError(file, at + "/name",
                        "got " + json_quote(run.name) +
                            ", wanted the name of a folder: letters, digits, \"_\", \"-\", \".\"");
    for (const char* ours : {"recipe.json", "table.md", "table.csv", "table.json"})
      if (run.name == ours)
        throw RecipeError(file, at + "/name",
                          "got " + json_quote(run.name) +
                              ", the name of a file of ours; wanted "
                              "another");
    if (!names.insert(run.name).second)
      throw RecipeError(file, at + "/name", "got " + json_quote(run.name) + " twice");
    if (run.recipe.empty())
      throw RecipeError(file, at + "/recipe", "missing, wanted the path of a recipe");
  }
  if (config.seeds.empty()) throw RecipeError(file, "/seeds", "got no seed, wanted at least one");
  std::set<int64_t> seeds;
  for (size_t i = 0; i < config.seeds.size(); ++i)
    if (!seeds.insert(config.seeds[i]).second)
      throw RecipeError(file, "/seeds/" + std::to_string(i),
                        "got " + std::to_string(config.seeds[i]) + " twice");
}

/// What a run of a suite needs beyond what any run does.
void check(const Recipe& recipe, const RecipeOverlay& overlay) {
  validate(recipe, /*needs_data=*/true);
  if (!recipe.data.test)
    throw RecipeError(recipe.file, "/data/test", "missing, wanted the images that a suite reports");
  if (recipe.select != SelectRule::last)
    throw RecipeError(recipe.where("/select"), "/select",
                      "got \"best_val\", wanted \"last\": a suite reports the last epoch");
  const fs::path& seeded = recipe.where("/train/seed");
  if (seeded == overlay.where || seeded == "--set")
    throw RecipeError(seeded, "/train/seed", "got a seed, wanted it in the suite's \"seeds\"");
}

}  // namespace

void fields(FieldVisitor& visitor, SuiteImages& images) {
  visitor.field("train", images.train, "of data.train; 0 = not known", at_least(0));
  visitor.field("val", images.val, "of data.val; 0 = not known", at_least(0));
  visitor.field("test", images.test, "of data.test; 0 = not known", at_least(0));
}

void fields(FieldVisitor& visitor, SuiteRun& run) {
  visitor.field("name", run.name, "of the row in the table and of the folder below --out");
  visitor.field("group", run.group, "whose mean the run enters; empty = none");
  visitor.field("recipe", run.recipe, "the recipe that is trained");
  visitor.field("published", run.published,
                "top-1 that the source reports, a fraction, to stand beside ours; 0 = none",
                between(0, 1));
  visitor.part("images", run.images, "how many images the splits have where they are whole");
}

void fields(FieldVisitor& visitor, SuiteConfig& config) {
  visitor.part("about", config.about, "where the published figures come from and what they are");
  visitor.field("seeds", config.seeds, "each run is trained once with each of these as train.seed",
                at_least(0));
  visitor.choice("missing", config.missing, {"stop", "skip"},
                 "what to do about runs whose data is not there: stop before anything is trained, "
                 "or leave them out and say so in the table");
  visitor.parts("runs", config.runs, "the rows of the table");
}

bool is_suite(const fs::path& file) {
  try {
    return read_json_object(file, "a recipe or a suite").contains("runs");
  } catch (const Error&) {
    return false;
  }
}

Suite load_suite(const fs::path& file, const std::vector<std::string>& sets) {
  Json json = read_json_object(file, "a suite");
  json.erase("$schema");
  const RecipeOverlay overlay = take_set(json, file);
  JsonDocument document;
  document.overlay(json, file, fs::absolute(file).parent_path());
  Suite suite{.file = file, .config = {}, .recipes = {}};
  read_document(document, walk_of(suite.config), {kSet, "$schema"});
  check(suite.config, file);
  for (const SuiteRun& run : suite.config.runs) {
    suite.recipes.push_back(load_recipe(run.recipe, overlay, sets));
    check(suite.recipes.back(), overlay);
  }
  return suite;
}

std::string suite_help() {
  SuiteConfig config;
  return "A suite is a JSON object of these parts; // comments are allowed.\n\n" +
         fields_help(walk_of(config)) + "\n" + fields_help(walk_of(config), "runs") +
         "\nIn a suite file also:\n  set       " + kSetHelp +
         "\n  $schema   for editors; ignored\n"
         "Relative paths start at the folder of the suite.\n";
}

std::string suite_schema() {
  SuiteConfig config;
  Json own = fields_schema(walk_of(config));
  own["properties"]["$schema"] = {{"description", "this schema, for editors"}, {"type", "string"}};
  own["properties"][kSet] = {{"description", kSetHelp}, {"$ref", "schema.json"}};
  own["required"] = {"runs"};
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "convpass suite"}};
  schema.update(own);
  return pretty_json(schema, 2) + "\n";
}

}  // namespace convpass
