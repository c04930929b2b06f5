#include <ATen/core/Tensor.h>

#include <cstdio>

#include "convpass/core/error.h"
#include "convpass/train/build.h"
#include "convpass/train/hyper_rule.h"
#include "convpass/train/progress.h"
#include "convpass/train/suite.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"
#include "src/data/image_survey.h"
#include "src/train/distiller.h"
#include "src/train/memory.h"
#include "src/train/splits.h"
#include "src/train/step_plan.h"

namespace convpass::cli {
namespace {

/// Sizes of the splits and the first thing that is wrong with them, which ends the command after
/// the rest of its report: the data may lie on another machine.
struct DataReport {
  int64_t train_images = 0, classes = 0;
  std::string fault;
};

/// The kind and size of a sample of the image files.
void report_files(const Dataset& dataset, const std::string& what) {
  constexpr int64_t kSample = 200;
  const std::optional<ImageSurvey> survey = survey_images(dataset, kSample);
  if (!survey) return;
  say(what + ": of " + std::to_string(survey->images) + " files " + describe(*survey));
  if (const std::string text = warning(*survey); !text.empty())
    say("warning: " + what + ": " + text);
}

DataReport report_data(const Recipe& recipe) {
  DataReport report;
  report.classes = recipe.data.classes;
  const DataConfig& data = recipe.data;
  auto open = [&](Split split, const std::optional<DatasetConfig>& config,
                  const std::string& name) {
    const bool held_out = config && std::holds_alternative<HeldOutSource>(config->source);
    if (!config || (held_out && !data.train)) return;
    if (split == Split::val && data.train_on_val) {
      say("data.val: trained on, as a part of data.train");
      return;
    }
    try {
      auto dataset = open_split(recipe, split, data.classes);
      say("data." + name + ": " + std::to_string(dataset->size()) + " images, " +
          std::to_string(dataset->classes().size()) + " classes" +
          (held_out ? ", held out of data.train" : ""));
      report_files(*dataset, "data." + name);
      if (split != Split::train) return;
      report.train_images = dataset->size();
      report.classes = static_cast<int64_t>(dataset->classes().size());
    } catch (const Error& error) {
      if (report.fault.empty()) report.fault = error.what();
    }
  };
  open(Split::train, data.train, "train");
  open(Split::val, data.val, "val");
  open(Split::test, data.test, "test");
  // Whether the splits fit together; without labels that is for the teachers' classes to say.
  if (report.fault.empty() && report.train_images > 0) try {
      const BatchOrder order(report.train_images, stream_options(recipe));
      if (recipe.rule == RecipeRule::none) validate_length(recipe, order.steps_per_epoch());
      check_pairs(recipe, report.train_images);
      if (report.classes > 0) open_splits(recipe, {});
    } catch (const Error& error) {
      report.fault = error.what();
    }
  return report;
}

void report_model(const Recipe& recipe, const TunedModel& model) {
  const MemoryNeed need = memory_need(recipe, model);
  say(model.backbone->describe() + (recipe.backbone.image_size.empty()
                                        ? " (the checkpoint's own size; backbone.image_size sets "
                                          "another)"
                                        : ""));
  say("parameters: " + std::to_string(model.total_parameters()) +
      ", trainable: " + std::to_string(model.trainable_parameters()));
  int64_t kept = 0;
  for (const auto& [name, tensor] : model.state()) kept += tensor.numel();
  say("adapter file: about " + mebibytes(4.0 * static_cast<double>(kept)));
  say("memory for training, roughly: " + mebibytes(need.total()) + " (backbone " +
      mebibytes(need.backbone) + ", what trains, gradients and optimizer " +
      mebibytes(need.trainable) + ", activations " + mebibytes(need.activations) +
      (need.program > 0 ? ", the program " + mebibytes(need.program) : "") + ")");
}

void report_steps(const Recipe& recipe, int64_t images) {
  const TrainConfig& train = recipe.train;
  const StepPlan plan =
      step_plan(train, BatchOrder(images, stream_options(recipe)).steps_per_epoch());
  say("steps: " + std::to_string(plan.epoch_steps()) + " an epoch, " +
      std::to_string(plan.run_steps(train)) + " in all; convpass bench " + recipe.file.string() +
      " measures one" + (recipe.distill.on() ? ", its teachers aside" : ""));
}

/// Opens the teachers as a run would and says what is wrong with them, or nothing.
std::string report_teachers(const Recipe& recipe, const TunedModel& model,
                            const InputConfig& input) {
  try {
    validate(recipe, /*needs_data=*/recipe.data.train.has_value());
    if (!recipe.distill.on()) return {};
    Distiller distiller(recipe);
    say("teachers: " + std::to_string(recipe.distill.teachers.size()) + ", their weights take " +
        mebibytes(static_cast<double>(distiller.weight_bytes())) + " more");
    if (!recipe.data.train) return {};
    const Splits splits = open_splits(recipe, distiller.classes());
    distiller.check_classes(splits.train->classes());
    distiller.prepare(input, model.backbone->feature_dim(), /*seed=*/0, model.device());
    distiller.check_store(*splits.train);
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

/// One JSON line for each run of a suite: what is there of its data.
int check_suite(const Suite& suite) {
  size_t unfit = 0, absent = 0;
  for (size_t i = 0; i < suite.recipes.size(); ++i) {
    const SuiteData data = check_suite_data(suite, i, /*look=*/true);
    for (const std::string& warning : data.warnings) say("warning: " + warning);
    if (!data.fault.empty()) say(data.fault);
    if (!data.missing.empty()) say(suite.config.runs[i].name + ": no such file: " + data.missing);
    absent += !data.missing.empty();
    unfit +=
        !data.fault.empty() || (!data.missing.empty() && suite.config.missing == MissingData::stop);
    print_line(data.line);
  }
  say(std::to_string(suite.recipes.size() - absent) + " of " +
      std::to_string(suite.recipes.size()) + " runs have their data");
  if (unfit > 0)
    throw FileError(suite.file, "the data of " + std::to_string(unfit) + " of " +
                                    std::to_string(suite.recipes.size()) +
                                    " runs is missing or not whole (see above)");
  return 0;
}

int run_check(const Arguments& arguments) {
  const std::filesystem::path file = arguments.positional()[0];
  if (is_suite(file)) return check_suite(load_suite(file, arguments.values("--set")));
  Recipe recipe = load_recipe(file, arguments.values("--set"));
  validate(recipe, /*needs_data=*/false);
  if (!recipe.backbone.weights.empty() && !std::filesystem::exists(recipe.backbone.weights)) {
    throw RecipeError(
        recipe.file, "/backbone/weights",
        "no such file, got " + recipe.backbone.weights.string() + ", wanted a checkpoint");
  }
  DataReport data = report_data(recipe);
  if (recipe.rule != RecipeRule::none) {
    if (data.train_images > 0)
      recipe = resolve_rule(recipe);
    else
      say("rule: not resolved without the training images");
  }
  if (recipe.head.type ==
      HeadType::cosine)  // where data.train has another number, its fault says it
    data.classes = std::ssize(class_texts(recipe).classes);
  if (data.classes == 0) {
    data.classes = 10;
    say("classes: not known without the training images, taken as 10");
  }
  TunedModel model = build_for_training(recipe, data.classes);
  const InputConfig input = resolve_input(recipe.input, model);
  ImagePipeline(input, recipe.augment);  // checks the numbers
  report_model(recipe, model);
  if (data.train_images > 0) report_steps(recipe, data.train_images);
  const std::string teachers_fault = report_teachers(recipe, model, input);
  print(recipe_json(recipe));
  for (const std::string& fault : {data.fault, teachers_fault})
    if (!fault.empty()) throw Error(fault);
  return 0;
}

}  // namespace

const Command& check_command() {
  static const Command command{
      .name = "check",
      .synopsis = "RECIPE|SUITE [--set K=V ...]",
      .summary = "Resolves and validates a recipe, builds its model, estimates memory and steps.",
      .details =
          "Prints the resolved recipe on stdout and the estimates on stderr; images are counted, "
          "not decoded. Data or teachers that are missing or do not fit end it with status 2, "
          "after "
          "the report.\n"
          "Of a suite it prints a JSON line for each run: whether its data is present and whole "
          "(every listed\nfile, labels, number of images) and what kind of files the images are.",
      .options = {{"--set", "K=V", "overlays one value of the recipe", true}},
      .min_positional = 1,
      .max_positional = 1,
      .run = run_check};
  return command;
}

}  // namespace convpass::cli
