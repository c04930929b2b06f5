#include <algorithm>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/train/recipe.h"
#include "convpass/train/suite.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"

namespace convpass::cli {
namespace {

int run_help(const Arguments& arguments) {
  const std::vector<std::string>& words = arguments.positional();
  if (words.empty()) {
    print(overview());
  } else if (words[0] == "recipe") {
    print(recipe_help(words.size() > 1 ? words[1] : ""));
  } else if (words[0] == "schema") {
    if (words.size() > 1 && words[1] != "suite")
      throw UsageError("help: schema: got " + json_quote(words[1]) + ", wanted suite or nothing");
    print(words.size() > 1 && words[1] == "suite" ? suite_schema() : recipe_schema());
  } else {
    print(usage(find_command(words[0])) + (words[0] == "suite" ? "\n" + suite_help() : ""));
  }
  return 0;
}

}  // namespace

const Command& help_command() {
  static const Command command{
      .name = "help",
      .synopsis = "[COMMAND | recipe [PART] | schema [suite]]",
      .summary = "Prints the usage of a command, the keys of a recipe, or a JSON Schema.",
      .details = "PART is a part of a recipe such as adapter or data.train.",
      .options = {},
      .max_positional = 2,
      .run = run_help};
  return command;
}

std::vector<const Command*> all_commands() {
  return {&train_command(),   &suite_command(),   &search_command(), &eval_command(),
          &predict_command(), &inspect_command(), &check_command(),  &bench_command(),
          &convert_command(), &help_command()};
}

const Command& find_command(const std::string& name) {
  std::vector<std::string> known;
  for (const Command* command : all_commands()) {
    if (command->name == name) return *command;
    known.push_back(command->name);
  }
  std::string wanted;
  for (const std::string& word : known) wanted += (wanted.empty() ? "" : ", ") + word;
  throw UsageError("unknown command, got " + json_quote(name) + ", wanted one of " + wanted +
                   did_you_mean(name, known));
}

std::string overview() {
  std::string text =
      "convpass fine-tunes vision transformers with few trainable parameters.\n\n"
      "  convpass COMMAND [ARGUMENTS] [OPTIONS]\n\n";
  for (const Command* command : all_commands()) {
    text += "  " + command->name + std::string(9 - std::min<size_t>(8, command->name.size()), ' ') +
            command->summary + "\n";
  }
  return text +
         "\n  convpass COMMAND --help       usage of one command\n"
         "  convpass help recipe [PART]   the keys of a recipe\n"
         "  convpass --version            versions and CPU features\n\n"
         "Results go to stdout as JSON, progress and messages to stderr. Exit status: 0 done, 1 "
         "our "
         "fault,\n2 the input is wrong, 128 + signal when stopped.\n";
}

}  // namespace convpass::cli
