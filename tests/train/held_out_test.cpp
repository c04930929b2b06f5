#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "convpass/adapters/adapter_file.h"
#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/train/hyper_rule.h"
#include "src/train/splits.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

const std::string kHeldOut = R"(data.val={"format": "held_out", "fraction": 0.25})";

/// Tiny runs that hold a quarter of their training set, 12 images of each of 3 classes, out.
class HeldOutRuns : public TinyRun {
 protected:
  Recipe held_out(std::vector<std::string> sets = {}) const {
    sets.insert(sets.begin(), kHeldOut);
    return tiny_recipe(sets);
  }
  static std::set<std::string> names(const Dataset& dataset) {
    std::set<std::string> all;
    for (int64_t i = 0; i < dataset.size(); ++i) all.insert(dataset.name(i));
    return all;
  }
  nlohmann::json result_of(const std::string& name) const {
    return nlohmann::json::parse(std::ifstream(folder() / name / "result.json"));
  }
  TensorMap weights_of(const std::string& name) const {
    return load_adapter(folder() / name / "adapter.safetensors").weights;
  }
  void expect_same_weights(const std::string& a, const std::string& b) const {
    const TensorMap first = weights_of(a), second = weights_of(b);
    ASSERT_EQ(first.tensors.size(), second.tensors.size());
    for (const auto& [name, tensor] : first.tensors)
      EXPECT_TRUE(at::equal(tensor, second.at(name))) << name;
  }
};

TEST_F(HeldOutRuns, AreTheSameImagesWhateverTheSeedOfTheRun) {
  const Splits splits = open_splits(held_out());
  EXPECT_EQ(splits.train->size(), 27);
  EXPECT_EQ(splits.val->size(), 9);
  EXPECT_EQ(names(*open_splits(held_out({"train.seed=7"})).val), names(*splits.val));
  EXPECT_NE(names(*open_splits(held_out({"data.val.seed=7"})).val), names(*splits.val));
  for (const std::string& name : names(*splits.val))
    EXPECT_FALSE(names(*splits.train).contains(name)) << name;
  // One split alone, as eval and the rules open it.
  EXPECT_EQ(names(*open_split(held_out(), Split::train, 0)), names(*splits.train));
  EXPECT_EQ(names(*open_split(held_out(), Split::val, 0)), names(*splits.val));
}

TEST_F(HeldOutRuns, AreCutAfterPerClassAndLimit) {
  const Splits splits = open_splits(held_out({"data.train.per_class=8"}));
  EXPECT_EQ(splits.train->size(), 18);
  EXPECT_EQ(splits.val->size(), 6);
  EXPECT_THROW(open_splits(held_out({"data.train.per_class=1"})), Error);
  const Splits few = open_splits(held_out({"data.train.limit=20"}));
  EXPECT_EQ(few.train->size() + few.val->size(), 20);
}

TEST_F(HeldOutRuns, TrainOnTheRestAndEvaluateOnThePart) {
  ASSERT_TRUE(train(held_out({"data.test=null"}), folder() / "run", false).finished);
  const nlohmann::json result = result_of("run");
  EXPECT_EQ(result["last"]["split"], "val");
  EXPECT_EQ(result["last"]["images"], 9);
  // 27 images in batches of 8: three steps an epoch.
  std::ifstream log(folder() / "run/log.jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(log, line));
  EXPECT_EQ(nlohmann::json::parse(line)["step"], 3);
  // The resolved recipe says it again.
  const Recipe again = load_recipe(folder() / "run/recipe.json");
  EXPECT_EQ(std::get<HeldOutSource>(again.data.val->source).fraction, 0.25);
}

TEST_F(HeldOutRuns, ResumeInTheSameBytes) {
  const Recipe recipe = held_out({"train.steps=6", "train.save_every=3", "select=best_val"});
  train(recipe, folder() / "whole", false);
  leave_killed_run(recipe, folder() / "cut", 3);
  ASSERT_TRUE(train(recipe, folder() / "cut", true).finished);
  EXPECT_EQ(read_file(folder() / "whole/adapter.safetensors"),
            read_file(folder() / "cut/adapter.safetensors"));
  // Another part makes another run.
  EXPECT_THROW(
      train(held_out({"train.steps=6", "train.save_every=3", "select=best_val", "data.val.seed=1"}),
            folder() / "cut", true),
      Error);
}

TEST_F(HeldOutRuns, TeachersAreAskedAboutTheRestAlone) {
  for (const char* end : {".pt", ".json"})
    fs::copy_file(std::string(CONVPASS_TEST_DATA) + "/teacher/tiny" + end,
                  folder() / (std::string("teacher") + end));
  const std::vector<std::string> taught{R"(distill.teachers=[{"type": "torchscript", "file": ")" +
                                            (folder() / "teacher.pt").string() + "\"}]",
                                        "distill.view=fix_rs",
                                        "distill.store.file=" + (folder() / "s.store").string()};
  ASSERT_TRUE(train(held_out(taught), folder() / "run", false).finished);
  ASSERT_TRUE(train(held_out(taught), folder() / "again", false).finished);
  std::string text;
  try {
    train(tiny_recipe(taught), folder() / "all", false);
  } catch (const Error& error) {
    text = error.what();
  }
  EXPECT_NE(text.find("made from something else"), std::string::npos) << text;
}

TEST_F(HeldOutRuns, TrainedOnTooAreThoseOfThePlainRun) {
  const std::vector<std::string> plain{"data.val=null"};
  ASSERT_TRUE(train(tiny_recipe(plain), folder() / "plain", false).finished);
  ASSERT_TRUE(train(held_out({"data.train_on_val=true"}), folder() / "joint", false).finished);
  expect_same_weights("plain", "joint");
  EXPECT_EQ(result_of("joint")["best"], nullptr);
}

TEST_F(HeldOutRuns, AValOfItsOwnIsTrainedOnBehindTheTrainingSet) {
  const Splits splits = open_splits(tiny_recipe({"data.train_on_val=true"}));
  EXPECT_EQ(splits.train->size(), 48);
  EXPECT_EQ(splits.val, nullptr);
  EXPECT_EQ(splits.train->name(36), (folder() / "images/val/a/0.bmp").string());
  EXPECT_EQ(open_split(tiny_recipe({"data.train_on_val=true"}), Split::train, 0)->size(), 48);

  // A list that names both in this order is the same training set.
  std::ofstream list(folder() / "both.txt");
  for (int64_t i = 0; i < splits.train->size(); ++i)
    list << splits.train->name(i) << " " << splits.train->label(i) << "\n";
  list.close();
  ASSERT_TRUE(train(tiny_recipe({"data.train_on_val=true"}), folder() / "joint", false).finished);
  ASSERT_TRUE(train(tiny_recipe({R"(data.train={"format": "list", "root": "/", "path": ")" +
                                     (folder() / "both.txt").string() + "\"}",
                                 "data.val=null", R"(data.class_names=["a", "b", "c"])",
                                 R"(data.test={"format": "list", "root": "/", "path": ")" +
                                     (folder() / "both.txt").string() + "\"}"}),
                    folder() / "listed", false)
                  .finished);
  expect_same_weights("listed", "joint");
}

TEST_F(HeldOutRuns, RulesCountTheRest) {
  const Recipe resolved = resolve_rule(held_out({"rule=bit_hyperrule_light"}));
  EXPECT_EQ(resolved.rule, RecipeRule::none);  // opens, and does not see what is held out
  EXPECT_EQ(open_split(held_out({"rule=bit_hyperrule_light"}), Split::train, 0)->size(), 27);
}

}  // namespace
}  // namespace convpass
