#include "convpass/train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <mutex>

#include "src/core/printable.h"

namespace convpass {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kPlainLine = std::chrono::seconds(10);
constexpr int64_t kBarWidth = 20;

std::mutex terminal_mutex;
bool line_is_open = false;  ///< a progress line stands on the terminal without its line end

volatile std::sig_atomic_t caught_signal = 0;

/// The first signal asks for a clean stop, the second does not wait for it.
void on_stop_signal(int signal) {
  if (caught_signal != 0) _exit(128 + signal);
  caught_signal = signal;
}

/// 0:07, 12:30, 1:02:30.
std::string duration(double seconds) {
  auto total = static_cast<int64_t>(std::clamp(seconds, 0.0, 3.6e8) + 0.5);
  char text[48];
  if (total >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", static_cast<long long>(total / 3600),
                  static_cast<long long>(total / 60 % 60), static_cast<long long>(total % 60));
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", static_cast<long long>(total / 60),
                  static_cast<long long>(total % 60));
  }
  return text;
}

size_t terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

void write_stderr(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

struct Progress::State {
  std::string what;
  int64_t total;
  std::string unit;
  bool terminal = isatty(STDERR_FILENO) != 0;
  bool finished = false;
  int64_t done = 0;
  Clock::time_point start = Clock::now();
  Clock::time_point shown = start;
  // The rate counts from the first update, so that neither a warm-up nor what a resumed run has
  // done before is in it.
  int64_t first_done = -1;
  Clock::time_point first_time = start;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start).count(); }
  /// 0 while unknown.
  double rate() const {
    double elapsed = std::chrono::duration<double>(Clock::now() - first_time).count();
    return first_done >= 0 && done > first_done && elapsed > 0
               ? static_cast<double>(done - first_done) / elapsed
               : 0;
  }
  std::string rate_text() const {
    char text[48];
    std::snprintf(text, sizeof text, rate() < 10 ? "%.2f" : "%.0f", rate());
    return std::string(text) + " " + unit + "s/s";
  }
  std::string line(const std::string& note) const {
    std::string text = what + " ";
    if (terminal && total > 0) {
      int64_t filled = std::clamp<int64_t>(done * kBarWidth / total, 0, kBarWidth);
      text += "[" + std::string(static_cast<size_t>(filled), '#') +
              std::string(static_cast<size_t>(kBarWidth - filled), '.') + "] ";
    }
    text += std::to_string(done) + "/" + std::to_string(total);
    if (rate() > 0) text += "  " + rate_text();
    if (rate() > 0 && done < total) {
      text += "  " + duration(static_cast<double>(total - done) / rate()) + " left";
    }
    return note.empty() ? text : text + "  " + note;
  }
  void draw(const std::string& note) {
    std::lock_guard lock(terminal_mutex);
    shown = Clock::now();
    std::string text = line(note);
    if (!terminal) {
      write_stderr(text + "\n");
      return;
    }
    // A line that wraps cannot be redrawn.
    size_t width = terminal_width();
    if (text.size() >= width) text.resize(width - 1);
    write_stderr("\r" + text + "\x1b[K");
    line_is_open = true;
  }
};

Progress::Progress(std::string what, int64_t total, std::string unit)
    : state_(new State{.what = std::move(what), .total = total, .unit = std::move(unit)}) {}

Progress::~Progress() {
  if (state_->finished) return;
  std::lock_guard lock(terminal_mutex);
  if (line_is_open) write_stderr("\n");
  line_is_open = false;
}

void Progress::update(int64_t done, const std::string& note) {
  State& state = *state_;
  if (state.first_done < 0) {
    state.first_done = done;
    state.first_time = Clock::now();
  }
  state.done = done;
  auto pause = state.terminal ? Clock::duration(kRedraw) : Clock::duration(kPlainLine);
  if (Clock::now() - state.shown >= pause) state.draw(note);
}

void Progress::finish(const std::string& note) {
  State& state = *state_;
  if (state.finished) return;
  state.finished = true;
  std::string text = state.what + ": " + std::to_string(state.done) + " " + state.unit +
                     (state.done == 1 ? "" : "s") + " in " + duration(state.seconds()) +
                     (state.rate() > 0 ? " (" + state.rate_text() + ")" : "") +
                     (note.empty() ? "" : "  " + note);
  say(text);
}

void say(const std::string& line) {
  std::lock_guard lock(terminal_mutex);
  write_stderr((line_is_open ? "\r\x1b[K" : "") + one_line(line) + "\n");
  line_is_open = false;
}

bool stop_requested() { return caught_signal != 0; }

int stop_signal() { return caught_signal; }

void install_stop_handlers() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace convpass
