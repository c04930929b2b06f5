// Whole runs of tiny networks.

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "convpass/train/optimizer.h"
#include "convpass/train/progress.h"
#include "convpass/train/schedule.h"
#include "convpass/train/trainer.h"
#include "src/train/splits.h"
#include "tests/adapters/reference.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

class Runs : public TinyRun {};

TEST_F(Runs, TrainEvaluateAndWriteWhatTheContractSays) {
  const Recipe recipe = tiny_recipe();
  const TrainOutcome outcome = train(recipe, folder() / "run", false);
  ASSERT_TRUE(outcome.finished);
  const auto result = nlohmann::json::parse(outcome.result_json);
  for (const char* key : {"run", "trainable_parameters", "total_parameters", "epochs", "last",
                          "best", "images_per_second", "wall_seconds"})
    EXPECT_TRUE(result.contains(key)) << key;
  EXPECT_EQ(result["last"]["split"], "test");
  EXPECT_EQ(result["last"]["images"], 12);
  EXPECT_EQ(result["best"]["split"], "val");
  EXPECT_GE(result["best"]["epoch"], 1);
  for (const char* name :
       {"recipe.json", "log.jsonl", "checkpoint.pt", "adapter.safetensors", "result.json"})
    EXPECT_TRUE(std::filesystem::exists(folder() / "run" / name)) << name;
  std::ifstream log(folder() / "run/log.jsonl");
  int lines = 0;
  for (std::string line; std::getline(log, line); ++lines)
    EXPECT_TRUE(nlohmann::json::parse(line).contains("train_loss"));
  EXPECT_EQ(lines, recipe.train.epochs);

  // The adapter file alone, with the backbone, gives the accuracy that the run reported.
  LoadedModel loaded = load_tuned_model(folder() / "run/adapter.safetensors",
                                        recipe.backbone.weights, DeviceChoice::cpu, Precision::f32);
  auto test = open_dataset(*recipe.data.test, {}, 0, "test");
  const Metrics metrics = evaluate(loaded.model, *test, ImagePipeline(loaded.input, {}), {});
  EXPECT_EQ(metrics.top1, result["last"]["top1"].get<double>());
  EXPECT_EQ(loaded.classes, test->classes());
}

TEST_F(Runs, SixStepsEqualThreeThenResumeThenThree) {
  for (const char* type : {"adamw", "adam", "sgd"}) {
    Recipe recipe =
        tiny_recipe({std::string("optimizer.type=") + type, "train.steps=6", "train.save_every=3"});
    const auto whole = folder() / (std::string("whole_") + type),
               cut = folder() / (std::string("cut_") + type);
    train(recipe, whole, false);
    leave_killed_run(recipe, cut, 3);
    EXPECT_FALSE(std::filesystem::exists(cut / "adapter.safetensors"));
    ASSERT_TRUE(train(recipe, cut, true).finished);
    EXPECT_EQ(read_file(whole / "adapter.safetensors"), read_file(cut / "adapter.safetensors"))
        << type;
  }
}

TEST_F(Runs, LogNothingTwiceWhereTheyWereCutBeforeACheckpoint) {
  const Recipe recipe = tiny_recipe({"train.epochs=2", "train.save_every=4"});
  train(recipe, folder() / "whole", false);
  leave_killed_run(recipe, folder() / "cut", 4);
  std::filesystem::remove(folder() / "cut/checkpoint.pt");
  std::ofstream(folder() / "cut/log.jsonl") << R"({"step": 4, "loss": 1.0})"
                                            << "\n{\"step\": 8, \"lo";
  train(recipe, folder() / "cut", true);
  std::vector<std::string> lines[2];
  for (size_t i = 0; i < 2; ++i) {
    std::ifstream log(folder() / (i == 0 ? "whole" : "cut") / "log.jsonl");
    for (std::string line; std::getline(log, line);)
      lines[i].push_back(nlohmann::json::parse(line)["loss"].dump());
  }
  EXPECT_EQ(lines[0], lines[1]);
}

TEST_F(Runs, AreNotTwoInOneFolder) {
  std::filesystem::create_directories(folder() / "run");
  const FolderLock other(folder() / "run");
  try {
    train(tiny_recipe({"train.epochs=1"}), folder() / "run", false);
    ADD_FAILURE() << "two runs";
  } catch (const FileError& error) {
    EXPECT_NE(std::string(error.what()).find("another convpass is at work"), std::string::npos);
  }
}

TEST_F(Runs, AreRepeatableAndTheSeedMatters) {
  auto bytes = [&](const std::string& name, std::vector<std::string> sets) {
    train(tiny_recipe(std::move(sets)), folder() / name, false);
    return load_adapter(folder() / name / "adapter.safetensors").weights.at("head.weight").clone();
  };
  const at::Tensor first = bytes("a", {});
  EXPECT_TRUE(at::equal(first, bytes("b", {})));
  EXPECT_TRUE(at::equal(first, bytes("c", {"train.workers=3", "data.cache_mb=0"})));
  EXPECT_FALSE(at::equal(first, bytes("d", {"train.seed=7"})));
}

TEST_F(Runs, FrozenWeightsStayFrozen) {
  const auto before = read_file(weights());
  train(tiny_recipe(), folder() / "run", false);
  EXPECT_EQ(before, read_file(weights()));
  const AdapterFile file = load_adapter(folder() / "run/adapter.safetensors");
  for (const auto& [name, tensor] : file.weights.tensors)
    EXPECT_NE(name.rfind("backbone.", 0), 0u) << name;
}

TEST_F(Runs, LinearProbeComputesFeaturesOnceAndEqualsThePlainWay) {
  // The plain way: an augmentation that never acts (a crop of everything) forbids the shortcut.
  const auto probe = tiny_recipe({"adapter.type=none"});
  const auto plain = tiny_recipe({"adapter.type=none", "augment.flip=1e-12"});
  train(probe, folder() / "probe", false);
  train(plain, folder() / "plain", false);
  const at::Tensor a =
      load_adapter(folder() / "probe/adapter.safetensors").weights.at("head.weight");
  const at::Tensor b =
      load_adapter(folder() / "plain/adapter.safetensors").weights.at("head.weight");
  EXPECT_TRUE(close(a, b, 1e-5));
}

TEST_F(Runs, FullFineTuningMovesAndSavesTheBackbone) {
  const Recipe recipe = tiny_recipe({"adapter.type=none", "backbone.trainable=true"});
  train(recipe, folder() / "run", false);
  const AdapterFile file = load_adapter(folder() / "run/adapter.safetensors");
  ASSERT_TRUE(file.weights.has("backbone.blocks.0.attn.qkv.weight"));
}

TEST_F(Runs, TheFirstBlocksOfAViTAreAsAFileThatHoldsNoMore) {
  TensorMap cut = load_tensors(weights());
  std::erase_if(cut.tensors,
                [](const auto& entry) { return entry.first.starts_with("blocks.1."); });
  const auto short_file = folder() / "weights/short.safetensors";
  save_safetensors(short_file, cut);
  const Recipe first = tiny_recipe({"backbone.blocks=1"});
  train(first, folder() / "first", false);
  train(tiny_recipe({"backbone.weights=" + short_file.string()}), folder() / "short", false);
  const auto adapter = folder() / "first/adapter.safetensors";
  const TensorMap got = load_adapter(adapter).weights;
  const TensorMap wanted = load_adapter(folder() / "short/adapter.safetensors").weights;
  ASSERT_EQ(got.tensors.size(), wanted.tensors.size());
  for (const auto& [name, tensor] : wanted.tensors)
    EXPECT_TRUE(close(got.at(name), tensor, 1e-5)) << name;

  // The adapter runs on the whole file and on the cut one, and on no other.
  for (const auto& file : {weights(), short_file})
    EXPECT_EQ(
        load_tuned_model(adapter, file, DeviceChoice::cpu, Precision::f32).model.backbone->depth(),
        1);
  cut.tensors.at("norm.weight").add_(1);
  save_safetensors(short_file, cut);
  EXPECT_THROW(load_tuned_model(adapter, short_file, DeviceChoice::cpu, Precision::f32), Error);

  for (const auto& [set, text] :
       {std::pair{"backbone.blocks=3", "/backbone/blocks: got 3, wanted 1 to 2"},
        {"adapter.blocks=[1]", "/adapter/blocks/0: got 1, wanted 0 to 0"}}) {
    try {
      build_model(tiny_recipe({"backbone.blocks=1", set}), 3);
      ADD_FAILURE() << set;
    } catch (const RecipeError& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
  }
}

TEST_F(Runs, AccumulatedMicroBatchesEqualTheBigBatch) {
  auto head = [&](const std::string& name, std::vector<std::string> sets) {
    sets.insert(sets.end(), {"adapter.dropout=0", "backbone.drop_path=0", "optimizer.type=sgd",
                             "optimizer.lr=0.1", "train.steps=3"});
    train(tiny_recipe(sets), folder() / name, false);
    return load_adapter(folder() / name / "adapter.safetensors").weights.at("head.weight").clone();
  };
  EXPECT_TRUE(close(head("big", {"train.batch_size=12"}),
                    head("small", {"train.batch_size=4", "train.accumulate=3"}), 1e-5));
}

TEST_F(Runs, AnEpochHasTheBatchesOfAStep) {
  // 36 images: nine batches of 4 an epoch.
  const std::vector<std::string> sets{"train.batch_size=4", "train.accumulate=10"};
  try {
    train(tiny_recipe(sets), folder() / "run", false);
    ADD_FAILURE() << "not refused";
  } catch (const RecipeError& error) {
    EXPECT_NE(std::string(error.what()).find("/train/accumulate: got 10, wanted at most 9"),
              std::string::npos)
        << error.what();
  }
  std::vector<std::string> across = sets;
  across.push_back("train.drop_last=false");
  train(tiny_recipe(across), folder() / "across", false);
}

TEST_F(Runs, LossThatIsNotFiniteNamesTheStepAndKeepsTheCheckpoint) {
  const Recipe recipe =
      tiny_recipe({"optimizer.type=sgd", "optimizer.lr=1e30", "train.save_every=1"});
  std::string text;
  try {
    train(recipe, folder() / "run", false);
  } catch (const Error& error) {
    text = error.what();
  }
  EXPECT_EQ(text.rfind("training: step ", 0), 0u) << text;
  EXPECT_NE(text.find("wanted finite numbers"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(folder() / "run/adapter.safetensors"));
  EXPECT_TRUE(std::filesystem::exists(folder() / "run/checkpoint.pt"));
}

TEST_F(Runs, AFolderThatHoldsARunIsNotOverwritten) {
  train(tiny_recipe(), folder() / "run", false);
  EXPECT_THROW(train(tiny_recipe(), folder() / "run", false), FileError);
  EXPECT_THROW(train(tiny_recipe({"optimizer.lr=0.5"}), folder() / "run", true), FileError);
  EXPECT_TRUE(
      train(tiny_recipe(), folder() / "run", true).finished);  // finished already: says so again
}

TEST_F(Runs, ResumeOnlyOnTheWeightsAndInputThatTheyBeganWith) {
  const Recipe recipe = tiny_recipe({"train.save_every=3", "train.steps=6"});
  leave_killed_run(recipe, folder() / "cut", 3);
  auto refusal = [&] {
    try {
      train(recipe, folder() / "cut", true);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const TensorMap held = load_tensors(weights());
  TensorMap own;
  for (const auto& [name, tensor] : held.tensors) own.tensors[name] = tensor.clone();
  TensorMap other = own;
  other.tensors["norm.bias"] = own.at("norm.bias") + 1;
  save_safetensors(weights(), other);
  EXPECT_NE(refusal().find("made_from.json: a run resumes with what it began with: backbone: got"),
            std::string::npos)
      << refusal();
  save_safetensors(weights(), own);
  const auto config = weights().parent_path() / "config.json";
  std::ofstream(config) << R"({"model_args": {"num_heads": 2},
                               "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}})";
  EXPECT_NE(refusal().find("input.mean.0: got 0.1, wanted 0.5"), std::string::npos) << refusal();
  std::ofstream(config) << R"({"model_args": {"num_heads": 2}})";
  EXPECT_EQ(refusal(), "no error");
}

TEST_F(Runs, ThatFailBeforeTheirFirstStepLeaveNothing) {
  const auto out = folder() / "above/run";
  EXPECT_THROW(train(tiny_recipe({"data.classes=2"}), out, false), Error);
  EXPECT_FALSE(std::filesystem::exists(folder() / "above"));
}

TEST_F(Runs, OfFewerImagesThanABatchAreRefusedWherePairsAreMixedOfAnOddNumber) {
  const Recipe recipe =
      tiny_recipe({"augment.mixup=0.8", "train.batch_size=100", "data.train.limit=31"});
  try {
    train(recipe, folder() / "run", false);
    ADD_FAILURE() << "no error";
  } catch (const RecipeError& error) {
    EXPECT_NE(
        std::string(error.what()).find("/train/batch_size: got a batch of all 31 training images"),
        std::string::npos)
        << error.what();
  }
  EXPECT_FALSE(std::filesystem::exists(folder() / "run"));
  // What is never mixed needs no pairs.
  EXPECT_TRUE(train(tiny_recipe({"augment.mixup=0.8", "augment.mix_probability=0",
                                 "train.batch_size=100", "data.train.limit=31"}),
                    folder() / "run", false)
                  .finished);
}

TEST_F(Runs, OfARuleSayThatASettingMayBeTheRules) {
  try {
    train(tiny_recipe({"rule=bit_hyperrule", "train.steps=2", "adapter.type=none"}),
          folder() / "run", false);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("/schedule/warmup: got 100"), std::string::npos) << text;
    EXPECT_TRUE(text.ends_with("(what the recipe does not give is BiT-HyperRule's)")) << text;
  }
}

TEST_F(Runs, AreRefusedWhereTheWarmUpIsLongerInTheOtherUnit) {
  // 36 images in batches of 8: four steps an epoch.
  for (const auto& [sets, says] :
       {std::pair<std::vector<std::string>, const char*>{
            {"schedule.unit=step", "schedule.warmup=9", "train.epochs=2"},
            "at most the run's 8 steps"},
        {{"schedule.unit=epoch", "schedule.warmup=3", "train.steps=8"},
         "at most the run's 2 epochs"}}) {
    try {
      train(tiny_recipe(sets), folder() / "run", false);
      ADD_FAILURE() << says;
    } catch (const RecipeError& error) {
      EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    }
    EXPECT_FALSE(std::filesystem::exists(folder() / "run"));
  }
}

TEST_F(Runs, SelectingByValTakesThatEpochsWeights) {
  const Recipe recipe = tiny_recipe({"select=best_val", "optimizer.lr=0.05"});
  const auto result = nlohmann::json::parse(train(recipe, folder() / "run", false).result_json);
  EXPECT_EQ(result["selected"], "best_val");
  LoadedModel loaded = load_tuned_model(folder() / "run/adapter.safetensors", weights(),
                                        DeviceChoice::cpu, Precision::f32);
  auto val = open_dataset(*recipe.data.val, {}, 0, "val");
  const Metrics metrics = evaluate(loaded.model, *val, ImagePipeline(loaded.input, {}), {});
  EXPECT_EQ(metrics.top1, result["best"]["top1"].get<double>());
}

TEST_F(Runs, WrongBackboneIsRefusedByHash) {
  train(tiny_recipe(), folder() / "run", false);
  TensorMap other = load_tensors(weights());
  other.tensors["norm.bias"] = other.at("norm.bias") + 1;
  save_safetensors(folder() / "other.safetensors", other);
  std::filesystem::copy_file(weights().parent_path() / "config.json", folder() / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THROW(load_tuned_model(folder() / "run/adapter.safetensors",
                                folder() / "other.safetensors", DeviceChoice::cpu, Precision::f32),
               Error);
}

TEST_F(Runs, NeedLabelsWhereALossOrAnEvaluationUsesThem) {
  auto failure = [&](const std::vector<std::string>& sets) {
    try {
      train(tiny_recipe(sets), folder() / "run", false);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(failure({"data.train.format=images"}),
            "data.train: got images without labels, wanted labels to train on");
  EXPECT_EQ(failure({"data.val.format=images"}),
            "data.val: got images without labels, wanted labels to evaluate on");
  EXPECT_EQ(failure({"data.test.format=images"}),
            "data.test: got images without labels, wanted labels to evaluate on");
}

TEST_F(Runs, ImagesWithoutLabelsTakeTheirClassesFromElsewhere) {
  Recipe recipe = tiny_recipe({"data.train.format=images"});
  recipe.loss.label_weight = 0;
  EXPECT_EQ(open_splits(recipe).train->classes(), (std::vector<std::string>{"a", "b", "c"}));
  recipe.data.classes = 4;
  EXPECT_THROW(open_splits(recipe), Error);
  recipe.data.val.reset();
  recipe.data.test.reset();
  EXPECT_EQ(open_splits(recipe).train->classes().size(), 4u);
  recipe.data.classes = 0;
  EXPECT_THROW(open_splits(recipe), Error);
  EXPECT_EQ(open_splits(recipe, {"u", "v"}).train->classes().back(), "v");
  recipe.data.class_names = {"x", "y"};
  EXPECT_EQ(open_splits(recipe).train->classes(), recipe.data.class_names);
}

// 36 images in batches of 8: four whole ones and one of four.
TEST_F(Runs, KeepThePartialBatchAndRunOnIntoTheNextEpoch) {
  for (const char* adapter : {"convpass", "none"}) {
    train(tiny_recipe({"train.drop_last=false", "train.epochs=2", "data.val=null",
                       std::string("adapter.type=") + adapter}),
          folder() / adapter, false);
    std::ifstream log(folder() / adapter / "log.jsonl");
    std::vector<int64_t> steps;
    for (std::string line; std::getline(log, line);)
      steps.push_back(nlohmann::json::parse(line)["step"].get<int64_t>());
    EXPECT_EQ(steps, (std::vector<int64_t>{5, 10})) << adapter;
  }
}

TEST_F(Runs, BrokenImagesStopItBeforeTrainingOrAreLeftOut) {
  std::ofstream(folder() / "images/train/b/broken.png") << "not an image";
  std::string text;
  try {
    train(tiny_recipe(), folder() / "run", false);
  } catch (const Error& error) {
    text = error.what();
  }
  EXPECT_EQ(text.rfind("data.train: 1 of ", 0), 0u) << text;
  EXPECT_FALSE(std::filesystem::exists(folder() / "run/log.jsonl"));
  EXPECT_TRUE(train(tiny_recipe({"data.on_error=skip"}), folder() / "skipping", false).finished);
}

}  // namespace
}  // namespace convpass
