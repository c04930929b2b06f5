#include "src/cli/test_sets.h"

#include <algorithm>
#include <array>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "src/train/build_head.h"
#include "src/train/splits.h"

namespace convpass::cli {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

/// A folder with one folder a class, or a text file of `path label` lines.
DatasetConfig source_at(const fs::path& path) {
  DatasetConfig config;
  if (!fs::exists(path)) throw FileError(path, "no such file, wanted a folder of images or a list");
  if (fs::is_directory(path)) {
    config.source = FolderSource{fs::absolute(path)};
  } else {
    config.source = ListSource{.path = fs::absolute(path), .root = {}};
  }
  return config;
}

/// A split of the recipe, and the source whose folders, if it has such, name the classes.
struct Chosen {
  Split split;
  DatasetConfig config;
};

Chosen chosen_split(const Trained& trained, const Arguments& arguments) {
  if (!trained.recipe) {
    throw UsageError("eval: no recipe.json beside " + trained.adapter.string() +
                     ", wanted --data PATH, --on NAME=PATH or --recipe FILE");
  }
  const DataConfig& data = trained.recipe->data;
  const Names names{"test", "val", "train"};
  size_t split = arguments.choice("--split", names, 0);
  const std::optional<DatasetConfig>* parts[] = {&data.test, &data.val, &data.train};
  if (split == 1 && data.train_on_val)
    throw RecipeError(trained.recipe->file, "/data/train_on_val",
                      "got --split val of a run that trained on it, wanted another split");
  if (!*parts[split]) {
    throw RecipeError(trained.recipe->file, "/data/" + names[split],
                      std::string("missing, wanted the images to evaluate on, or ") +
                          (split == 0 && data.val ? "--split val, or " : "") + "--data PATH");
  }
  const bool held_out = std::holds_alternative<HeldOutSource>((*parts[split])->source);
  return {std::array{Split::test, Split::val, Split::train}[split],
          held_out && data.train ? *data.train : **parts[split]};
}

/// With other names, or the same in another order, the numbers mean other things. A folder has to
/// have all of the model's: it numbers its classes by their sorted names.
void check_names(const DatasetConfig& config, const Dataset& dataset, const Names& classes) {
  if (dataset.classes() == classes) return;
  const auto* folder = std::get_if<FolderSource>(&config.source);
  const std::string difference = class_difference(dataset.classes(), classes, "the model");
  if (!folder) {
    if (!difference.empty()) throw Error("data: " + difference);
    return;
  }
  auto lacks = [](const Names& all, const Names& in) {
    for (const std::string& name : all) {
      if (std::find(in.begin(), in.end(), name) == in.end()) return name;
    }
    return std::string();
  };
  std::string missing = lacks(classes, dataset.classes()),
              extra = lacks(dataset.classes(), classes);
  if (missing.empty() && extra.empty())
    throw FileError(folder->path, difference.empty() ? "its classes stand in another order than "
                                                       "the model's"
                                                     : difference);
  throw FileError(folder->path, "its classes are not the model's, got " +
                                    std::to_string(dataset.classes().size()) +
                                    (extra.empty() ? "" : " with " + json_quote(extra)) +
                                    ", wanted " + std::to_string(classes.size()) +
                                    (missing.empty() ? "" : " with " + json_quote(missing)));
}

/// The model's class for each folder.
std::vector<int64_t> places_of(const FolderSource& folder, const Names& some,
                               const Names& classes) {
  std::vector<int64_t> places;
  for (const std::string& name : some) {
    const auto found = std::find(classes.begin(), classes.end(), name);
    if (found == classes.end())
      throw FileError(folder.path,
                      "got the class " + json_quote(name) + ", which is none of the model's " +
                          std::to_string(classes.size()) + did_you_mean(name, classes));
    places.push_back(found - classes.begin());
  }
  return places;
}

/// The name and the path of "v2=images/v2".
std::pair<std::string, fs::path> named_path(const std::string& given) {
  const size_t equals = given.find('=');
  if (equals == 0 || equals == std::string::npos || equals + 1 == given.size())
    throw UsageError("eval: --on: got " + json_quote(given) + ", wanted NAME=PATH");
  return {given.substr(0, equals), given.substr(equals + 1)};
}

}  // namespace

std::vector<Option> test_set_options() {
  return {{"--data", "PATH", "a folder with one folder a class, or a list of `path label` lines"},
          {"--on", "NAME=PATH",
           "another test set, as often as wanted: one line each, {\"set\",\"classes\",\"images\","
           "...}; of folders, those classes alone are answers",
           true},
          {"--split", "NAME", "test (default), val or train of the recipe"}};
}

std::vector<TestSet> open_test_sets(const Trained& trained, const Arguments& arguments,
                                    const LoadedModel& model) {
  const std::vector<std::string> on = arguments.values("--on");
  if (arguments.has("--data") + arguments.has("--split") + !on.empty() > 1)
    throw UsageError("eval: got two of --data, --split and --on, wanted one of them");
  Recipe recipe = trained.recipe.value_or(Recipe{});
  recipe.input = model.input;
  const auto classes = std::ssize(model.classes);
  std::vector<TestSet> sets;
  if (on.empty()) {
    TestSet set;
    DatasetConfig config;
    if (const std::optional<std::string> data = arguments.value("--data")) {
      recipe.data.class_names.clear();
      config = source_at(*data);
      set.dataset = open_labelled(recipe, config, classes, "data");
    } else {
      const Chosen chosen = chosen_split(trained, arguments);
      config = chosen.config;
      set.dataset = open_labelled(recipe, chosen.split, classes);
    }
    check_names(config, *set.dataset, model.classes);
    sets.push_back(std::move(set));
  }
  recipe.data.class_names.clear();
  for (const std::string& given : on) {
    const auto [name, path] = named_path(given);
    for (const TestSet& other : sets)
      if (other.name == name)
        throw UsageError("eval: --on: got the name " + json_quote(name) +
                         " twice, wanted another for each set");
    const DatasetConfig config = source_at(path);
    TestSet set{.name = name, .dataset = open_labelled(recipe, config, classes, name), .among = {}};
    if (const auto* folder = std::get_if<FolderSource>(&config.source))
      set.among = places_of(*folder, set.dataset->classes(), model.classes);
    sets.push_back(std::move(set));
  }
  for (const TestSet& set : sets)
    check_images(*set.dataset, recipe, set.name.empty() ? "data" : set.name);
  return sets;
}

}  // namespace convpass::cli
