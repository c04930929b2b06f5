#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "tests/train/tiny_run.h"

extern char** environ;

namespace convpass {

/// The binary on a tiny data set, as a user runs it.
class Processes : public TinyRun {
 protected:
  struct Result {
    int status = -1;
    std::string out, err;
  };

  Result run(const std::vector<std::string>& words) const { return wait_for(start(words)); }

  pid_t start(const std::vector<std::string>& words) const {
    std::vector<std::string> all{CONVPASS_BINARY};
    all.insert(all.end(), words.begin(), words.end());
    std::vector<char*> argv;
    for (std::string& word : all) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const auto& [stream, name] : {std::pair{1, "stdout"}, {2, "stderr"}})
      posix_spawn_file_actions_addopen(&actions, stream, (folder() / name).c_str(),
                                       O_WRONLY | O_CREAT | O_TRUNC, 0644);
    pid_t child = 0;
    EXPECT_EQ(posix_spawn(&child, CONVPASS_BINARY, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return child;
  }
  Result wait_for(pid_t child) const {
    int status = 0;
    waitpid(child, &status, 0);
    auto text = [&](const char* name) {
      std::stringstream all;
      all << std::ifstream(folder() / name).rdbuf();
      return all.str();
    };
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text("stdout"),
            text("stderr")};
  }
};

}  // namespace convpass
