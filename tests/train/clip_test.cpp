#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "convpass/core/error.h"
#include "convpass/train/build.h"
#include "convpass/train/evaluate.h"
#include "train/tiny_run.h"

namespace convpass {
namespace {

const std::filesystem::path kClip = std::filesystem::path(CONVPASS_TEST_DATA) / "clip";

/// Runs on the tiny CLIP of tests/reference/clip_zero_shot.py, whose classes are those of the
/// images.
class Clip : public TinyRun {
 protected:
  Recipe clip_recipe(std::vector<std::string> sets = {}) const {
    sets.insert(sets.begin(),
                {"backbone.weights=" + (kClip / "model.safetensors").string(), "head.type=cosine",
                 "head.text=" + (kClip / "text.safetensors").string()});
    return tiny_recipe(sets);
  }
  /// The texts of another file, edited.
  std::filesystem::path texts(const std::function<void(TensorMap&)>& edit) const {
    TensorMap map = load_tensors(kClip / "text.safetensors");
    edit(map);
    const std::filesystem::path file = folder() / "texts.safetensors";
    save_safetensors(file, map);
    return file;
  }
  static std::string error_of(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
};

TEST_F(Clip, ARecipeIsAZeroShotClassifierBeforeItIsTrained) {
  const TensorMap wanted = load_tensors(kClip / "expected.safetensors");
  const LoadedModel loaded = load_untrained_model(clip_recipe());
  EXPECT_EQ(loaded.classes, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_NEAR(loaded.input.mean[0], 0.48145466, 1e-9);  // CLIP's own where the recipe has none
  EXPECT_TRUE(at::allclose(loaded.model.logits(wanted.at("images"), Pass{}), wanted.at("logits"),
                           1e-5, 1e-4));
  EXPECT_NE(error_of([&] { load_untrained_model(tiny_recipe()); }).find("/head/type: got a head"),
            std::string::npos);
}

TEST_F(Clip, ARunKeepsAllThatItsAdapterNeeds) {
  const Recipe recipe = clip_recipe({"train.epochs=2", "optimizer.lr=0.001"});
  train(recipe, folder() / "run", false);
  const TensorMap file = load_tensors(folder() / "run/adapter.safetensors"),
                  text = load_tensors(kClip / "text.safetensors");
  EXPECT_TRUE(at::equal(file.at("head.projection"), text.at("projection")));
  EXPECT_TRUE(at::equal(file.at("head.scale"), text.at("scale")));
  EXPECT_FALSE(at::equal(file.at("head.weight"), text.at("embeddings")));
  // Without the texts.
  const LoadedModel loaded =
      load_tuned_model(folder() / "run/adapter.safetensors", kClip / "model.safetensors",
                       DeviceChoice::cpu, Precision::f32);
  TunedModel again = build_model(recipe, 3);
  apply_adapter(load_adapter(folder() / "run/adapter.safetensors"), again);
  const at::Tensor images = load_tensors(kClip / "expected.safetensors").at("images");
  EXPECT_TRUE(
      at::allclose(loaded.model.logits(images, Pass{}), again.logits(images, Pass{}), 1e-5, 1e-4));
}

TEST_F(Clip, ARunIsNotResumedFromOtherTexts) {
  const std::filesystem::path file = texts([](TensorMap&) {});
  const Recipe recipe =
      clip_recipe({"head.text=" + file.string(), "train.epochs=2", "train.save_every=4"});
  leave_killed_run(recipe, folder() / "run", 4);
  texts([](TensorMap& map) { map.tensors["scale"] = at::full({}, 10.f); });
  const std::string error = error_of([&] { train(recipe, folder() / "run", true); });
  EXPECT_NE(error.find("text: got"), std::string::npos) << error;
  texts([](TensorMap&) {});
  EXPECT_TRUE(train(recipe, folder() / "run", true).finished);
}

TEST_F(Clip, TextsOfOtherClassesOrWidthsAreRefused) {
  auto refusal = [&](const std::function<void(TensorMap&)>& edit) {
    const std::filesystem::path file = texts(edit);
    const std::string error = error_of(
        [&] { train(clip_recipe({"head.text=" + file.string()}), folder() / "run", false); });
    EXPECT_EQ(error.rfind(file.string() + ": ", 0), 0u) << error;
    EXPECT_FALSE(std::filesystem::exists(folder() / "run"));
    return error;
  };
  const std::pair<std::function<void(TensorMap&)>, std::string> cases[] = {
      {[](TensorMap& map) { map.metadata["classes"] = R"(["a", "c", "b"])"; },
       R"(its class 1 is "c", wanted "b" as in data.train)"},
      {[](TensorMap& map) {
         map.metadata["classes"] = R"(["a", "b"])";
         map.tensors["embeddings"] = map.at("embeddings").narrow(0, 0, 2).clone();
       },
       "got 2 classes, wanted 3 like data.train"},
      {[](TensorMap& map) {
         map.tensors["projection"] = at::ones({8, 768});
       },
       "got a projection from 768 features, wanted one from the backbone's 32"},
      {[](TensorMap& map) { map.tensors.erase("projection"); },
       "got embeddings of width 8, wanted 32"},
  };
  for (const auto& [edit, says] : cases) {
    const std::string error = refusal(edit);
    EXPECT_NE(error.find(says), std::string::npos) << error << "\nlacks " << says;
  }
  EXPECT_NE(error_of([&] {
              train(clip_recipe({R"(head.text="")"}), folder() / "run", false);
            }).find("/head/text: missing"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              validate(clip_recipe({"head.type=linear"}), true);
            }).find("/head/text: got embeddings for another head"),
            std::string::npos);
}

TEST_F(Clip, NamesThatAreNumbersStandInTheirOrderToo) {
  // As folders they are 0, 10, 2; as the lines of a file they may count otherwise.
  const char* names[] = {"0", "10", "2"};
  for (const char* split : {"train", "val", "test"})
    for (size_t i = 0; i < 3; ++i)
      std::filesystem::rename(
          folder() / "images" / split / std::string(1, static_cast<char>('a' + i)),
          folder() / "images" / split / names[i]);
  auto train_on = [&](const char* classes) {
    const auto file = texts([&](TensorMap& map) { map.metadata["classes"] = classes; });
    return error_of([&] {
      train(clip_recipe({"head.text=" + file.string(), "train.epochs=1"}), folder() / "run", false);
    });
  };
  EXPECT_NE(train_on(R"(["0", "2", "10"])").find(R"(its class 1 is "2", wanted "10")"),
            std::string::npos);
  EXPECT_EQ(train_on(R"(["0", "10", "2"])"), "no error");
}

TEST_F(Clip, ARunOnAListKeepsTheNamesOfTheTexts) {
  for (const char* split : {"train", "val", "test"}) {
    std::ofstream list(folder() / (std::string(split) + ".txt"));
    for (int label = 0; label < 3; ++label)
      for (int i = 0; i < 4; ++i)
        list << "images/" << split << "/" << static_cast<char>('a' + label) << "/" << i << ".bmp "
             << label << "\n";
  }
  std::vector<std::string> sets{"train.epochs=1"};
  for (const char* split : {"train", "val", "test"})
    sets.push_back("data." + std::string(split) + R"(={"format": "list", "path": ")" +
                   (folder() / split).string() + ".txt\"}");
  train(clip_recipe(sets), folder() / "run", false);
  EXPECT_EQ(load_adapter(folder() / "run/adapter.safetensors").classes,
            (std::vector<std::string>{"a", "b", "c"}));
}

TEST_F(Clip, TextsWithoutNamesTakeThoseOfTheTrainingSet) {
  const auto file = texts([](TensorMap& map) { map.metadata.clear(); });
  const std::string set = "head.text=" + file.string();
  EXPECT_EQ(load_untrained_model(clip_recipe({set})).classes,
            (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(load_untrained_model(clip_recipe({set, "data.train.path=/absent"})).classes,
            (std::vector<std::string>{"0", "1", "2"}));
}

TEST_F(Clip, OfFewerClassesTheseAloneAreAnswers) {
  const LoadedModel loaded = load_untrained_model(clip_recipe());
  const ImagePipeline pipeline(loaded.input, AugmentConfig{});
  // The folders b and c, as a set of two classes.
  std::filesystem::create_directories(folder() / "few");
  for (const char* name : {"b", "c"})
    std::filesystem::copy(folder() / "images/test" / name, folder() / "few" / name);
  const auto few = open_dataset({.source = FolderSource{folder() / "few"}}, {}, 3, "few");
  // In any order: folders are sorted, the model's classes need not be.
  for (const std::vector<int64_t>& among : {std::vector<int64_t>{1, 2}, {2, 0}}) {
    const Metrics metrics =
        evaluate(loaded.model, *few, pipeline, {.batch_size = 3, .among = among});
    // The same by hand: each image alone, of three logits those two.
    double loss = 0;
    int64_t right = 0;
    for (int64_t i = 0; i < few->size(); ++i) {
      at::Tensor input = at::empty({1, 3, pipeline.height(), pipeline.width()});
      pipeline.normalise(pipeline.evaluation_view(few->image(i)), input.data_ptr<float>());
      const at::Tensor logits =
          loaded.model.logits(input, Pass{})[0].index_select(0, at::tensor(among, at::kLong));
      right += logits.argmax().item<int64_t>() == few->label(i);
      loss -= at::log_softmax(logits, 0)[few->label(i)].item<double>();
    }
    EXPECT_EQ(metrics.images, 8);
    EXPECT_EQ(metrics.per_class.size(), 2u);
    EXPECT_DOUBLE_EQ(metrics.top1, static_cast<double>(right) / 8);
    EXPECT_DOUBLE_EQ(metrics.top5, 1);
    EXPECT_NEAR(metrics.loss, loss / 8, 1e-4);
  }
}

}  // namespace
}  // namespace convpass
