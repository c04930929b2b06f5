#include "src/cli/trained.h"

#include "convpass/core/error.h"

namespace convpass::cli {
namespace {

namespace fs = std::filesystem;

fs::path find_adapter(const fs::path& given) {
  if (!fs::exists(given))
    throw FileError(given, "no such file, wanted a run folder, an adapter file or a recipe");
  if (!fs::is_directory(given)) return given;
  fs::path adapter = given / "adapter.safetensors";
  if (!fs::exists(adapter)) {
    throw FileError(given, fs::exists(given / "checkpoint.pt")
                               ? "the run has not finished, wanted an adapter.safetensors in it; "
                                 "`convpass train --resume` goes on"
                               : "got a folder without adapter.safetensors, wanted a run folder");
  }
  return adapter;
}

/// What to say when it is unclear where the backbone's weights are.
[[noreturn]] void ask_for_backbone(const fs::path& adapter, const BackboneIdentity& backbone,
                                   const fs::path& looked_for) {
  throw FileError(adapter, (looked_for.empty() ? "it is not known where its backbone is"
                                               : "its backbone is not at " + looked_for.string()) +
                               ", wanted --backbone FILE with the weights of " + backbone.name +
                               " (hash " + backbone.hash.substr(0, 12) + ")");
}

/// A model as its recipe starts it, which is zero-shot classification.
Trained find_untrained(const fs::path& file, const Arguments& arguments) {
  if (arguments.has("--recipe")) throw UsageError("got a recipe and --recipe, wanted one of them");
  Trained trained;
  trained.recipe = load_recipe(file, arguments.values("--set"));
  validate(*trained.recipe, /*needs_data=*/false);
  trained.weights = arguments.value("--backbone").value_or(trained.recipe->backbone.weights);
  return trained;
}

}  // namespace

std::vector<Option> trained_options() {
  return {{"--set", "K=V", "overlays one value of RECIPE", true},
          {"--backbone", "FILE", "the backbone's weights; else where the run's recipe says"},
          {"--precision", "P", "f32, bf16, int8 or auto; else the run's"},
          {"--device", "D", "auto, cpu or cuda"}};
}

Trained find_trained(const fs::path& given, const Arguments& arguments) {
  if (given.extension() == ".json" && fs::is_regular_file(given))
    return find_untrained(given, arguments);
  if (arguments.has("--set"))
    throw UsageError("got --set with " + given.string() +
                     ", wanted a recipe: what is trained has its settings");
  Trained trained;
  trained.adapter = find_adapter(given);
  fs::path beside = trained.adapter.parent_path() / "recipe.json";
  if (std::optional<std::string> file = arguments.value("--recipe")) {
    trained.recipe = load_recipe(*file);
  } else if (fs::exists(beside)) {
    trained.recipe = load_recipe(beside);
  }
  if (std::optional<std::string> weights = arguments.value("--backbone")) {
    trained.weights = *weights;
  } else {
    if (trained.recipe) trained.weights = trained.recipe->backbone.weights;
    if (!fs::exists(trained.weights)) {
      const BackboneIdentity backbone = load_adapter(trained.adapter).backbone;
      if (backbone.format != BackboneIdentity::kRandom)
        ask_for_backbone(trained.adapter, backbone, trained.weights);
    }
  }
  return trained;
}

LoadedModel load_trained(const Trained& trained, const Arguments& arguments,
                         const std::string& option) {
  Precision usual = trained.recipe ? trained.recipe->train.precision : Precision::f32;
  auto precision = static_cast<Precision>(
      arguments.choice(option, {"f32", "bf16", "int8", "auto"}, static_cast<size_t>(usual)));
  auto device = static_cast<DeviceChoice>(arguments.choice("--device", {"auto", "cpu", "cuda"}, 0));
  precision = resolve_precision(precision, device);
  if (!trained.adapter.empty())
    return load_tuned_model(trained.adapter, trained.weights, device, precision);
  Recipe recipe = *trained.recipe;
  recipe.backbone.weights = trained.weights;
  recipe.train.precision = precision;
  recipe.train.device = device;
  return load_untrained_model(recipe);
}

}  // namespace convpass::cli
