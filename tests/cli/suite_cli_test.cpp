#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "convpass/core/file.h"
#include "tests/cli/processes.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// `convpass suite` on two tiny runs with two seeds.
class CommandLineSuites : public Processes {
 protected:
  void SetUp() override {
    Processes::SetUp();
    write("other.json", R"({"extends": "recipe.json", "adapter": {"scale": 0.1}})");
    write_suite("");
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder() / name) << text;
  }
  void write_suite(const std::string& more) const {
    write("s.suite.json", R"({"seeds": [1, 2], "set": {"train": {"epochs": 4, "save_every": 1,
                                                                 "best_on_test_every": 2}},)" +
                              more + R"("runs": [
        {"name": "one", "group": "A", "recipe": "recipe.json", "published": 0.5},
        {"name": "two", "group": "B", "recipe": "other.json", "published": 0.7}]})");
  }
  std::vector<std::string> suite(const std::string& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> words{"suite", (folder() / "s.suite.json").string(), "--out",
                                   (folder() / out).string()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static std::vector<Json> lines_of(const std::string& out) {
    std::istringstream in(out);
    std::vector<Json> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
    return lines;
  }
  Json table(const std::string& out) const {
    return Json::parse(std::ifstream(folder() / out / "table.json"));
  }
};

constexpr const char* kTables[] = {"table.csv", "table.md", "table.json"};
constexpr const char* kRuns[] = {"one/seed1", "one/seed2", "two/seed1", "two/seed2"};

TEST_F(CommandLineSuites, PrintALineForEachRunAndTheMeansLast) {
  const Result first = run(suite("out"));
  ASSERT_EQ(first.status, 0) << first.err;
  const std::vector<Json> lines = lines_of(first.out);
  ASSERT_EQ(lines.size(), 5u);
  double mean = 0;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(lines[i]["name"], i < 2 ? "one" : "two");
    EXPECT_EQ(lines[i]["seed"], i % 2 + 1);
    EXPECT_TRUE(lines[i].contains("best_on_test"));
    mean += lines[i]["last"]["top1"].get<double>() / 4;
    const Json recipe = Json::parse(std::ifstream(folder() / "out" / kRuns[i] / "recipe.json"));
    EXPECT_EQ(recipe["train"]["seed"], i % 2 + 1);
  }
  EXPECT_EQ(lines[4]["finished"], 4);
  EXPECT_EQ(lines[4]["failed"], 0);
  const Json& overall = lines[4]["means"].back();
  EXPECT_EQ(overall["name"], "mean over all runs");
  EXPECT_NEAR(overall["last"]["mean"].get<double>(), mean, 1e-12);
  EXPECT_NEAR(overall["published"].get<double>(), 0.6, 1e-12);
  const Json written = table("out");
  EXPECT_EQ(written["lines"].size(), 6u);  // two runs, two groups, two means

  // What is finished is not trained again.
  const auto before = read_file(folder() / "out/one/seed1/log.jsonl");
  const fs::file_time_type time = fs::last_write_time(folder() / "out/one/seed1/result.json");
  const Result again = run(suite("out"));
  EXPECT_EQ(again.status, 0);
  EXPECT_EQ(again.out, first.out);
  EXPECT_EQ(read_file(folder() / "out/one/seed1/log.jsonl"), before);
  EXPECT_EQ(fs::last_write_time(folder() / "out/one/seed1/result.json"), time);
}

TEST_F(CommandLineSuites, TenKillsAtRandomMomentsEndInTheSameTable) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begun = Clock::now();
  ASSERT_EQ(run(suite("whole")).status, 0);
  const auto length = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begun);
  Rng rng(static_cast<uint64_t>(Clock::now().time_since_epoch().count()));
  int kills = 0;
  for (int attempt = 0; attempt < 200 && kills < 10; ++attempt) {
    const pid_t child = start(suite("killed"));
    std::this_thread::sleep_for(
        std::chrono::microseconds(rng.below(static_cast<uint64_t>(length.count()))));
    ::kill(child, SIGKILL);
    kills += wait_for(child).status == 128 + SIGKILL;
    for (const char* name : kTables) {  // whole or not there
      const fs::path file = folder() / "killed" / name;
      EXPECT_TRUE(!fs::exists(file) || fs::file_size(file) > 100) << name;
    }
    if (fs::exists(folder() / "killed/table.json")) {
      EXPECT_EQ(table("killed")["lines"].size(), 6u);
    }
    if (fs::exists(folder() / "killed/two/seed2/result.json")) fs::remove_all(folder() / "killed");
  }
  EXPECT_EQ(kills, 10);
  const Result last = run(suite("killed"));
  ASSERT_EQ(last.status, 0) << last.err;
  for (const char* name : kTables)
    EXPECT_EQ(read_file(folder() / "killed" / name), read_file(folder() / "whole" / name)) << name;
  for (const char* name : kRuns)
    EXPECT_EQ(read_file(folder() / "killed" / name / "adapter.safetensors"),
              read_file(folder() / "whole" / name / "adapter.safetensors"))
        << name;
  for (const auto& entry : fs::directory_iterator(folder() / "killed"))
    EXPECT_TRUE(fs::exists(folder() / "whole" / entry.path().filename())) << entry.path();
}

TEST_F(CommandLineSuites, TerminationSavesAndTheSameCommandGoesOn) {
  const std::vector<std::string> longer{"--set", "train.epochs=300"};
  const pid_t child = start(suite("out", longer));
  while (!fs::exists(folder() / "out/one/seed2/log.jsonl"))
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::kill(child, SIGTERM);
  const Result stopped = wait_for(child);
  EXPECT_EQ(stopped.status, 128 + SIGTERM) << stopped.err;
  EXPECT_NE(stopped.err.find("the same command goes on"), std::string::npos) << stopped.err;
  EXPECT_TRUE(fs::exists(folder() / "out/one/seed1/result.json"));
  EXPECT_TRUE(fs::exists(folder() / "out/one/seed2/checkpoint.pt"));
  EXPECT_EQ(table("out")["lines"][0]["status"], "1 of 2 seeds");
  EXPECT_EQ(table("out")["lines"][0]["complete"], false);
  EXPECT_EQ(lines_of(stopped.out).size(), 1u);
  // Another number of epochs is another recipe, which the run in the folder is not.
  const Result other = run(suite("out"));
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("is of another recipe"), std::string::npos) << other.err;
}

TEST_F(CommandLineSuites, AFailedRunDoesNotStopTheOthers) {
  fs::create_directories(folder() / "out/one");
  std::ofstream(folder() / "out/one/seed2") << "in the way";
  const Result result = run(suite("out"));
  EXPECT_EQ(result.status, 2) << result.err;
  const std::vector<Json> lines = lines_of(result.out);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_TRUE(lines[1].contains("error")) << lines[1];
  EXPECT_EQ(lines[4]["failed"], 1);
  EXPECT_EQ(lines[4]["finished"], 3);
  const Json written = table("out");
  EXPECT_EQ(written["lines"][0]["status"], "failed: 1 of 2 seeds");
  ASSERT_EQ(written["failures"].size(), 1u);
  EXPECT_EQ(written["failures"][0]["seed"], 2);
  // Once it is mended the same command ends what is left.
  fs::remove(folder() / "out/one/seed2");
  EXPECT_EQ(run(suite("out")).status, 0);
  EXPECT_TRUE(table("out")["failures"].empty());
}

TEST_F(CommandLineSuites, MissingDataStopsBeforeAnythingRunsOrIsLeftOut) {
  write("other.json", R"({"extends": "recipe.json", "data": {"test": {"path": "absent"}}})");
  const Result refused = run(suite("out"));
  EXPECT_EQ(refused.status, 2);
  EXPECT_EQ(refused.out, "");
  EXPECT_NE(refused.err.find("the data of 1 of 2 runs is missing: two (" +
                             (folder() / "absent").string() + ")"),
            std::string::npos)
      << refused.err;
  EXPECT_FALSE(fs::exists(folder() / "out"));

  const std::vector<std::string> check{"check", (folder() / "s.suite.json").string()};
  const Result checked = run(check);
  EXPECT_EQ(checked.status, 2);
  const std::vector<Json> found = lines_of(checked.out);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0]["whole"], true);
  EXPECT_EQ(found[1]["present"], false);

  write_suite(R"("missing": "skip",)");
  EXPECT_EQ(run(check).status, 0);
  const Result skipped = run(suite("out"));
  ASSERT_EQ(skipped.status, 0) << skipped.err;
  EXPECT_EQ(lines_of(skipped.out).back()["skipped"], 2);
  const Json written = table("out");
  EXPECT_EQ(written["lines"][1]["status"], "no data");
  EXPECT_EQ(written["lines"].back()["status"], "incomplete: 1 of 2 runs");

  EXPECT_EQ(run({"suite", (folder() / "recipe.json").string(), "--out", "x"}).status, 2);
  EXPECT_EQ(run({"suite", (folder() / "s.suite.json").string()}).status, 2);  // no --out
}

}  // namespace
}  // namespace convpass
