#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace convpass {

/// Progress of long work on stderr with rate and time left: one line redrawn on a terminal, a plain
/// line now and then on a pipe (at most one every ten seconds, and the last).
class Progress {
 public:
  /// "training", 300, "step"
  Progress(std::string what, int64_t total, std::string unit);
  ~Progress();
  /// `done` of `total`; `note` is shown behind ("loss 0.412  lr 9.8e-04"). The rate counts from the
  /// first update, so that resumed work shows its own.
  void update(int64_t done, const std::string& note = "");
  void finish(const std::string& note = "");

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A line on stderr that does not break a progress line that is being redrawn.
void say(const std::string& line);

/// Set by SIGINT and SIGTERM once install_stop_handlers() was called; long work looks at it and
/// saves.
bool stop_requested();
int stop_signal();
void install_stop_handlers();

}  // namespace convpass
