#include <nlohmann/json.hpp>

#include "convpass/train/evaluate.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"
#include "src/cli/test_sets.h"
#include "src/train/splits.h"

namespace convpass::cli {
namespace {

/// One line; the name of a set need not be UTF-8.
void print_object(const nlohmann::ordered_json& object) {
  print_line(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

/// What is printed of one set.
nlohmann::ordered_json line_of(const TestSet& set, const Metrics& metrics) {
  nlohmann::ordered_json line;
  if (!set.name.empty()) line = {{"set", set.name}, {"classes", metrics.per_class.size()}};
  line.update(nlohmann::ordered_json::parse(metrics_json(metrics)));
  return line;
}

/// Adds what the model answers in another precision.
void add_reference(nlohmann::ordered_json& line, const Metrics& metrics, const Metrics& reference,
                   const std::string& precision) {
  line["reference"] = {{"precision", precision},
                       {"top1", reference.top1},
                       {"top5", reference.top5},
                       {"loss", reference.loss}};
  line["top1_minus_reference"] = metrics.top1 - reference.top1;
  line["loss_minus_reference"] = metrics.loss - reference.loss;
}

int run_eval(const Arguments& arguments) {
  const Trained trained = find_trained(arguments.positional()[0], arguments);
  LoadedModel loaded = load_trained(trained, arguments);
  const std::vector<TestSet> sets = open_test_sets(trained, arguments, loaded);
  const TrainConfig train = trained.recipe ? trained.recipe->train : TrainConfig{};
  const ImagePipeline pipeline(loaded.input, AugmentConfig{});
  auto measured = [&](const TestSet& set, const std::string& what) {
    return evaluate(loaded.model, *set.dataset, pipeline,
                    {.batch_size = train.batch_size,
                     .workers = worker_count(train),
                     .what = set.name.empty() ? what : what + " " + set.name,
                     .among = set.among});
  };
  const std::optional<std::string> reference = arguments.value("--reference");
  std::vector<Metrics> metrics;
  for (const TestSet& set : sets) {
    metrics.push_back(measured(set, "evaluating"));
    if (!reference) print_object(line_of(set, metrics.back()));
  }
  if (!reference) return 0;
  loaded = LoadedModel{};  // one model at a time
  loaded = load_trained(trained, arguments, "--reference");
  for (size_t i = 0; i < sets.size(); ++i) {
    nlohmann::ordered_json line = line_of(sets[i], metrics[i]);
    add_reference(line, metrics[i], measured(sets[i], "reference"), *reference);
    print_object(line);
  }
  return 0;
}

}  // namespace

const Command& eval_command() {
  static const Command command = [] {
    Command c{.name = "eval",
              .synopsis = "RUN|ADAPTER|RECIPE [--data PATH | --on NAME=PATH ...] [--backbone FILE]",
              .summary = "Evaluates a trained adapter on labelled images.",
              .details =
                  "Prints {\"images\",\"top1\",\"top5\",\"loss\",\"per_class\"}; accuracies are "
                  "fractions.\nWithout --data and --on the images are the run's own test split.\n"
                  "RECIPE stands for its model before any training: zero-shot, with a head of the "
                  "type \"cosine\".",
              .options = {{"--recipe", "FILE", "a recipe that names the data and the backbone"},
                          {"--reference", "P",
                           "also in this precision: {\"reference\",\"top1_minus_reference\",...}"}},
              .min_positional = 1,
              .max_positional = 1,
              .run = run_eval};
    for (const std::vector<Option>& more : {test_set_options(), trained_options()})
      c.options.insert(c.options.end(), more.begin(), more.end());
    return c;
  }();
  return command;
}

}  // namespace convpass::cli
