#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/train/evaluate.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"
#include "src/cli/trained.h"

namespace convpass::cli {
namespace {

using Json = nlohmann::ordered_json;

/// One line; file names need not be UTF-8.
void print_object(const Json& object) {
  print_line(object.dump(-1, ' ', false, Json::error_handler_t::replace));
}

int run_predict(const Arguments& arguments) {
  Trained trained = find_trained(arguments.positional()[0], arguments);
  LoadedModel loaded = load_trained(trained, arguments);
  ImagePipeline pipeline(loaded.input, AugmentConfig{});
  const DecodeOptions decode{.exif_orientation = loaded.input.exif_orientation};
  int64_t top = arguments.integer("--top", 5, 1);
  int status = 0;
  for (size_t i = 1; i < arguments.positional().size(); ++i) {
    const std::string& file = arguments.positional()[i];
    Json line{{"image", file}};
    try {
      Json classes = Json::array();
      for (const Prediction& prediction :
           predict(loaded.model, pipeline, loaded.classes, read_image(file, decode), top)) {
        classes.push_back({{"label", prediction.label}, {"probability", prediction.probability}});
      }
      line["classes"] = classes;
    } catch (const Error& error) {
      line["error"] = error.what();
      status = 2;
    }
    print_object(line);
  }
  return status;
}

}  // namespace

const Command& predict_command() {
  static const Command command = [] {
    Command c{
        .name = "predict",
        .synopsis = "RUN|ADAPTER|RECIPE IMAGE... [--top K] [--backbone FILE]",
        .summary = "Classifies image files.",
        .details =
            "Prints one line an image: {\"image\",\"classes\":[{\"label\",\"probability\"}]}, "
            "most probable first.\nAn image that cannot be read gives {\"image\",\"error\"}, "
            "and exit status 2 at the end.\nRECIPE stands for its model before any training: "
            "zero-shot, with a head of the type \"cosine\".",
        .options = {{"--top", "K", "how many classes (5)"}},
        .min_positional = 2,
        .max_positional = static_cast<size_t>(-1),
        .run = run_predict};
    for (const Option& option : trained_options()) c.options.push_back(option);
    return c;
  }();
  return command;
}

}  // namespace convpass::cli
