#include "convpass/core/error.h"
#include "convpass/train/progress.h"
#include "convpass/train/recipe.h"
#include "convpass/train/trainer.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"

namespace convpass::cli {
namespace {

int run_train(const Arguments& arguments) {
  std::optional<std::string> out = arguments.value("--out");
  if (!out || out->empty()) throw UsageError("train: wanted --out DIR, the folder of the run");
  Recipe recipe = load_recipe(arguments.positional()[0], arguments.values("--set"));
  validate(recipe, /*needs_data=*/true);
  install_stop_handlers();
  TrainOutcome outcome = train(recipe, *out, arguments.has("--resume"));
  if (!outcome.finished) {
    say(std::filesystem::exists(std::filesystem::path(*out) / "checkpoint.pt")
            ? "stopped; the same command with --resume goes on from the last checkpoint in " + *out
            : "stopped before the first step; the same command begins again");
    return 128 + stop_signal();
  }
  print_line(outcome.result_json);
  return 0;
}

}  // namespace

const Command& train_command() {
  static const Command command{
      .name = "train",
      .synopsis = "RECIPE [--set K=V ...] --out DIR [--resume]",
      .summary = "Trains as a recipe says into a run folder.",
      .details =
          "The last line on stdout is the result as one JSON object. DIR gets recipe.json "
          "(resolved),\nlog.jsonl, adapter.safetensors, checkpoint.pt and result.json. Ctrl-C "
          "saves a "
          "checkpoint and\nstops; a second one stops at once.",
      .options = {{"--out", "DIR", "the run folder; one that already holds a run needs --resume"},
                  {"--set", "K=V", "overlays one value of the recipe: --set train.epochs=5", true},
                  {"--resume", "",
                   "goes on from the folder's checkpoint, from the start without one"}},
      .min_positional = 1,
      .max_positional = 1,
      .run = run_train};
  return command;
}

}  // namespace convpass::cli
