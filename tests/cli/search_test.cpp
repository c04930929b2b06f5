#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "convpass/core/file.h"
#include "tests/cli/processes.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// `convpass search` on the tiny data set.
class CommandLineSearch : public Processes {
 protected:
  std::vector<std::string> searching(const fs::path& out,
                                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words{"search", (folder() / "recipe.json").string(), "--out",
                                   out.string()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static std::vector<Json> lines(const std::string& text) {
    std::vector<Json> all;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) all.push_back(Json::parse(line));
    return all;
  }
  void expect_refusal(const std::vector<std::string>& more, const std::string& part) const {
    const Result result = run(searching(folder() / "refused", more));
    EXPECT_EQ(result.status, 2) << part << "\n" << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_FALSE(fs::exists(folder() / "refused"));
  }
};

TEST_F(CommandLineSearch, PrintsALineATrialAndTheChoiceAndATable) {
  const Result result = run(searching(
      folder() / "s", {"--over", "adapter.scale=0.5,1", "--over",
                       "adapter.conv_init=identity,xavier", "--seeds", "2", "--on", "val"}));
  ASSERT_EQ(result.status, 0) << result.err;
  const std::vector<Json> all = lines(result.out);
  ASSERT_EQ(all.size(), 5u);
  for (int trial = 0; trial < 4; ++trial) {
    const Json& line = all[static_cast<size_t>(trial)];
    EXPECT_EQ(line["trial"], trial);
    EXPECT_EQ(line["trained"], 1.0);
    EXPECT_EQ(line["val"]["per_seed"].size(), 2u);
    EXPECT_EQ(line["val"]["images"], 12);
  }
  EXPECT_EQ(all[1]["setting"], (Json{{"adapter.scale", 0.5}, {"adapter.conv_init", "xavier"}}));
  const Json& last = all[4];
  EXPECT_EQ(last["trials"], 4);
  EXPECT_EQ(last["setting"], all[last["chosen"].get<size_t>()]["setting"]);
  EXPECT_EQ(last["test"]["images"], 12);
  EXPECT_TRUE(fs::exists(fs::path(last["final"].get<std::string>()) / "adapter.safetensors"));
  EXPECT_NE(result.err.find("adapter.scale=0.5  adapter.conv_init=xavier"), std::string::npos);
  EXPECT_NE(result.err.find("<- chosen"), std::string::npos);
  // The last run is one like any other.
  const Json evaluated = Json::parse(run({"eval", (folder() / "s/final").string()}).out);
  EXPECT_EQ(evaluated["top1"], last["test"]["top1"]);
  const Result val = run({"eval", (folder() / "s/final").string(), "--split", "val"});
  EXPECT_EQ(val.status, 2);
  EXPECT_NE(val.err.find("of a run that trained on it"), std::string::npos) << val.err;
}

TEST_F(CommandLineSearch, RefusesInOneLineWhatItMustNotDo) {
  const std::string test = (folder() / "images/test").string();
  expect_refusal({"--over", "adapter.scale=1,2", "--on", "test"},
                 "--on: got \"test\", wanted \"val\": the test split never chooses");
  expect_refusal({"--over", "adapter.scale=1,2", "--set", "data.val.path=" + test},
                 "the test split never chooses");
  expect_refusal({"--over", "adapter.scale=1,2", "--set", "data.val=null"},
                 R"(such as {"format": "held_out", "fraction": 0.2})");
  expect_refusal({}, "wanted --over KEY=VALUE,VALUE,...");
  expect_refusal({"--over", "adapter.scale"}, "--over: got \"adapter.scale\"");
  expect_refusal({"--over", "adapter.scale=1,2", "--seeds", "0"}, "--seeds: got \"0\"");
}

TEST_F(CommandLineSearch, KilledAtRandomMomentsItEndsInTheSameBytes) {
  using Clock = std::chrono::steady_clock;
  const std::vector<std::string> settings{"--over",
                                          "optimizer.lr=1e-6,0.005,0.01,0.02",
                                          "--halving",
                                          "--seeds",
                                          "2",
                                          "--set",
                                          "train.epochs=8",
                                          "--set",
                                          "train.save_every=1"};
  const Clock::time_point begun = Clock::now();
  const Result whole = run(searching(folder() / "whole", settings));
  ASSERT_EQ(whole.status, 0) << whole.err;
  const auto length = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begun);

  const fs::path out = folder() / "killed";
  std::vector<std::string> resuming = settings;
  resuming.push_back("--resume");
  Rng rng(static_cast<uint64_t>(Clock::now().time_since_epoch().count()));
  int kills = 0;
  for (int attempt = 0; attempt < 100 && kills < 10; ++attempt) {
    const pid_t child = start(searching(out, resuming));
    std::this_thread::sleep_for(std::chrono::microseconds(rng.below(length.count() / 3)));
    ::kill(child, SIGKILL);
    kills += wait_for(child).status == 128 + SIGKILL;
  }
  EXPECT_EQ(kills, 10);
  const Result last = run(searching(out, resuming));
  ASSERT_EQ(last.status, 0) << last.err;
  EXPECT_EQ(read_file(out / "search.json"), read_file(folder() / "whole/search.json"));
  EXPECT_EQ(read_file(out / "final/adapter.safetensors"),
            read_file(folder() / "whole/final/adapter.safetensors"));
  const std::vector<Json> got = lines(last.out), wanted = lines(whole.out);
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i + 1 < got.size(); ++i) EXPECT_EQ(got[i], wanted[i]);
}

TEST_F(CommandLineSearch, TerminationSaysHowToGoOn) {
  const fs::path out = folder() / "s";
  const std::vector<std::string> settings{"--over", "adapter.scale=1,2", "--set",
                                          "train.epochs=200"};
  const pid_t child = start(searching(out, settings));
  while (!fs::exists(out / "trials/0/seed_42/log.jsonl"))
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::kill(child, SIGTERM);
  const Result stopped = wait_for(child);
  EXPECT_EQ(stopped.status, 128 + SIGTERM) << stopped.err;
  EXPECT_NE(stopped.err.find("the same command with --resume goes on"), std::string::npos)
      << stopped.err;
  EXPECT_TRUE(fs::exists(out / "trials/0/seed_42/checkpoint.pt"));
  EXPECT_FALSE(fs::exists(out / "final"));
  const Result again = run(searching(out, settings));
  EXPECT_EQ(again.status, 2);
  EXPECT_NE(again.err.find("give --resume to go on"), std::string::npos) << again.err;
}

TEST_F(CommandLineSearch, CheckTellsWhatIsHeldOut) {
  const Result checked = run({"check", (folder() / "recipe.json").string(), "--set",
                              R"(data.val={"format": "held_out", "fraction": 0.25})"});
  EXPECT_EQ(checked.status, 0) << checked.err;
  EXPECT_NE(checked.err.find("data.train: 27 images, 3 classes\n"), std::string::npos);
  EXPECT_NE(checked.err.find("data.val: 9 images, 3 classes, held out of data.train"),
            std::string::npos)
      << checked.err;
  EXPECT_NE(checked.err.find("steps: 3 an epoch"), std::string::npos) << checked.err;
  const Result run_and_eval = run({"train", (folder() / "recipe.json").string(), "--set",
                                   R"(data.val={"format": "held_out", "fraction": 0.25})", "--set",
                                   "data.test=null", "--out", (folder() / "run").string()});
  ASSERT_EQ(run_and_eval.status, 0) << run_and_eval.err;
  const Json val = Json::parse(run({"eval", (folder() / "run").string(), "--split", "val"}).out);
  EXPECT_EQ(val["images"], 9);
  EXPECT_EQ(val["top1"], Json::parse(run_and_eval.out)["last"]["top1"]);
  EXPECT_EQ(
      Json::parse(run({"eval", (folder() / "run").string(), "--split", "train"}).out)["images"],
      27);
}

}  // namespace
}  // namespace convpass
