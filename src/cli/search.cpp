#include "convpass/train/search.h"

#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/progress.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"

namespace convpass::cli {
namespace {

using Json = nlohmann::ordered_json;

/// A line a trial, the chosen one marked.
void say_table(const SearchPlan& plan, const SearchOutcome& outcome) {
  char text[120];
  say("trial  top-1 on val      loss  trained  setting");
  for (const Trial& trial : outcome.trials) {
    if (trial.diverged()) {
      std::snprintf(text, sizeof text, "%5lld  %-33s", static_cast<long long>(trial.number),
                    "diverged");
    } else {
      const size_t last = trial.rungs() - 1;
      const double deviation = 100 * trial.deviation(last);
      char spread[20] = "       ";
      if (trial.runs.size() > 1) std::snprintf(spread, sizeof spread, "± %5.2f", deviation);
      std::snprintf(text, sizeof text, "%5lld  %6.2f %s %%  %.4f    %3.0f %%",
                    static_cast<long long>(trial.number), 100 * trial.top1(last), spread,
                    trial.loss(last), 100 * plan.rungs()[last]);
    }
    std::string line = text;
    for (const auto& [key, value] : trial.setting) line += "  " + key + "=" + value;
    say(line + (trial.number == outcome.chosen ? "  <- chosen" : ""));
  }
}

std::string last_line(const std::string& out, const SearchPlan& plan,
                      const SearchOutcome& outcome) {
  const Trial& chosen = outcome.trials[static_cast<size_t>(outcome.chosen)];
  const Json trial = Json::parse(trial_json(chosen, plan)), final = Json::parse(outcome.final_json);
  return Json{{"run", out},
              {"trials", outcome.trials.size()},
              {"chosen", chosen.number},
              {"setting", trial["setting"]},
              {"val", trial["val"]},
              {"reason", outcome.reason},
              {"final", final["run"]},
              {"test", final["test"]}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

int run_search(const Arguments& arguments) {
  const std::optional<std::string> out = arguments.value("--out");
  if (!out || out->empty()) throw UsageError("search: wanted --out DIR, the folder of the search");
  if (const std::string on = arguments.value("--on").value_or("val"); on != "val")
    throw UsageError("search: --on: got " + json_quote(on) +
                     ", wanted \"val\": the test split never chooses, and what is trained on "
                     "cannot");
  SearchOptions options{.axes = {},
                        .seeds = arguments.integer("--seeds", 1, 1),
                        .random = arguments.integer("--random", 0, 1),
                        .halving = arguments.has("--halving")};
  for (const std::string& text : arguments.values("--over"))
    options.axes.push_back(parse_axis(text));
  const SearchPlan plan =
      plan_search(arguments.positional()[0], arguments.values("--set"), options);
  install_stop_handlers();
  const SearchOutcome outcome =
      search(plan, *out, arguments.has("--resume"),
             [&](const Trial& trial) { print_line(trial_json(trial, plan)); });
  if (!outcome.finished) {
    say("stopped; the same command with --resume goes on with " + *out);
    return 128 + stop_signal();
  }
  say_table(plan, outcome);
  print_line(last_line(*out, plan, outcome));
  return 0;
}

}  // namespace

const Command& search_command() {
  static const Command command{
      .name = "search",
      .synopsis = "RECIPE --over K=V1,V2,... [--over ...] [--seeds N] --out DIR [--resume]",
      .summary = "Tries settings, chooses on data.val, trains the chosen one and tests it once.",
      .details =
          "Every combination of the --over values is trained on data.train, once for each seed, "
          "and "
          "never sees\ndata.test. The highest mean top-1 on data.val is chosen; of equals the "
          "lower "
          "mean loss, then the\nearlier trial. It is trained once more on data.train and data.val "
          "together and evaluated on data.test.\nOne JSON line a trial on stdout, then one with "
          "the "
          "choice and the result. DIR gets trials/, final/\nand search.json.",
      .options = {{"--over", "K=V1,V2,...",
                   "values of one key to try: --over adapter.scale=0.1,1,10", true},
                  {"--seeds", "N", "runs of each trial, from train.seed on (1)"},
                  {"--random", "N", "so many trials, drawn from all combinations by train.seed"},
                  {"--halving", "",
                   "all trials go to a quarter of the run, the better half of them to a half, the "
                   "better half of those to the end"},
                  {"--on", "SPLIT", "val: the only split that may choose"},
                  {"--out", "DIR",
                   "the folder of the search; one that holds a search needs --resume"},
                  {"--set", "K=V", "overlays one value of the recipe, for all trials", true},
                  {"--resume", "", "goes on with the folder's search"}},
      .min_positional = 1,
      .max_positional = 1,
      .run = run_search};
  return command;
}

}  // namespace convpass::cli
