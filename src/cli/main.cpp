#include <c10/util/Exception.h>
#include <malloc.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "src/cli/commands.h"
#include "src/cli/output.h"
#include "src/core/printable.h"

namespace convpass::cli {
namespace {

constexpr int kOurFault = 1;
constexpr int kUsersInput = 2;

/// The first line: LibTorch appends stack traces.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

int complain(const std::string& line, int code) {
  std::fprintf(stderr, "convpass: %s\n", one_line(line).c_str());
  return code;
}

int run(const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h") {
    print(overview());
    return 0;
  }
  if (words[0] == "--version" || words[0] == "-V" || words[0] == "version") {
    print(version());
    return 0;
  }
  const Command& command = find_command(words[0]);
  Arguments arguments(command, {words.begin() + 1, words.end()});
  if (arguments.wants_help()) {
    print(usage(command));
    return 0;
  }
  return command.run(arguments);
}

int guarded(const std::vector<std::string>& words) {
  try {
    return run(words);
  } catch (const OutputError& error) {
    if (error.broken_pipe) return 128 + SIGPIPE;
    return complain("stdout cannot be written: " + error.reason, kUsersInput);
  } catch (const UsageError& error) {
    return complain(std::string(error.what()) + " (see convpass --help)", kUsersInput);
  } catch (const Error& error) {
    return complain(error.what(), kUsersInput);
  } catch (const std::bad_alloc&) {
    return complain("out of memory; a smaller train.batch_size needs less", kOurFault);
  } catch (const c10::OutOfMemoryError& error) {
    return complain("out of memory on the device; a smaller train.batch_size needs less: " +
                        first_line(error.what_without_backtrace()),
                    kOurFault);
  } catch (const c10::Error& error) {
    return complain("internal error: " + first_line(error.what_without_backtrace()), kOurFault);
  } catch (const std::filesystem::filesystem_error& error) {
    return complain(error.path1().string() + ": " + error.code().message(), kUsersInput);
  } catch (const std::exception& error) {
    return complain("internal error: " + first_line(error.what()), kOurFault);
  }
}

}  // namespace
}  // namespace convpass::cli

int main(int argc, char** argv) {
  // A training step takes and gives back the same large blocks again and again. Kept in the heap
  // instead of returned to the system each time, they need not be mapped and cleared anew: 3 % of a
  // step of ViT-S in bfloat16, 11 % of one of ViT-B in float32.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  // Our messages go through say() and complain(). OpenCV writes here about a damaged TIFF, without
  // the file's name and beside our own line.
  std::cerr.rdbuf(nullptr);
  // A closed pipe shows as an error of the write, where it can be told from a full disk.
  std::signal(SIGPIPE, SIG_IGN);
  return convpass::cli::guarded({argv + 1, argv + argc});
}
