#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "tests/train/official_rates.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::vector<Json> log_of(const fs::path& run) {
  std::ifstream in(run / "log.jsonl");
  std::vector<Json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

Json result_of(const fs::path& run) { return Json::parse(std::ifstream(run / "result.json")); }

class OfficialRuns : public TinyRun {
 protected:
  /// The official protocol on the tiny data set: everything that base.json says but the backbone.
  Recipe official(const std::vector<std::string>& sets) const {
    std::ofstream(folder() / "official.json") << R"({
      "extends": ")" << (fs::path(CONVPASS_SOURCE) / "recipes/vtab1k/base.json").string()
                                              << R"(",
      "backbone": {"weights": "weights/tiny.safetensors", "variant": "auto", "image_size": 16},
      "input": {"size": 16},
      "data": {"root": "images",
               "train": {"format": "folder", "path": "train"},
               "val": {"format": "folder", "path": "val"},
               "test": {"format": "folder", "path": "test"}},
      "train": {"batch_size": 12, "device": "cpu", "log_every": 1}
    })";
    return load_recipe(folder() / "official.json", sets);
  }
};

TEST_F(OfficialRuns, LogTheOfficialRatesAndEvaluateEveryTenEpochs) {
  train(official({"train.best_on_test_every=10"}), folder() / "run", false);
  const std::vector<double> rates = official_rates();
  const std::vector<Json> log = log_of(folder() / "run");
  ASSERT_EQ(log.size(), 100u);
  double best = -1;
  int64_t best_epoch = 0;
  for (size_t i = 0; i < log.size(); ++i) {
    EXPECT_EQ(log[i]["lr"].get<double>(), rates[i]) << "epoch " << i + 1;
    EXPECT_EQ(log[i].contains("val"), (i + 1) % 10 == 0) << "epoch " << i + 1;
    ASSERT_EQ(log[i].contains("test_top1"), (i + 1) % 10 == 0) << "epoch " << i + 1;
    if ((i + 1) % 10 != 0 || log[i]["test_top1"] <= best) continue;
    best = log[i]["test_top1"];
    best_epoch = static_cast<int64_t>(i + 1);
  }
  const Json result = result_of(folder() / "run");
  EXPECT_EQ(result["best_on_test"]["top1"], best);
  EXPECT_EQ(result["best_on_test"]["epoch"], best_epoch);
  EXPECT_EQ(result["last"]["top1"], log.back()["test_top1"]);
  EXPECT_EQ(result["selected"], "last");
}

TEST_F(OfficialRuns, LooksAtTheTestSplitChangeNothingButTheirOwnReport) {
  for (const char* select : {"last", "best_val"}) {
    const std::vector<std::string> plain{"train.epochs=20", "schedule.warmup=5",
                                         std::string("select=") + select};
    std::vector<std::string> looking = plain;
    looking.push_back("train.best_on_test_every=3");
    const fs::path blind = folder() / (std::string("blind_") + select),
                   seeing = folder() / (std::string("seeing_") + select);
    train(official(plain), blind, false);
    train(official(looking), seeing, false);
    const TensorMap one = load_tensors(blind / "adapter.safetensors"),
                    other = load_tensors(seeing / "adapter.safetensors");
    ASSERT_EQ(one.tensors.size(), other.tensors.size());
    for (const auto& [name, tensor] : one.tensors)
      EXPECT_TRUE(at::equal(tensor, other.at(name))) << name;
    const Json blind_result = result_of(blind), result = result_of(seeing);
    EXPECT_FALSE(blind_result.contains("best_on_test"));
    EXPECT_TRUE(result.contains("best_on_test"));
    for (const char* key : {"last", "test", "best", "selected"})
      EXPECT_EQ(result[key], blind_result[key]) << key;
    EXPECT_EQ(log_of(seeing).back()["epoch"], 20);
    EXPECT_TRUE(log_of(seeing).back().contains("test_top1"));  // epoch 20, the last
  }
}

TEST_F(OfficialRuns, AResumedRunKnowsItsEarlierLooks) {
  const Recipe recipe =
      official({"train.epochs=12", "schedule.warmup=5", "train.best_on_test_every=2"});
  const double after_7_epochs = 6.5 / 12;
  ASSERT_TRUE(train(recipe, folder() / "paused", {.share = after_7_epochs}).paused);
  train(recipe, folder() / "paused", true);
  train(recipe, folder() / "whole", false);
  EXPECT_EQ(result_of(folder() / "paused")["best_on_test"],
            result_of(folder() / "whole")["best_on_test"]);
}

TEST_F(OfficialRuns, ALookNeedsATestSplit) {
  const Recipe recipe = official({"data.test=null", "train.best_on_test_every=2"});
  try {
    validate(recipe, true);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what())
                  .find("/train/best_on_test_every: got 2 without data.test, wanted test images"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace convpass
