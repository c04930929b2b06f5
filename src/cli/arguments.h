#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace convpass::cli {

struct Option {
  std::string name;        ///< "--out"
  std::string value_name;  ///< "DIR"; empty for a flag
  std::string help;
  bool repeatable = false;
};

/// A subcommand: what its usage says, and what its arguments may be.
struct Command {
  std::string name{};
  std::string synopsis{};  ///< "RECIPE --out DIR [--resume]"
  std::string summary{};   ///< one line for the overview
  std::string details{};   ///< what it prints, more lines for --help; may be empty
  std::vector<Option> options{};
  size_t min_positional = 0, max_positional = 0;
  int (*run)(const class Arguments& arguments) = nullptr;
};

std::string usage(const Command& command);

/// The arguments behind the subcommand. Options may stand anywhere, as `--name value` or
/// `--name=value`; behind a lone `--` everything is positional.
class Arguments {
 public:
  /// Errors: UsageError, which names the nearest option for an unknown one.
  Arguments(const Command& command, const std::vector<std::string>& words);

  bool wants_help() const { return wants_help_; }
  bool has(const std::string& name) const;
  /// The value of an option that was given, in the order given for repeatable ones.
  std::optional<std::string> value(const std::string& name) const;
  std::vector<std::string> values(const std::string& name) const;
  /// A whole number of at least `min`. Errors: UsageError.
  int64_t integer(const std::string& name, int64_t otherwise, int64_t min) const;
  /// The index of the option's value in `words`, or `otherwise`. Errors: UsageError.
  size_t choice(const std::string& name, const std::vector<std::string>& words,
                size_t otherwise) const;
  const std::vector<std::string>& positional() const { return positional_; }

 private:
  [[noreturn]] void fail(const std::string& what) const;

  std::string command_;
  bool wants_help_ = false;
  std::vector<std::pair<std::string, std::string>> given_;
  std::vector<std::string> positional_;
};

}  // namespace convpass::cli
