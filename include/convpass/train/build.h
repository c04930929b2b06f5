#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "convpass/adapters/adapter_file.h"
#include "convpass/adapters/text_embeddings.h"
#include "convpass/adapters/tuned_model.h"
#include "convpass/models/backbone_checkpoint.h"
#include "convpass/train/recipe.h"

namespace convpass {

/// A backbone's checkpoint that one model after another can begin from; `of` says of which recipe.
struct LoadedCheckpoint {
  std::string of;
  BackboneCheckpoint checkpoint;
};

/// Backbone, adapter and head as the recipe says, on the device and in the precision of `train`.
/// Errors: FileError, RecipeError (a variant that is not the file's: both are shown; an image size
/// that is no multiple of the patch).
/// `loaded`: taken over where it is of the same backbone, else what is loaded is put there.
TunedModel build_model(const Recipe& recipe, int64_t classes, LoadedCheckpoint* loaded = nullptr);

/// The same as `eval` and `predict` would run it at the end of a run: frozen, and the adapter
/// folded into the backbone's weights where that can be.
TunedModel build_for_inference(const Recipe& recipe, int64_t classes);

/// What a cosine head starts from. Errors: FileError; RecipeError where the recipe names no file.
TextEmbeddings class_texts(const Recipe& recipe);

/// The input config with size, mean and std filled in from the backbone where the recipe leaves
/// them.
InputConfig resolve_input(const InputConfig& input, const TunedModel& model);

/// The file that holds what is trainable in `model` and all that is needed to use it.
AdapterFile adapter_file_of(const Recipe& recipe, const TunedModel& model, const InputConfig& input,
                            const std::vector<std::string>& classes);

/// A model ready to predict: the adapter file's on its backbone. `weights` is the backbone's
/// checkpoint, which is not looked at where the whole backbone is in the adapter file because it
/// was trained from scratch. Errors: Error when the backbone is not the one the adapter was trained
/// on.
struct LoadedModel {
  TunedModel model;
  InputConfig input;
  std::vector<std::string> classes;
};
LoadedModel load_tuned_model(const std::filesystem::path& adapter,
                             const std::filesystem::path& weights, DeviceChoice device,
                             Precision precision);

/// The same before any training, which is zero-shot classification: with the head and the classes
/// of class_texts(). Errors: RecipeError for a head of another type.
LoadedModel load_untrained_model(const Recipe& recipe);

}  // namespace convpass
