#include "src/cli/arguments.h"

#include <algorithm>
#include <charconv>

#include "convpass/core/error.h"
#include "convpass/core/json.h"

namespace convpass::cli {

std::string usage(const Command& command) {
  std::string text =
      "convpass " + command.name + " " + command.synopsis + "\n" + command.summary + "\n";
  if (!command.details.empty()) text += "\n" + command.details + "\n";
  size_t width = 0;
  auto left = [](const Option& option) {
    return option.name + (option.value_name.empty() ? "" : " " + option.value_name);
  };
  for (const Option& option : command.options) width = std::max(width, left(option).size());
  if (!command.options.empty()) text += "\n";
  for (const Option& option : command.options) {
    std::string cell = left(option);
    text += "  " + cell + std::string(width - cell.size() + 2, ' ') + option.help +
            (option.repeatable ? " (may be repeated)" : "") + "\n";
  }
  return text;
}

Arguments::Arguments(const Command& command, const std::vector<std::string>& words)
    : command_(command.name) {
  std::vector<std::string> known{"--help"};
  for (const Option& option : command.options) known.push_back(option.name);
  bool only_positional = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (only_positional || word.size() < 2 || word[0] != '-') {
      positional_.push_back(word);
      continue;
    }
    if (word == "--") {
      only_positional = true;
      continue;
    }
    if (word == "--help" || word == "-h") {
      wants_help_ = true;
      continue;
    }
    size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    auto option = std::find_if(command.options.begin(), command.options.end(),
                               [&](const Option& o) { return o.name == name; });
    if (option == command.options.end()) {
      fail("unknown option, got " + json_quote(name) + did_you_mean(name, known));
    }
    if (has(name) && !option->repeatable) fail("got " + name + " twice, wanted it once");
    std::string value;
    if (option->value_name.empty()) {
      if (equals != std::string::npos) fail(name + " takes no value, got " + json_quote(word));
    } else if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < words.size()) {
      value = words[++i];
    } else {
      fail(name + " is the last word, wanted " + name + " " + option->value_name);
    }
    given_.emplace_back(name, value);
  }
  if (wants_help_) return;
  if (positional_.size() < command.min_positional || positional_.size() > command.max_positional) {
    fail("got " + std::to_string(positional_.size()) + " arguments" +
         (positional_.size() > command.max_positional
              ? " (unexpected " + json_quote(positional_[command.max_positional]) + ")"
              : "") +
         ", wanted: convpass " + command.name + " " + command.synopsis);
  }
}

bool Arguments::has(const std::string& name) const { return value(name).has_value(); }

std::optional<std::string> Arguments::value(const std::string& name) const {
  for (const auto& [option, value] : given_) {
    if (option == name) return value;
  }
  return std::nullopt;
}

std::vector<std::string> Arguments::values(const std::string& name) const {
  std::vector<std::string> all;
  for (const auto& [option, value] : given_) {
    if (option == name) all.push_back(value);
  }
  return all;
}

int64_t Arguments::integer(const std::string& name, int64_t otherwise, int64_t min) const {
  std::optional<std::string> text = value(name);
  if (!text) return otherwise;
  int64_t number = 0;
  auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc() || end != text->data() + text->size() || number < min) {
    fail(name + ": got " + json_quote(*text) + ", wanted a whole number of at least " +
         std::to_string(min));
  }
  return number;
}

size_t Arguments::choice(const std::string& name, const std::vector<std::string>& words,
                         size_t otherwise) const {
  std::optional<std::string> text = value(name);
  if (!text) return otherwise;
  auto found = std::find(words.begin(), words.end(), *text);
  if (found == words.end()) {
    std::string wanted;
    for (const std::string& word : words) wanted += (wanted.empty() ? "" : ", ") + word;
    fail(name + ": got " + json_quote(*text) + ", wanted one of " + wanted +
         did_you_mean(*text, words));
  }
  return static_cast<size_t>(found - words.begin());
}

void Arguments::fail(const std::string& what) const { throw UsageError(command_ + ": " + what); }

}  // namespace convpass::cli
