#include "src/cli/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace convpass::cli {

void print(const std::string& text) {
  errno = 0;
  size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  if (written != text.size() || std::fflush(stdout) != 0) {
    throw OutputError{errno == EPIPE, std::strerror(errno)};
  }
}

void print_line(const std::string& line) { print(line + "\n"); }

}  // namespace convpass::cli
