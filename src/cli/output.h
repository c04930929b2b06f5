#pragma once

#include <string>

namespace convpass::cli {

/// stdout cannot be written. `broken_pipe`: its reader has gone, which is no one's mistake.
struct OutputError {
  bool broken_pipe;
  std::string reason;
};

/// Writes to stdout at once. Throws OutputError.
void print(const std::string& text);
void print_line(const std::string& line);

}  // namespace convpass::cli
