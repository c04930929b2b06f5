#include "src/train/build_head.h"

#include <algorithm>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/progress.h"
#include "src/train/splits.h"

namespace convpass {
namespace {

/// Which class is another, of lists of one length.
std::string first_difference(const std::vector<std::string>& theirs,
                             const std::vector<std::string>& wanted, const std::string& whose) {
  for (size_t i = 0; i < theirs.size(); ++i)
    if (theirs[i] != wanted[i])
      return "its class " + std::to_string(i) + " is " + json_quote(theirs[i]) + ", wanted " +
             json_quote(wanted[i]) + " as in " + whose;
  return {};
}

/// The tensors of a cosine head in an adapter file.
TextEmbeddings texts_of(const AdapterFile& file) {
  const auto& tensors = file.weights.tensors;
  const auto projection = tensors.find("head.projection");
  return {.classes = file.classes,
          .named = true,
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

std::string class_difference(const std::vector<std::string>& theirs,
                             const std::vector<std::string>& wanted, const std::string& whose) {
  if (theirs.size() != wanted.size())
    return "got " + std::to_string(theirs.size()) + " classes, wanted " +
           std::to_string(wanted.size()) + " like " + whose;
  return are_counted(theirs) || are_counted(wanted) ? std::string()
                                                    : first_difference(theirs, wanted, whose);
}

void check_class_texts(const Recipe& recipe, Dataset& train) {
  if (recipe.head.type != HeadType::cosine) return;
  const TextEmbeddings text = class_texts(recipe);
  const std::vector<std::string>& classes = train.classes();
  std::string difference = class_difference(text.classes, classes, "data.train");
  // Names such as 0, 1, 2 ... 10 that were given count too; folders of these names stand in another
  // order.
  if (difference.empty() && text.named &&
      std::is_permutation(classes.begin(), classes.end(), text.classes.begin(), text.classes.end()))
    difference = first_difference(text.classes, classes, "data.train");
  if (!difference.empty()) throw FileError(recipe.head.text, difference);
  if (text.classes == classes) return;
  say(recipe.head.text.string() +
      ": whether its classes stand in the order of data.train is not checked: one of the two only "
      "numbers them");
  if (text.named && are_counted(classes)) train.name_classes(text.classes, "data.train");
}

LoadedModel load_untrained_model(const Recipe& recipe) {
  if (recipe.head.type != HeadType::cosine)
    throw RecipeError(recipe.where("/head/type"), "/head/type",
                      "got a head that knows no classes before it is trained, wanted \"cosine\", "
                      "or a run or an adapter in the place of the recipe");
  LoadedModel loaded;
  const TextEmbeddings text = class_texts(recipe);
  loaded.classes = text.classes;
  if (!text.named && recipe.data.train) try {
      // As in training: texts without names stand in the order of its classes.
      const auto train = open_split(recipe, Split::train, recipe.data.classes);
      if (train->classes().size() == loaded.classes.size()) loaded.classes = train->classes();
    } catch (const Error&) {  // other images can be looked at without those
    }
  Recipe plain = recipe;
  plain.adapter = NoAdapter{};  // not every adapter starts as the identity
  loaded.model = build_for_inference(plain, std::ssize(loaded.classes));
  loaded.input = resolve_input(recipe.input, loaded.model);
  ImagePipeline(loaded.input, AugmentConfig{});  // checks the numbers
  return loaded;
}

}  // namespace convpass
