#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "convpass/train/build.h"
#include "src/cli/arguments.h"

namespace convpass::cli {

/// What a RUN, ADAPTER or RECIPE argument stands for.
struct Trained {
  std::filesystem::path adapter;  ///< adapter.safetensors; empty: the recipe's own, untrained
  std::optional<Recipe> recipe;   ///< RECIPE, --recipe, or the recipe.json beside the adapter
  std::filesystem::path weights;  ///< of the backbone
};

/// --set, --backbone, --precision and --device, which every command on a trained model takes.
std::vector<Option> trained_options();

/// `given` is a run folder, an adapter file or a recipe (.json), which stands for its model before
/// any training. Errors: Error; without a backbone it says which one is needed.
Trained find_trained(const std::filesystem::path& given, const Arguments& arguments);

/// The model on its backbone in the precision that the option names. Without it the run's is taken,
/// so that a number is the run's.
LoadedModel load_trained(const Trained& trained, const Arguments& arguments,
                         const std::string& option = "--precision");

}  // namespace convpass::cli
