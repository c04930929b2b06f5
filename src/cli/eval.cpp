#include <array>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/evaluate.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"
#include "src/cli/trained.h"
#include "src/train/splits.h"

namespace convpass::cli {
namespace {

namespace fs = std::filesystem;

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

/// Images to evaluate on: those of --data, or a split of the recipe.
struct Chosen {
  DatasetConfig config;  ///< whose folders, if it has such, name the classes
  std::optional<Split> split{};
};

Chosen chosen_images(const Trained& trained, const Arguments& arguments) {
  if (std::optional<std::string> path = arguments.value("--data")) {
    if (arguments.has("--split"))
      throw UsageError("eval: got --data and --split, wanted one of them");
    return {source_at(*path)};
  }
  if (!trained.recipe) {
    throw UsageError("eval: no recipe.json beside " + trained.adapter.string() +
                     ", wanted --data PATH or --recipe FILE");
  }
  const DataConfig& data = trained.recipe->data;
  const std::vector<std::string> names{"test", "val", "train"};
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
  return {held_out && data.train ? *data.train : **parts[split],
          std::array{Split::test, Split::val, Split::train}[split]};
}

/// A folder numbers its classes by their sorted names; with other names the numbers mean other
/// things.
void check_names(const DatasetConfig& config, const Dataset& dataset,
                 const std::vector<std::string>& classes) {
  const auto* folder = std::get_if<FolderSource>(&config.source);
  if (!folder || dataset.classes() == classes) return;
  auto lacks = [](const std::vector<std::string>& all, const std::vector<std::string>& in) {
    for (const std::string& name : all) {
      if (std::find(in.begin(), in.end(), name) == in.end()) return name;
    }
    return std::string();
  };
  std::string missing = lacks(classes, dataset.classes()),
              extra = lacks(dataset.classes(), classes);
  throw FileError(folder->path, "its classes are not the adapter's, got " +
                                    std::to_string(dataset.classes().size()) +
                                    (extra.empty() ? "" : " with " + json_quote(extra)) +
                                    ", wanted " + std::to_string(classes.size()) +
                                    (missing.empty() ? "" : " with " + json_quote(missing)));
}

int run_eval(const Arguments& arguments) {
  Trained trained = find_trained(arguments.positional()[0], arguments);
  const Chosen chosen = chosen_images(trained, arguments);
  LoadedModel loaded = load_trained(trained, arguments);
  Recipe recipe = trained.recipe.value_or(Recipe{});
  recipe.input = loaded.input;
  if (arguments.has("--data")) recipe.data.class_names.clear();
  int workers = worker_count(recipe.train);
  const auto classes = static_cast<int64_t>(loaded.classes.size());
  std::unique_ptr<Dataset> dataset = chosen.split
                                         ? open_checked(recipe, *chosen.split, classes)
                                         : open_checked(recipe, chosen.config, classes, "data");
  check_names(chosen.config, *dataset, loaded.classes);
  ImagePipeline pipeline(loaded.input, AugmentConfig{});
  auto measured = [&](const std::string& what) {
    return evaluate(loaded.model, *dataset, pipeline,
                    {.batch_size = recipe.train.batch_size, .workers = workers, .what = what});
  };
  const Metrics metrics = measured("evaluating");
  if (!arguments.has("--reference")) {
    print_line(metrics_json(metrics));
    return 0;
  }
  loaded = LoadedModel{};  // one model at a time
  loaded = load_trained(trained, arguments, "--reference");
  const Metrics reference = measured("reference");
  auto json = nlohmann::ordered_json::parse(metrics_json(metrics));
  json["reference"] = {{"precision", *arguments.value("--reference")},
                       {"top1", reference.top1},
                       {"top5", reference.top5},
                       {"loss", reference.loss}};
  json["top1_minus_reference"] = metrics.top1 - reference.top1;
  json["loss_minus_reference"] = metrics.loss - reference.loss;
  print_line(json.dump());
  return 0;
}

}  // namespace

const Command& eval_command() {
  static const Command command = [] {
    Command c{.name = "eval",
              .synopsis = "RUN|ADAPTER [--data PATH | --recipe R] [--backbone FILE]",
              .summary = "Evaluates a trained adapter on labelled images.",
              .details =
                  "Prints {\"images\",\"top1\",\"top5\",\"loss\",\"per_class\"}; accuracies are "
                  "fractions.\nWithout --data the images are the run's own test split.",
              .options = {{"--data", "PATH",
                           "a folder with one folder a class, or a list of `path label` lines"},
                          {"--recipe", "FILE", "a recipe that names the data and the backbone"},
                          {"--split", "NAME", "test (default), val or train of the recipe"},
                          {"--reference", "P",
                           "also in this precision: {\"reference\",\"top1_minus_reference\",...}"}},
              .min_positional = 1,
              .max_positional = 1,
              .run = run_eval};
    for (const Option& option : trained_options()) c.options.push_back(option);
    return c;
  }();
  return command;
}

}  // namespace convpass::cli
