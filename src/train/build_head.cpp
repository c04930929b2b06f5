#include "src/train/build_head.h"

#include <algorithm>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/progress.h"

namespace convpass {
namespace {

/// The tensors of a cosine head in an adapter file.
TextEmbeddings texts_of(const AdapterFile& file) {
  const auto& tensors = file.weights.tensors;
  const auto projection = tensors.find("head.projection");
  return {.classes = file.classes,
          .embeddings = tensors.at("head.weight"),
          .projection = projection == tensors.end() ? at::Tensor() : projection->second,
          .scale = tensors.at("head.scale")};
}

}  // namespace

TextEmbeddings class_texts(const Recipe& recipe) {
  if (recipe.head.text.empty())
    throw RecipeError(
        recipe.where("/head/text"), "/head/text",
        "missing, wanted the class-text embeddings that head.type \"cosine\" starts from");
  return load_text_embeddings(recipe.head.text);
}

Head build_head(const Recipe& recipe, const AdapterFile* known, const Backbone& backbone,
                int64_t classes, uint64_t seed) {
  const int64_t features = backbone.feature_dim();
  if (recipe.head.type == HeadType::cosine) {
    const TextEmbeddings text = known ? texts_of(*known) : class_texts(recipe);
    try {
      return make_cosine_head(text, features, classes);
    } catch (const Error& error) {
      throw FileError(known ? recipe.file : recipe.head.text, error.what());
    }
  }
  try {
    return make_head(recipe.head, features, classes, seed);
  } catch (const Error& error) {
    throw RecipeError(recipe.file, "/head/type", error.what());
  }
}

bool are_numbers(const std::vector<std::string>& names) {
  return std::all_of(names.begin(), names.end(), [](const std::string& name) {
    return !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
  });
}

std::string class_difference(const std::vector<std::string>& theirs,
                             const std::vector<std::string>& wanted, const std::string& whose) {
  if (theirs.size() != wanted.size())
    return "got " + std::to_string(theirs.size()) + " classes, wanted " +
           std::to_string(wanted.size()) + " like " + whose;
  if (are_numbers(theirs) || are_numbers(wanted)) return {};
  for (size_t i = 0; i < theirs.size(); ++i)
    if (theirs[i] != wanted[i])
      return "its class " + std::to_string(i) + " is " + json_quote(theirs[i]) + ", wanted " +
             json_quote(wanted[i]) + " as in " + whose;
  return {};
}

void check_class_texts(const Recipe& recipe, const std::vector<std::string>& classes) {
  if (recipe.head.type != HeadType::cosine) return;
  const std::vector<std::string> theirs = class_texts(recipe).classes;
  const std::string difference = class_difference(theirs, classes, "data.train");
  if (!difference.empty()) throw FileError(recipe.head.text, difference);
  if (theirs != classes)
    say(recipe.head.text.string() +
        ": whether its classes stand in the order of data.train is not checked: one of the two "
        "only numbers them");
}

LoadedModel load_untrained_model(const Recipe& recipe) {
  if (recipe.head.type != HeadType::cosine)
    throw RecipeError(recipe.where("/head/type"), "/head/type",
                      "got a head that knows no classes before it is trained, wanted \"cosine\", "
                      "or a run or an adapter in the place of the recipe");
  LoadedModel loaded;
  loaded.classes = class_texts(recipe).classes;
  loaded.model = build_for_inference(recipe, std::ssize(loaded.classes));
  loaded.input = resolve_input(recipe.input, loaded.model);
  ImagePipeline(loaded.input, AugmentConfig{});  // checks the numbers
  return loaded;
}

}  // namespace convpass
