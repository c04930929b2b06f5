#include "convpass/train/suite.h"

#include "convpass/core/error.h"
#include "convpass/train/progress.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"

namespace convpass::cli {
namespace {

int run_suite_command(const Arguments& arguments) {
  const std::optional<std::string> out = arguments.value("--out");
  if (!out || out->empty()) throw UsageError("suite: wanted --out DIR, the folder of the suite");
  const Suite suite = load_suite(arguments.positional()[0], arguments.values("--set"));
  install_stop_handlers();
  const SuiteOutcome outcome = run_suite(suite, *out, print_line);
  if (outcome.stopped) {
    say("stopped; the same command goes on in " + *out);
    return 128 + stop_signal();
  }
  print_line(outcome.summary_json);
  say("the table is in " + *out + "/table.md");
  if (outcome.our_fault) return 1;
  return outcome.failed > 0 ? 2 : 0;
}

}  // namespace

const Command& suite_command() {
  static const Command command{
      .name = "suite",
      .synopsis = "SUITE [--set K=V ...] --out DIR",
      .summary = "Trains many recipes with several seeds and tabulates them.",
      .details =
          "DIR gets a run folder NAME/seedN for each run and seed, and table.csv, table.md and "
          "table.json, written\nanew after each. Runs that are finished are skipped and what was "
          "begun goes on, so that after\nCtrl-C or a crash the same command is all it takes. One "
          "line on stdout for each run, the last line\nis the summary. A run that fails is "
          "reported, the others go on, and the status is 2 (or 1) at the end.",
      .options = {{"--out", "DIR", "the folder of the suite"},
                  {"--set", "K=V", "overlays one value of every recipe", true}},
      .min_positional = 1,
      .max_positional = 1,
      .run = run_suite_command};
  return command;
}

}  // namespace convpass::cli
