#include "convpass/train/search.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "src/train/trial_grid.h"
#include "tests/core/zip_files.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Strings = std::vector<std::string>;

TEST(SearchAxes, AreCutAtCommasOutsideBracketsAndQuotes) {
  const SearchAxis plain = parse_axis("adapter.scale=0.1,1,10");
  EXPECT_EQ(plain.key, "adapter.scale");
  EXPECT_EQ(plain.values, (Strings{"0.1", "1", "10"}));
  EXPECT_EQ(parse_axis("adapter.blocks=[0,1],[2,3],all").values,
            (Strings{"[0,1]", "[2,3]", "all"}));
  EXPECT_EQ(parse_axis(R"(a="x,\"y",{"k":[1,2]})").values,
            (Strings{R"("x,\"y")", R"({"k":[1,2]})"}));
  EXPECT_EQ(parse_axis("a=b=c").values, (Strings{"b=c"}));
  for (const char* wrong : {"adapter.scale", "=1", "a=", "a=1,", "a=1,,2", "a=1,2,1"})
    EXPECT_THROW(parse_axis(wrong), UsageError) << wrong;
}

TEST(SearchGrid, RunsThroughTheLastAxisFirst) {
  const std::vector<SearchAxis> axes{{"a", {"1", "2"}}, {"b", {"x", "y", "z"}}};
  const auto grid = trial_settings(axes, 0, 0);
  ASSERT_EQ(grid.size(), 6u);
  EXPECT_EQ(grid[1], (Setting{{"a", "1"}, {"b", "y"}}));
  EXPECT_EQ(grid[3], (Setting{{"a", "2"}, {"b", "x"}}));
  EXPECT_THROW(trial_settings({axes[0], axes[0]}, 0, 0), UsageError);
  const SearchAxis wide{"c", Strings(2000, "1")};
  EXPECT_THROW(trial_settings({axes[0], axes[1], wide}, 0, 0), UsageError);
}

TEST(SearchGrid, RandomDrawsAreDistinctSeededAndEven) {
  const std::vector<SearchAxis> axes{{"a", {"1", "2", "3"}}, {"b", {"x", "y", "z", "w"}}};
  const auto grid = trial_settings(axes, 0, 0);
  EXPECT_EQ(trial_settings(axes, 5, 3), trial_settings(axes, 5, 3));
  EXPECT_NE(trial_settings(axes, 5, 3), trial_settings(axes, 5, 4));
  EXPECT_EQ(trial_settings(axes, 99, 3), grid);
  std::map<Setting, int> drawn;
  for (int64_t seed = 0; seed < 600; ++seed) {
    const auto draw = trial_settings(axes, 5, seed);
    EXPECT_EQ(std::set(draw.begin(), draw.end()).size(), 5u);
    for (const Setting& setting : draw) ++drawn[setting];
  }
  for (const Setting& setting : grid) EXPECT_NEAR(drawn[setting], 250, 60);  // four deviations
}

/// Searches over the tiny run.
class Searches : public TinyRun {
 protected:
  SearchPlan plan(const Strings& over, SearchOptions options = {}, const Strings& sets = {}) const {
    for (const std::string& text : over) options.axes.push_back(parse_axis(text));
    return plan_search(folder() / "recipe.json", sets, options);
  }
  SearchOutcome run(const SearchPlan& plan, const std::string& name, bool resume = false) {
    ended_.clear();
    return search(plan, folder() / name, resume,
                  [&](const Trial& trial) { ended_.push_back(trial.number); });
  }
  Json json(const std::string& file) const { return Json::parse(std::ifstream(folder() / file)); }
  std::string refusal(const Strings& over, const Strings& sets = {}) {
    try {
      run(plan(over, {}, sets), "refused");
    } catch (const Error& error) {
      EXPECT_FALSE(fs::exists(folder() / "refused")) << error.what();
      const std::string text = error.what();
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      return text;
    }
    return "no error";
  }
  std::vector<uint8_t> adapter(const std::string& run) const {
    return read_file(folder() / run / "adapter.safetensors");
  }

  std::vector<int64_t> ended_;
};

TEST_F(Searches, RestOnRunsThatPauseAndEndInTheBytesOfAnUnbrokenOne) {
  const Recipe recipe = tiny_recipe({"train.epochs=8", "train.eval_every=5", "schedule.warmup=4"});
  ASSERT_TRUE(train(recipe, folder() / "whole", false).finished);
  for (const double share : {0.25, 0.25, 0.6}) {
    const TrainOutcome paused = train(recipe, folder() / "paused",
                                      {.resume = fs::exists(folder() / "paused"), .share = share});
    EXPECT_FALSE(paused.finished);
    EXPECT_TRUE(paused.paused);
    EXPECT_FALSE(fs::exists(folder() / "paused/adapter.safetensors"));
    std::ifstream log(folder() / "paused/log.jsonl");
    Json last;
    for (std::string line; std::getline(log, line);) last = Json::parse(line);
    EXPECT_EQ(last["epoch"], share < 0.5 ? 2 : 5);
    EXPECT_EQ(last["val"]["images"], 12);
  }
  ASSERT_TRUE(train(recipe, folder() / "paused", true).finished);
  EXPECT_EQ(read_file(folder() / "whole/adapter.safetensors"),
            read_file(folder() / "paused/adapter.safetensors"));
}

TEST_F(Searches, ChooseOnValTrainOnBothAndTestOnce) {
  const SearchPlan rates = plan({"optimizer.lr=1e-6,0.01,0.02"}, {.seeds = 2});
  const SearchOutcome outcome = run(rates, "s");
  ASSERT_TRUE(outcome.finished);
  EXPECT_EQ(ended_, (std::vector<int64_t>{0, 1, 2}));

  // The choice is the best of what the runs' own logs say.
  std::vector<double> means;
  for (int trial = 0; trial < 3; ++trial) {
    double sum = 0;
    for (int seed : {42, 43}) {
      const std::string run = "s/trials/" + std::to_string(trial) + "/seed_" + std::to_string(seed);
      const Json recipe = json(run + "/recipe.json"), result = json(run + "/result.json");
      EXPECT_FALSE(recipe["data"].contains("test")) << run;
      EXPECT_EQ(recipe["train"]["seed"], seed);
      EXPECT_EQ(result["test"], nullptr);
      EXPECT_EQ(result["last"]["split"], "val");
      sum += result["last"]["top1"].get<double>();
    }
    means.push_back(sum / 2);
    EXPECT_NEAR(outcome.trials[static_cast<size_t>(trial)].top1(0), means.back(), 1e-12);
  }
  EXPECT_LT(means[0], means[1]);  // a rate that learns nothing, or the test tells nothing
  const auto best = std::max_element(means.begin(), means.end()) - means.begin();
  EXPECT_EQ(means[static_cast<size_t>(outcome.chosen)], means[static_cast<size_t>(best)]);

  // The last run is that of a recipe which names both sets and the test split.
  const Json table = json("s/search.json");
  EXPECT_EQ(table["chosen"]["trial"], outcome.chosen);
  EXPECT_EQ(table["final"]["test"]["images"], 12);
  EXPECT_EQ(table["trials"].size(), 3u);
  EXPECT_EQ(table["trials"][1]["setting"]["optimizer.lr"], 0.01);
  const std::string lr =
      std::vector<std::string>{"1e-6", "0.01", "0.02"}[static_cast<size_t>(outcome.chosen)];
  const Recipe joint = tiny_recipe({"optimizer.lr=" + lr, "data.train_on_val=true"});
  ASSERT_TRUE(train(joint, folder() / "joint", false).finished);
  EXPECT_EQ(adapter("joint"), adapter("s/final"));
  EXPECT_EQ(json("joint/result.json")["test"], table["final"]["test"]);
}

TEST_F(Searches, OfEqualsTheEarlierTrialIsChosen) {
  // How often the log is written changes nothing of a run.
  const SearchOutcome outcome = run(plan({"train.log_every=3,1,2"}), "s");
  EXPECT_EQ(outcome.chosen, 0);
  EXPECT_NE(outcome.reason.find("equal to trial 1, whose mean loss is equal too"),
            std::string::npos)
      << outcome.reason;
}

TEST_F(Searches, OfEqualTop1TheLowerLossIsChosen) {
  // One image of each class to choose by: both rates get them right, the lower one with less
  // confidence.
  const SearchOutcome outcome =
      run(plan({"optimizer.lr=0.01,0.02"}, {}, {"data.val.per_class=1", "train.epochs=8"}), "s");
  const Trial &first = outcome.trials[0], &second = outcome.trials[1];
  ASSERT_EQ(first.right(0), second.right(0));
  ASSERT_NE(first.loss(0), second.loss(0));
  EXPECT_EQ(outcome.chosen, second.loss(0) < first.loss(0) ? 1 : 0);
  EXPECT_NE(outcome.reason.find("whose mean loss is higher"), std::string::npos) << outcome.reason;
}

TEST_F(Searches, NeverChooseOnTheTestSplit) {
  const std::string test = (folder() / "images/test").string();
  const Strings over{"adapter.scale=1,2"};
  EXPECT_NE(refusal(over, {"data.val.path=" + test}).find("the test split never chooses"),
            std::string::npos);
  // The same files by other ways: a link, a list, or a part of a training set that holds them.
  fs::create_directory_symlink(test, folder() / "other");
  EXPECT_NE(refusal(over, {"data.val.path=" + (folder() / "other").string()})
                .find("/data/test: got 12 of the 12 images of data.val again"),
            std::string::npos);
  std::ofstream(folder() / "list.txt") << "images/val/a/0.bmp 0\nimages/test/b/1.bmp 1\n";
  EXPECT_NE(refusal(over, {R"(data.val={"format": "list", "path": ")" +
                           (folder() / "list.txt").string() + "\"}"})
                .find("got 1 of the 2 images of data.val again, the first " + test + "/b/1.bmp"),
            std::string::npos);
  EXPECT_NE(refusal(over, {"data.train.path=" + test, R"(data.val={"format": "held_out"})"})
                .find("images of data.val again"),
            std::string::npos);
  EXPECT_NE(refusal(over, {"data.train.path=" + test}).find("images of data.train again"),
            std::string::npos);
}

TEST_F(Searches, TakePartsOfOneFileForOthersAndALinkForTheSame) {
  ZipContents arrays;
  for (const char* part : {"train", "val", "test"}) {
    const std::string name = part;
    arrays[name + "_images.npy"] = npy("|u1", "(6, 8, 8)", std::string(6 * 64, name[0]));
    arrays[name + "_labels.npy"] = npy("|u1", "(6,)", std::string("\0\1\2\0\1\2", 6));
  }
  std::ofstream(folder() / "all.npz", std::ios::binary) << zip_bytes(arrays);
  fs::create_symlink("all.npz", folder() / "link.npz");
  auto source = [&](const std::string& split, const std::string& file, const std::string& part) {
    return "data." + split + "={\"format\": \"npz\", \"path\": \"" + (folder() / file).string() +
           "\", \"images\": \"" + part + "_images\", \"labels\": \"" + part + "_labels\"}";
  };
  const Strings over{"adapter.scale=1,2"}, few{"train.steps=2", "train.batch_size=4"};
  Strings sets{source("train", "all.npz", "train"), source("val", "all.npz", "val"),
               source("test", "all.npz", "test")};
  sets.insert(sets.end(), few.begin(), few.end());
  EXPECT_TRUE(run(plan(over, {}, sets), "parts").finished);
  sets[2] = source("test", "link.npz", "val");
  EXPECT_NE(refusal(over, sets).find("got 6 of the 6 images of data.val again"), std::string::npos);
}

TEST_F(Searches, BuildEveryModelBeforeTheyTrainOne) {
  const std::string error = refusal({"adapter.blocks=[1],[5]"});
  EXPECT_EQ(error.rfind("--over adapter.blocks=[5]: ", 0), 0u) << error;
}

TEST_F(Searches, SayWhatTheyCannotSearch) {
  const std::pair<std::pair<Strings, Strings>, std::string> cases[] = {
      {{{"adapter.scale=1,2"}, {"data.val=null"}},
       "/data/val: missing, wanted images to choose by"},
      {{{"adapter.scale=1,2"}, {"select=best_val"}}, "/select: got \"best_val\", wanted \"last\""},
      {{{"adapter.scale=1,2"}, {"data.train_on_val=true"}}, "/data/train_on_val: got true"},
      {{{}, {}}, "wanted --over"},
      {{{"data.test.path=a,b"}, {}},
       "--over data.test.path: trials are compared on the same images"},
      {{{"train.seed=1,2"}, {}}, "--over train.seed: a seed is not chosen"},
      {{{"adapter.widht=1,2"}, {}}, "--over adapter.widht=1: --set: /adapter/widht: unknown key"},
      {{{"adapter.scale=1,big"}, {}},
       "--over adapter.scale=big: --set: /adapter/scale: wrong type"},
      {{{"adapter.scale=1,1.0"}, {}}, "the same recipe as with adapter.scale=1"},
      {{{"adapter.scale=1,2"}, {"backbone.weights=/absent"}}, "/absent"},
      {{{"adapter.scale=1,2"}, {"data.train.path=/absent"}}, "/absent"},
  };
  for (const auto& [what, says] : cases)
    EXPECT_NE(refusal(what.first, what.second).find(says), std::string::npos)
        << says << "\n"
        << refusal(what.first, what.second);
}

TEST_F(Searches, PassOverTrialsThatDiverge) {
  const Strings sgd{"optimizer.type=sgd"};
  const SearchOutcome outcome = run(plan({"optimizer.lr=1e30,0.01"}, {.seeds = 2}, sgd), "s");
  EXPECT_EQ(outcome.chosen, 1);
  EXPECT_TRUE(outcome.trials[0].diverged());
  EXPECT_EQ(json("s/search.json")["trials"][0]["val"], nullptr);
  EXPECT_FALSE(fs::exists(folder() / "s/trials/0/seed_43"));  // its first seed has spoken
  EXPECT_THROW(run(plan({"optimizer.lr=1e30,1e31"}, {}, sgd), "none"), Error);
  // After the last step there is no loss on train to tell.
  const Strings last{"optimizer.type=sgd", "adapter.type=none", "train.steps=1"};
  EXPECT_TRUE(run(plan({"optimizer.lr=3e38,0.01"}, {}, last), "l").trials[0].diverged());
}

TEST_F(Searches, TrainNoTrialThatLooksAtTheTestSplit) {
  const SearchOutcome outcome =
      run(plan({"adapter.scale=1,2"}, {}, {"train.best_on_test_every=1"}), "s");
  ASSERT_TRUE(outcome.finished);
  for (const char* trial : {"s/trials/0/seed_42/", "s/trials/1/seed_42/"}) {
    EXPECT_EQ(json(std::string(trial) + "result.json")["test"], nullptr);
    std::ifstream log(folder() / trial / "log.jsonl");
    for (std::string line; std::getline(log, line);)
      EXPECT_EQ(line.find("test"), std::string::npos) << line;
  }
}

TEST_F(Searches, HalvingStopsTheWorseHalfAndChangesNoneOfTheRest) {
  const Strings over{"optimizer.lr=1e-7,1e-6,0.01,0.02"}, sets{"train.epochs=8"};
  const SearchOutcome whole = run(plan(over, {}, sets), "whole");
  const SearchOutcome halved = run(plan(over, {.halving = true}, sets), "halved");
  EXPECT_EQ(ended_.size(), 4u);
  std::multiset<double> trained;
  const Json halved_table = json("halved/search.json");
  for (const Json& trial : halved_table["trials"]) trained.insert(trial["trained"].get<double>());
  EXPECT_EQ(trained, (std::multiset<double>{0.25, 0.25, 0.5, 1.0}));
  EXPECT_GE(halved.chosen, 2);
  const std::string best = "/trials/" + std::to_string(halved.chosen) + "/seed_42";
  EXPECT_EQ(adapter("whole" + best), adapter("halved" + best));
  ASSERT_EQ(whole.chosen, halved.chosen);
  EXPECT_EQ(adapter("whole/final"), adapter("halved/final"));
  // What was stopped has a checkpoint, and no result.
  EXPECT_TRUE(fs::exists(folder() / "halved/trials/0/seed_42/checkpoint.pt"));
  EXPECT_FALSE(fs::exists(folder() / "halved/trials/0/seed_42/result.json"));

  // Resumed when trials have come to different rungs, each rung is compared as it was.
  const auto table = read_file(folder() / "halved/search.json");
  for (const bool earlier : {false, true}) {
    Json cut = json("halved/search.json");
    for (Json& trial : cut["trials"]) {
      Json& val = trial["runs"][0]["val"];
      if (val.size() == 3 || (earlier && val.size() == 2)) val.erase(val.size() - 1);
    }
    std::ofstream(folder() / "halved/search.json") << cut;
    ASSERT_TRUE(run(plan(over, {.halving = true}, sets), "halved", true).finished);
    EXPECT_EQ(read_file(folder() / "halved/search.json"), table) << earlier;
  }
}

TEST_F(Searches, GoOnWhereTheyWereAndOnlyWithTheirOwnPlan) {
  const Strings over{"adapter.scale=1,2"};
  run(plan(over, {.seeds = 2}), "whole");
  run(plan(over, {.seeds = 2}), "s");
  const auto table = read_file(folder() / "s/search.json");
  EXPECT_EQ(table, read_file(folder() / "whole/search.json"));
  EXPECT_THROW(run(plan(over, {.seeds = 2}), "s"), Error);  // without --resume

  // As a kill after the first trial leaves it.
  Json cut = json("s/search.json");
  cut["chosen"] = cut["final"] = nullptr;
  for (Json& one : cut["trials"][1]["runs"]) one["val"] = Json::array();
  std::ofstream(folder() / "s/search.json") << cut;
  fs::remove_all(folder() / "s/final");
  fs::remove_all(folder() / "s/trials/1");
  const auto kept = fs::last_write_time(folder() / "s/trials/0/seed_42/result.json");
  ASSERT_TRUE(run(plan(over, {.seeds = 2}), "s", true).finished);
  EXPECT_EQ(ended_, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(read_file(folder() / "s/search.json"), table);
  EXPECT_EQ(fs::last_write_time(folder() / "s/trials/0/seed_42/result.json"), kept);
  ASSERT_TRUE(run(plan(over, {.seeds = 2}), "s", true).finished);  // again: nothing to do
  EXPECT_EQ(read_file(folder() / "s/search.json"), table);

  auto refused = [&](const SearchPlan& other) {
    try {
      run(other, "s", true);
    } catch (const FileError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(refused(plan({"adapter.scale=1,3"}, {.seeds = 2})).find("is of another search"),
            std::string::npos);
  EXPECT_NE(refused(plan(over, {.seeds = 3})).find("seeds: got 3, wanted 2"), std::string::npos);
  EXPECT_NE(refused(plan(over, {.seeds = 2}, {"train.epochs=4"})).find("is of another search"),
            std::string::npos);
}

TEST_F(Searches, RefuseADamagedSearchJsonAndLeaveIt) {
  const SearchPlan two = plan({"adapter.scale=1,2"});
  run(two, "s");
  const std::string file = (folder() / "s/search.json").string();
  const Json good = json("s/search.json");
  std::vector<std::string> bad{"", "[]", "{}", "null",
                               good.dump().substr(0, good.dump().size() / 2)};
  for (const auto& [pointer, value] :
       std::vector<std::pair<std::string, Json>>{{"/trials", 3},
                                                 {"/trials", Json::array()},
                                                 {"/trials/0/runs", "x"},
                                                 {"/trials/0/runs/0/seed", 1},
                                                 {"/trials/0/runs/0/val/0/right", 1e9},
                                                 {"/trials/0/runs/0/val/0/images", 0},
                                                 {"/trials/0/runs/0/val/0/loss", nullptr},
                                                 {"/trials/0/runs/0/diverged", "no"}}) {
    Json changed = good;
    changed[Json::json_pointer(pointer)] = value;
    bad.push_back(changed.dump());
  }
  for (const std::string& text : bad) {
    std::ofstream(file) << text;
    std::string message = "no error";
    try {
      run(two, "s", true);
    } catch (const FileError& error) {
      message = error.what();
    }
    EXPECT_EQ(message.find(file), 0u) << text << "\n" << message;
    EXPECT_TRUE(fs::exists(file));
  }
}

}  // namespace
}  // namespace convpass
