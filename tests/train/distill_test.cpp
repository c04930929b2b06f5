#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "convpass/train/trainer.h"
#include "src/train/distiller.h"
#include "src/train/ema.h"
#include "src/train/splits.h"
#include "tests/train/tiny_run.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

/// A tiny run that learns from a TorchScript teacher of another size and normalisation, or from an
/// earlier tiny run.
class Distillation : public TinyRun {
 protected:
  void SetUp() override {
    TinyRun::SetUp();
    for (const char* end : {".pt", ".json"})
      fs::copy_file(std::string(CONVPASS_TEST_DATA) + "/teacher/tiny" + end,
                    folder() / (std::string("teacher") + end));
  }
  Recipe student(std::vector<std::string> sets = {}) const {
    std::vector<std::string> all{R"(distill.teachers=[{"type": "torchscript", "file": ")" +
                                     (folder() / "teacher.pt").string() + "\"}]",
                                 "loss.label_weight=0", "train.epochs=4"};
    all.insert(all.end(), sets.begin(), sets.end());
    return tiny_recipe(all);
  }
  std::vector<uint8_t> adapter_of(const std::string& name, const Recipe& recipe) const {
    EXPECT_TRUE(train(recipe, folder() / name, fs::exists(folder() / name)).finished);
    return read_file(folder() / name / "adapter.safetensors");
  }
  nlohmann::json result_of(const std::string& name) const {
    return nlohmann::json::parse(std::ifstream(folder() / name / "result.json"));
  }
  std::string refusal(const Recipe& recipe) const {
    try {
      train(recipe, folder() / "refused", false);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
};

const char* const kViews[] = {"same",   "fix_rs",  "fix_cc",  "fix_ic_ens", "ind_rc",
                              "ind_ic", "same_rc", "same_ic", "mix"};

std::vector<std::string> view(const std::string& name) {
  std::vector<std::string> sets{"distill.view=" + name, "distill.ensemble_crops=5"};
  if (name.ends_with("_rc") || name.ends_with("_cc")) sets.push_back("augment.resize_to=20");
  return sets;
}

TEST_F(Distillation, StoredFloat32GivesTheBytesOfTheTeacherInTheLoop) {
  for (const char* name : kViews) {
    auto sets = view(name);
    const auto looped = adapter_of(std::string("loop_") + name, student(sets));
    sets.push_back("distill.store.file=" + (folder() / (std::string(name) + ".store")).string());
    EXPECT_EQ(looped, adapter_of(std::string("first_") + name, student(sets))) << name;
    EXPECT_EQ(looped, adapter_of(std::string("second_") + name, student(sets))) << name;
  }
}

TEST_F(Distillation, AnswersAskedOnceServeEverySeed) {
  for (const char* name : {"fix_rs", "fix_cc", "fix_ic_ens"})
    for (const char* seed : {"1", "2"}) {
      auto sets = view(name);
      sets.push_back(std::string("train.seed=") + seed);
      const auto looped = adapter_of(std::string("loop_") + name + seed, student(sets));
      sets.push_back("distill.store.file=" + (folder() / (std::string(name) + ".store")).string());
      EXPECT_EQ(looped, adapter_of(std::string("stored_") + name + seed, student(sets))) << name;
    }
}

TEST_F(Distillation, ViewsDiffer) {
  // The hash of the recipe is in the file's metadata, so that its bytes would always differ.
  std::vector<at::Tensor> heads;
  for (const char* name : kViews) {
    adapter_of(name, student(view(name)));
    heads.push_back(
        load_adapter(folder() / name / "adapter.safetensors").weights.at("head.weight"));
  }
  for (size_t i = 0; i < heads.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      // Without augmentation both see the evaluation view, of the student's or the teacher's own
      // preprocessing; here they are the same.
      const bool same = std::string(kViews[j]) == "same" && std::string(kViews[i]) == "fix_rs";
      EXPECT_EQ(at::equal(heads[i], heads[j]), same) << kViews[i] << " " << kViews[j];
    }
}

TEST_F(Distillation, StoredEpochsRepeatWithAndWithoutTheFile) {
  auto sets = view("mix");
  sets.push_back("distill.store.epochs=2");
  const auto looped = adapter_of("loop", student(sets));
  sets.push_back("distill.store.file=" + (folder() / "two.store").string());
  EXPECT_EQ(looped, adapter_of("stored", student(sets)));
  const auto bytes = fs::file_size(folder() / "two.store");
  sets[2] = "distill.store.epochs=4";
  sets[3] = "distill.store.file=" + (folder() / "four.store").string();
  EXPECT_NE(looped, adapter_of("four", student(sets)));
  EXPECT_GT(fs::file_size(folder() / "four.store"), bytes + bytes / 2);
}

TEST_F(Distillation, SixStepsEqualThreeThenResumeThenThree) {
  auto sets = view("mix");
  sets.insert(sets.end(),
              {"train.steps=6", "train.save_every=3", "train.ema_decay=0.9", "distill.feature=0",
               "distill.store.file=" + (folder() / "resume.store").string()});
  const Recipe recipe = student(sets);
  const auto whole = adapter_of("whole", recipe);
  leave_killed_run(recipe, folder() / "cut", 3);
  EXPECT_EQ(whole, adapter_of("cut", recipe));
  EXPECT_TRUE(result_of("cut").contains("weights"));
}

TEST_F(Distillation, IsResumedWithTheTeacherThatItBeganWith) {
  const Recipe recipe = student({"train.steps=6", "train.save_every=3"});
  leave_killed_run(recipe, folder() / "cut", 3);
  std::ofstream(folder() / "teacher.json")
      << R"({"classes": ["a", "b", "c"], "input": {"size": 8, "mean": [0,0,0], "std": [1,1,1]}})";
  try {
    train(recipe, folder() / "cut", true);
    ADD_FAILURE() << "no error";
  } catch (const FileError& error) {
    EXPECT_NE(std::string(error.what()).find("teachers.0.input.mean.0: got 0.0, wanted 0.5"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(Distillation, AStoreIsRefusedForEverySettingThatItDependsOn) {
  auto stored = [&](std::vector<std::string> sets) {
    sets.push_back("distill.store.file=" + (folder() / "s.store").string());
    return student(sets);
  };
  auto expect_refusal = [&](std::vector<std::string> sets, const std::string& says) {
    const std::string got = refusal(stored(std::move(sets)));
    EXPECT_NE(got.find("made from something else: " + says), std::string::npos) << got;
    EXPECT_FALSE(fs::exists(folder() / "refused"));
  };
  // Lambda is one for all micro-batches of a step.
  adapter_of("mix", stored({"distill.view=mix"}));
  expect_refusal({"distill.view=mix", "train.accumulate=2"}, "accumulate: got 1, wanted 2");
  // Without mixing the batches are the same ones.
  fs::remove(folder() / "s.store");
  adapter_of("crop", stored({"distill.view=same_ic"}));
  adapter_of("steps", stored({"distill.view=same_ic", "train.accumulate=2"}));
  // The box of CutMix is drawn in the student's pixels.
  const std::vector<std::string> cutmix{"augment.cutmix=1"};
  fs::remove(folder() / "s.store");
  adapter_of("cutmix", stored(cutmix));
  expect_refusal({"augment.cutmix=1", "backbone.image_size=32"}, "student_size.0: got 16");
  // Other images in the same folder.
  fs::remove(folder() / "s.store");
  adapter_of("fixed", stored({"distill.view=fix_rs"}));
  fs::rename(folder() / "images/train/a/0.bmp", folder() / "images/train/a/00.bmp");
  expect_refusal({"distill.view=fix_rs"}, "images: got");
}

TEST_F(Distillation, StoresWhereAccumulateDoesNotDivideTheBatches) {
  // 36 images in batches of 8: four, or with the partial one five, an epoch.
  for (const char* drop_last : {"true", "false"}) {
    std::vector<std::string> sets{"distill.view=mix", "train.accumulate=3",
                                  std::string("train.drop_last=") + drop_last};
    const auto looped = adapter_of(std::string("loop") + drop_last, student(sets));
    sets.push_back("distill.store.file=" + (folder() / drop_last).string());
    EXPECT_EQ(looped, adapter_of(std::string("first") + drop_last, student(sets)));
    EXPECT_EQ(looped, adapter_of(std::string("second") + drop_last, student(sets)));
  }
}

TEST_F(Distillation, TeachersWithoutNumbersToGiveLeaveNoStoreAndNoRun) {
  const fs::path file = folder() / "s.store";
  // A mean beyond float32 makes every logit infinite or none.
  std::ofstream(folder() / "teacher.json") << R"({"classes": ["a", "b", "c"],
      "input": {"size": 8, "mean": [0, 0, 0], "std": [1e-40, 1e-40, 1e-40]}})";
  for (const auto& store : {std::string(), file.string()}) {
    const std::string got = refusal(student({"distill.store.file=" + store}));
    EXPECT_NE(got.find("/distill/teachers/0: its answers: got values that are not finite"),
              std::string::npos)
        << got;
    EXPECT_FALSE(fs::exists(file));
    EXPECT_FALSE(fs::exists(folder() / "refused"));
  }
}

TEST_F(Distillation, BringsTheStudentNearerToTheTeacher) {
  const Recipe recipe = student({"train.epochs=30", "distill.view=same"});
  adapter_of("run", recipe);
  std::ifstream log(folder() / "run/log.jsonl");
  std::vector<double> kl;
  for (std::string line; std::getline(log, line);)
    kl.push_back(nlohmann::json::parse(line)["teacher"]["kl"]["mean"]);
  ASSERT_EQ(kl.size(), 30u);
  EXPECT_LT(kl.back(), kl.front() / 2);
  const auto result = result_of("run")["teacher"];
  for (const char* name : {"kl", "euclidean", "agree1", "agree5"})
    for (const char* part : {"mean", "min", "max"})
      EXPECT_TRUE(result[name].contains(part)) << name;
  EXPECT_LE(result["kl"]["min"], result["kl"]["mean"]);
}

TEST_F(Distillation, NeedsNoLabels) {
  fs::create_directories(folder() / "heap");
  for (const char* label : {"a", "b", "c"})
    for (int i = 0; i < 12; ++i)
      fs::copy_file(folder() / "images/train" / label / (std::to_string(i) + ".bmp"),
                    folder() / "heap" / (label + std::to_string(i) + ".bmp"));
  const std::string train_set =
      R"(data.train={"format": "images", "path": ")" + (folder() / "heap").string() + "\"}";
  const std::vector<std::string> sets{train_set, "data.val=null", "data.test=null"};
  adapter_of("run", student(sets));
  EXPECT_EQ(load_adapter(folder() / "run/adapter.safetensors").classes,
            (std::vector<std::string>{"a", "b", "c"}));  // the teacher's
  auto labelled = sets;
  labelled.push_back("loss.label_weight=1");
  EXPECT_NE(refusal(student(labelled)).find("data.train"), std::string::npos);
}

TEST_F(Distillation, LearnsFeaturesThroughAProjectionThatIsNotInTheAdapter) {
  adapter_of("teacher", tiny_recipe());
  const Recipe recipe = tiny_recipe({R"(distill.teachers={"type": "adapter", "adapter": ")" +
                                         (folder() / "teacher").string() + R"(", "backbone": ")" +
                                         weights().string() + "\"}",
                                     "loss.label_weight=0", "distill.kl=0", "distill.feature=1",
                                     "train.seed=5", "train.epochs=8"});
  adapter_of("student", recipe);
  for (const auto& [name, tensor] :
       load_adapter(folder() / "student/adapter.safetensors").weights.tensors)
    EXPECT_FALSE(name.starts_with("distill.")) << name;
  EXPECT_TRUE(
      load_tensors(folder() / "student/checkpoint.pt").has("model/distill.projection.0.weight"));
  std::ifstream log(folder() / "student/log.jsonl");
  std::vector<double> losses;
  for (std::string line; std::getline(log, line);)
    losses.push_back(nlohmann::json::parse(line)["train_loss"]);
  EXPECT_LT(losses.back(), losses.front());
}

TEST_F(Distillation, TeacherSeesTheStudentsViewInItsOwnSizeAndNormalisation) {
  const Recipe recipe = student(view("same_ic"));
  Distiller distiller(recipe);
  const Splits splits = open_splits(recipe, distiller.classes());
  InputConfig input = recipe.input;
  input.size = {8, 8};  // the teacher's: then the pixels are the same
  input.mean = {0.1, 0.2, 0.3};
  input.std = {0.9, 0.8, 0.7};
  distiller.prepare(input, 32, 0, c10::kCPU);
  const ImagePipeline pipeline(input, recipe.augment);
  std::vector<View> views{{.pipeline = &pipeline}};
  for (const View& each : distiller.views()) views.push_back(each);
  BatchStream stream(*splits.train, views, {.batch_size = 8});
  Batch batch;
  stream.next(batch);
  ASSERT_EQ(batch.views.size(), 2u);
  const auto teacher = load_teacher(recipe.distill.teachers[0], DeviceChoice::cpu);
  EXPECT_TRUE(at::allclose(batch.views[1], renormalized(batch.views[0], input, teacher->input()),
                           1e-5, 1e-5));
  // Mixed alike: the teacher is asked about the mixed image.
  const MixDraw mix =
      draw_mix({.mixup = 1, .style = MixStyle::funmatch}, {8, 3, 8, 8}, {.seed = 1});
  const at::Tensor mixed = renormalized(mix_images(batch.views[0], mix), input, teacher->input());
  EXPECT_TRUE(at::allclose(distiller.ask(batch, mix)[0].logits, teacher->ask(mixed, false).logits,
                           1e-4, 1e-5));
}

TEST_F(Distillation, SeveralTeachersAddOrAreAveraged) {
  const std::string one =
      R"({"type": "torchscript", "file": ")" + (folder() / "teacher.pt").string() + "\"}";
  auto head = [&](const std::string& name, const std::vector<std::string>& sets) {
    auto all = sets;
    all.insert(all.end(), {"optimizer.type=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0",
                           "train.steps=2", "adapter.dropout=0", "backbone.drop_path=0"});
    adapter_of(name, student(all));
    return load_adapter(folder() / name / "adapter.safetensors").weights.at("head.weight").clone();
  };
  const std::string twice = "distill.teachers=[" + one + "," + one + "]";
  const at::Tensor single = head("single", {});
  EXPECT_TRUE(at::allclose(head("mean", {twice, "distill.combine=mean"}), single, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(head("sum", {twice, "distill.kl=0.5"}), single, 1e-5, 1e-6));
  EXPECT_FALSE(at::allclose(head("more", {twice}), single, 1e-5, 1e-6));
}

TEST_F(Distillation, BadInputIsOneLine) {
  const std::string store = "distill.store.file=" + (folder() / "s.store").string();
  adapter_of("stored", student({store}));
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{store, "train.seed=9"}, "made from something else: seed: got 42, wanted 9"},
      {{store, "distill.view=fix_rs"}, "made from something else"},
      {{store, "distill.store.type=f16"}, "type: got \"f32\", wanted \"f16\""},
      {{store, "distill.feature=1"}, "/distill/store/file"},
      {{"distill.feature=1"}, "TorchScript teacher has no features"},
      {{"distill.kl=0"}, "/distill/kl"},
      {{"distill.view=mix", "augment.crop=random"}, "/augment/crop"},
      {{"distill.view=mix", "augment.mixup=0"}, "/augment/mixup"},
      {{"distill.view=same_ic", "augment.mixup=1", "augment.mix_style=funmatch"}, "/augment/mixup"},
      {{R"(distill.teachers={"type": "torchscript", "file": "none.pt"})"},
       "/distill/teachers/0/file: no such file"},
      {{R"(distill.teachers={"type": "adapter"})"}, "/distill/teachers/0/adapter: missing"},
      {{R"(distill.teachers={"type": "torchscript", "file": ")" + weights().string() + "\"}"},
       "tiny.safetensors: "},
      {{"distill.teachers=[]"}, "/loss/label_weight"},
  };
  for (const auto& [sets, says] : cases) {
    std::string got;
    try {
      got = refusal(student(sets));
    } catch (const Error& error) {
      got = error.what();
    }
    EXPECT_NE(got.find(says), std::string::npos) << got << "\nwanted: " << says;
    EXPECT_EQ(got.find('\n'), std::string::npos) << got;
  }
  EXPECT_THROW(student({"distill.temperature=0"}), RecipeError);
  // A teacher of other classes.
  std::ofstream(folder() / "teacher.json")
      << R"({"classes": ["a", "b", "d"], "input": {"size": 8, "mean": [0,0,0], "std": [1,1,1]}})";
  EXPECT_NE(refusal(student()).find("its class 2 is \"d\", wanted \"c\""), std::string::npos);
}

TEST_F(Distillation, ABitFromScratchLearnsAndNeedsNoCheckpointAfterwards) {
  const Recipe recipe =
      student({"backbone.weights=", "backbone.variant=bit root 32 widths 128-256 units 1-1",
               "backbone.image_size=16", "backbone.trainable=true", "backbone.drop_path=0",
               "adapter={\"type\": \"none\"}", "head.init=zero", "distill.view=mix",
               "optimizer.type=big_vision_adam", "optimizer.decay_norm_and_bias=false",
               "optimizer.clip_norm=1", "train.steps=6"});
  const auto whole = adapter_of("scratch", recipe);
  LoadedModel loaded = load_tuned_model(folder() / "scratch/adapter.safetensors", {},
                                        DeviceChoice::cpu, Precision::f32);
  const auto result = result_of("scratch");
  auto test = open_dataset(*recipe.data.test, {}, 0, "test");
  EXPECT_EQ(evaluate(loaded.model, *test, ImagePipeline(loaded.input, {}), {}).top1,
            result["test"]["top1"].get<double>());
  // And it teaches.
  const auto teacher =
      load_teacher({.source = AdapterTeacher{.adapter = folder() / "scratch", .backbone = {}}},
                   DeviceChoice::cpu);
  EXPECT_EQ(teacher->classes(), loaded.classes);
}

TEST_F(Distillation, AClassifiersCheckpointTeachesWithItsOwnHead) {
  const fs::path data = fs::path(CONVPASS_TEST_DATA) / "bit";
  const at::Tensor images = load_tensors(data / "images.safetensors").tensors.begin()->second;
  for (const char* port : {"timm/model.safetensors", "hf_bit/model.safetensors"}) {
    const fs::path weights = data / port;
    CheckpointTeacher source;
    source.weights = weights;
    source.image_size = {images.size(2), images.size(3)};
    const auto teacher = load_teacher({.source = source}, DeviceChoice::cpu);
    const TensorMap expected = load_tensors(weights.parent_path() / "expected.safetensors");
    EXPECT_TRUE(at::allclose(teacher->ask(images, false).logits, expected.at("logits"), 1e-4, 1e-5))
        << port;
  }
  CheckpointTeacher headless;
  headless.weights = weights();
  EXPECT_THROW(load_teacher({.source = headless}, DeviceChoice::cpu), FileError);
}

TEST(Ema, IsTheAverageOfItsFormulaAndSwaps) {
  NamedTensors weights{{"w", at::ones({2}).set_requires_grad(true)}};
  Ema ema({.decay = 0.75}, weights);
  {
    at::NoGradGuard no_grad;
    weights[0].second.fill_(3);
  }
  ema.update(1);  // 0.75 * 1 + 0.25 * 3
  EXPECT_TRUE(at::allclose(ema.state().at("w"), at::full({2}, 1.5)));
  ema.swap();
  EXPECT_TRUE(at::allclose(weights[0].second, at::full({2}, 1.5)));
  ema.swap();
  EXPECT_TRUE(at::allclose(weights[0].second, at::full({2}, 3.0)));
}

}  // namespace
}  // namespace convpass
