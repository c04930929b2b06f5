#include "convpass/train/recipe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

/// A folder of recipe files that goes when the test ends.
class RecipeFiles : public testing::Test {
 protected:
  fs::path write(const std::string& name, const std::string& text) const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  /// The message without the folder.
  std::string error_of(const fs::path& file, const std::vector<std::string>& sets = {},
                       bool needs_data = false) const {
    try {
      validate(load_recipe(file, sets), needs_data);
    } catch (const Error& error) {
      std::string text = error.what();
      for (size_t at; (at = text.find(folder_.path().string() + "/")) != std::string::npos;) {
        text.erase(at, folder_.path().string().size() + 1);
      }
      return text;
    }
    return "no error";
  }

  TempFolder folder_;
};

TEST_F(RecipeFiles, ResolvePathsAgainstTheFileThatNamesThem) {
  write("base/b.json", R"({"backbone": {"weights": "w.npz"},
                           "data": {"train": {"path": "train"}, "test": {"path": "test"}}})");
  fs::path child =
      write("child/c.json", R"({"extends": "../base/b.json", "data": {"test": {"path": "mine"}}})");
  Recipe recipe = load_recipe(child, {"data.val.path=val"});
  EXPECT_EQ(recipe.backbone.weights, folder_ / "base/w.npz");
  auto path = [](const std::optional<DatasetConfig>& config) {
    return std::get<FolderSource>(config->source).path;
  };
  EXPECT_EQ(path(recipe.data.train), folder_ / "base/train");
  EXPECT_EQ(path(recipe.data.test), folder_ / "child/mine");
  EXPECT_EQ(path(recipe.data.val), fs::current_path() / "val");
  EXPECT_EQ(recipe.file, child);
}

TEST_F(RecipeFiles, StartTheDataPathsAtTheRoot) {
  const fs::path file = write("r.json", R"({"backbone": {"weights": "w.npz"},
      "data": {"root": "images", "train": {"path": "train"}, "test": {"path": "test"}}})");
  auto path = [](const std::optional<DatasetConfig>& config) {
    return std::get<FolderSource>(config->source).path;
  };
  const Recipe recipe = load_recipe(file);
  EXPECT_EQ(recipe.data.root, folder_ / "images");
  EXPECT_EQ(path(recipe.data.train), folder_ / "images/train");
  EXPECT_EQ(recipe.backbone.weights, folder_ / "w.npz");
  const Recipe elsewhere = load_recipe(
      file, {"data.root=/data", "data.test.path=mine", "data.val.path=/v", "backbone.weights=w"});
  EXPECT_EQ(path(elsewhere.data.train), "/data/train");
  EXPECT_EQ(path(elsewhere.data.test), "/data/mine");
  EXPECT_EQ(path(elsewhere.data.val), "/v");
  EXPECT_EQ(elsewhere.backbone.weights, fs::current_path() / "w");
  // The root is a way to write the paths: the same paths without it are the same recipe.
  const Recipe without =
      load_recipe(file, {"data.root=", "data.train.path=" + (folder_ / "images/train").string(),
                         "data.test.path=" + (folder_ / "images/test").string()});
  EXPECT_EQ(recipe_hash(without), recipe_hash(recipe));
  EXPECT_NE(recipe_hash(elsewhere), recipe_hash(recipe));
}

TEST_F(RecipeFiles, OverlayGrandparentsInOrder) {
  write("a.json", R"({"train": {"epochs": 1, "batch_size": 2, "seed": 3}})");
  write("b.json", R"({"extends": "a.json", "train": {"epochs": 10, "batch_size": 20}})");
  fs::path c = write("c.json", R"({"extends": "b.json", "train": {"epochs": 100}})");
  Recipe recipe = load_recipe(c, {"train.seed=7", "train.seed=8"});
  EXPECT_EQ(recipe.train.epochs, 100);
  EXPECT_EQ(recipe.train.batch_size, 20);
  EXPECT_EQ(recipe.train.seed, 8);
}

TEST_F(RecipeFiles, NullUndoesWhatAParentSet) {
  write("a.json", R"({"adapter": {"width": 16}, "data": {"val": {"path": "v"}}})");
  fs::path b = write("b.json",
                     R"({"extends": "a.json", "adapter": {"width": null}, "data": {"val": null}})");
  EXPECT_EQ(std::get<ConvpassConfig>(load_recipe(b).adapter).width, 8);
  EXPECT_FALSE(load_recipe(b).data.val.has_value());
  EXPECT_EQ(
      std::get<ConvpassConfig>(load_recipe(folder_ / "a.json", {"adapter.width=null"}).adapter)
          .width,
      8);
}

TEST_F(RecipeFiles, AnotherChoiceDropsTheKeysOfTheParentsChoice) {
  fs::path a = write("a.json", R"({"adapter": {"type": "convpass", "width": 16},
      "data": {"train": {"format": "idx", "images": "i", "labels": "l", "per_class": 5}}})");
  Recipe recipe =
      load_recipe(a, {"adapter.type=none", "data.train.format=folder", "data.train.path=p"});
  EXPECT_TRUE(std::holds_alternative<NoAdapter>(recipe.adapter));
  EXPECT_TRUE(std::holds_alternative<FolderSource>(recipe.data.train->source));
  EXPECT_EQ(recipe.data.train->per_class, 5);
}

TEST_F(RecipeFiles, SetTakesJsonOrABareWord) {
  fs::path file = write("r.json", "{}");
  Recipe recipe =
      load_recipe(file, {"adapter.sites=[\"mlp\"]", "optimizer.lr=5e-3", "train.device=cpu",
                         "backbone.variant=vit_base_patch16", "backbone.trainable=true",
                         "about.source=a=b c", "adapter.blocks=all"});
  EXPECT_EQ(std::get<ConvpassConfig>(recipe.adapter).sites, std::vector<std::string>{"mlp"});
  EXPECT_EQ(recipe.optimizer.lr, 5e-3);
  EXPECT_EQ(recipe.train.device, DeviceChoice::cpu);
  EXPECT_TRUE(recipe.backbone.trainable);
  EXPECT_EQ(recipe.about.source, "a=b c");
}

TEST(Recipe, MalformedSetsAreUsageErrors) {
  for (const char* set : {"", "train.epochs", "=3", ".=3", "train..epochs=3", "train.=3",
                          "adapter.sites=[\"mlp\"", "train={\"epochs\":1,\"epochs\":2}"}) {
    EXPECT_THROW(recipe_from_sets({set}), UsageError) << set;
  }
}

TEST(Recipe, HashIgnoresWhatDoesNotChangeTheResult) {
  std::string hash = recipe_hash(recipe_from_sets({}));
  EXPECT_EQ(hash.size(), 16u);
  for (const char* set :
       {"about.measured=x", "train.device=cpu", "train.workers=3", "data.cache_mb=1"}) {
    EXPECT_EQ(recipe_hash(recipe_from_sets({set})), hash) << set;
  }
  for (const char* set :
       {"train.seed=1", "adapter.scale=0.1", "optimizer.lr=2e-3", "select=best_val"}) {
    EXPECT_NE(recipe_hash(recipe_from_sets({set})), hash) << set;
  }
}

TEST(Recipe, AutoPrecisionsAreResolved) {
  const Recipe recipe = recipe_from_sets(
      {"train.device=cpu", "train.precision=auto",
       R"(distill.teachers=[{"type":"torchscript","file":"t.pt","precision":"auto"}])"});
  const Precision wanted = resolve_precision(Precision::automatic, DeviceChoice::cpu);
  EXPECT_EQ(recipe.train.precision, wanted);
  EXPECT_EQ(recipe.distill.teachers.at(0).precision, wanted);
  EXPECT_EQ(recipe_json(recipe).find("\"precision\": \"auto\""), std::string::npos);
}

TEST(Recipe, HelpCoversEveryPart) {
  for (const char* part : {"", "about", "backbone", "adapter", "head", "data", "data.train",
                           "input", "augment", "loss", "optimizer", "schedule", "train"}) {
    EXPECT_GT(recipe_help(part).size(), 100u) << part;
  }
  try {
    recipe_help("adaptor");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean \"adapter\"?"), std::string::npos);
  }
}

TEST_F(RecipeFiles, ThatCannotBeFollowedNameBothFiles) {
  EXPECT_EQ(error_of(folder_ / "none.json"), "none.json: no such file, wanted a recipe (JSON)");
  EXPECT_NE(error_of(folder_.path()).find("not a file"), std::string::npos);
  fs::path lost = write("lost.json", R"({"extends": "sub/none.json"})");
  EXPECT_EQ(error_of(lost),
            "lost.json: /extends: no such file, got \"sub/none.json\", wanted a recipe");
  write("x.json", R"({"extends": "y.json"})");
  fs::path y = write("y.json", R"({"extends": "x.json"})");
  EXPECT_EQ(error_of(y),
            "x.json: /extends: a recipe cannot extend itself, got y.json -> x.json -> y.json");
  EXPECT_EQ(error_of(write("self.json", R"({"extends": "./self.json"})")),
            "self.json: /extends: a recipe cannot extend itself, got self.json -> self.json");
  EXPECT_EQ(error_of(write("list.json", R"({"extends": ["a.json"]})")),
            "list.json: /extends: wrong type, got a list of 1, wanted the path of one recipe");
  EXPECT_NE(error_of(write("dir.json", R"({"extends": "."})")).find("/extends: not a file"),
            std::string::npos);
  for (int i = 0; i < 40; ++i) {
    write("chain" + std::to_string(i) + ".json",
          "{\"extends\": \"chain" + std::to_string(i + 1) + ".json\"}");
  }
  EXPECT_NE(error_of(folder_ / "chain0.json").find("too many parents"), std::string::npos);
}

TEST_F(RecipeFiles, NameTheParentThatIsWrong) {
  write("base.json", R"({"adapter": {"widht": 4}})");
  fs::path child = write("child.json", R"({"extends": "base.json"})");
  EXPECT_EQ(error_of(child).substr(0, 27), "base.json: /adapter/widht: ");
}

struct Wrong {
  const char* text;       ///< of r.json
  const char* error;      ///< how the message begins, behind "r.json: "
  const char* near = "";  ///< the key or choice that is named as nearest
};

constexpr const char* kBackbone = R"("backbone": {"weights": "w.npz"})";

TEST_F(RecipeFiles, NameThePointerAndTheNearestKey) {
  const std::vector<Wrong> all{
      {R"({"adaptor": {}})", "/adaptor: unknown key", "adapter"},
      {R"({"extend": "x.json"})", "/extend: unknown key", "extends"},
      {R"({"trian": {"epochs": 3}})", "/trian: unknown key", "train"},
      {R"({"zebra": 1})", "/zebra: unknown key, got \"zebra\", wanted one of \"about\""},
      {R"({"adapter": {"widht": 8}})", "/adapter/widht: unknown key", "width"},
      {R"({"adapter": {"type": "convpas"}})", "/adapter/type: unknown choice", "convpass"},
      {R"({"adapter": {"type": "none", "width": 8}})",
       "/adapter/width: got a key of \"type\" \"convpass\""},
      {R"({"adapter": {"width": 0}})", "/adapter/width: out of range, got 0"},
      {R"({"adapter": {"width": 1e400}})", "/: not JSON: "},
      {R"({"adapter": {"scale": "1"}})", "/adapter/scale: wrong type, got \"1\", wanted a number"},
      {R"({"adapter": {"dropout": 1.5}})", "/adapter/dropout: out of range, got 1.5"},
      {R"({"adapter": {"conv_init": "Xavier"}})", "/adapter/conv_init: unknown choice", "xavier"},
      {R"({"adapter": []})", "/adapter: wrong type, got a list of 0, wanted an object"},
      {R"({"backbone": {"weigths": "w"}})", "/backbone/weigths: unknown key", "weights"},
      {R"({"backbone": {"image_size": -1}})", "/backbone/image_size: out of range, got -1"},
      {R"({"backbone": {"trainable": "yes"}})", "/backbone/trainable: wrong type, got \"yes\""},
      {R"({"data": {"trian": {}}})", "/data/trian: unknown key", "train"},
      {R"({"data": {"train": {"format": "folders"}}})", "/data/train/format: unknown choice",
       "folder"},
      {R"({"data": {"train": {"format": "list", "images": "x"}}})",
       "/data/train/images: got a key of \"format\""},
      {R"({"data": {"train": {"path": 3}}})",
       "/data/train/path: wrong type, got 3, wanted a string"},
      {R"({"optimizer": {"type": "adamW"}})", "/optimizer/type: unknown choice", "adamw"},
      {R"({"optimizer": {"lr": 0}})", "/optimizer/lr: out of range, got 0"},
      {R"({"optimizer": {"learning_rate": 1}})", "/optimizer/learning_rate: unknown key"},
      {R"({"schedule": {"warm_up": 3}})", "/schedule/warm_up: unknown key", "warmup"},
      {R"({"train": {"epochs": 1.5}})",
       "/train/epochs: wrong type, got 1.5, wanted a whole number"},
      {R"({"train": {"epochs": 99999999999999999999}})", "/train/epochs: out of range"},
      {R"({"train": {"epoch": 1}})", "/train/epoch: unknown key", "epochs"},
      {R"({"train": {"precision": "fp32"}})", "/train/precision: unknown choice", "f32"},
      {R"({"train": {"ema_decay": 1}})", "/train/ema_decay: out of range, got 1"},
      {R"({"train": {"ema_decay": -0.1}})", "/train/ema_decay: out of range, got -0.1"},
      {R"({"augment": {"mixup": -0.8}})", "/augment/mixup: out of range, got -0.8"},
      {R"({"augment": {"cutmix": -1}})", "/augment/cutmix: out of range, got -1"},
      {R"({"augment": {"repeated": 0}})", "/augment/repeated: out of range, got 0"},
      {R"({"train": {"batch_size": null}})", "/train/batch_size: wrong type, got null"},
      {R"({"select": "best"})", "/select: unknown choice", "best_val"},
      {R"({"select": "best_test"})", "/select: unknown choice, got \"best_test\""},
      {R"({"train": {}, "train": {}})", "/train: the key stands twice"},
      {R"(["train"])", "/: wrong type, got a list of 1, wanted an object"},
      {"{\"train\":\n {,}}", "/: not JSON: line 2, column 3: "},
      {"", "/: not JSON: line 1, column 1: "},
  };
  for (const Wrong& wrong : all) {
    std::string error = error_of(write("r.json", wrong.text));
    EXPECT_TRUE(error.starts_with(std::string("r.json: ") + wrong.error)) << wrong.text << "\n"
                                                                          << error;
    std::string near = std::string("(did you mean \"") + wrong.near + "\"?)";
    EXPECT_EQ(error.ends_with(near), *wrong.near != '\0') << wrong.text << "\n" << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST_F(RecipeFiles, ThatContradictThemselvesAreRefused) {
  const std::vector<Wrong> all{
      {R"({})", "/backbone/variant: got \"auto\" without weights"},
      {R"({B, "backbone2": 1})", "/backbone2: unknown key", "backbone"},
      {R"({"backbone": {"weights": "w", "image_size": [1, 2, 3]}})",
       "/backbone/image_size: wrong length"},
      {R"({"backbone": {"weights": "w", "trainable": true}, "train": {"precision": "int8"}})",
       "/train/precision: got \"int8\" with backbone.trainable, wanted \"bf16\" or \"f32\""},
      {R"({B, "adapter": {"sites": ["atn"]}})", "/adapter/sites/0: unknown site, got \"atn\"",
       "attn"},
      {R"({B, "adapter": {"sites": ["mlp", "mlp"]}})", "/adapter/sites/1: the site stands twice"},
      {R"({B, "adapter": {"sites": []}})", "/adapter/sites: got an empty list"},
      {R"({B, "adapter": {"blocks": [1, 2, 1]}})", "/adapter/blocks/2: the block stands twice"},
      {R"({B, "input": {"mean": [0.5]}})", "/input/mean: wrong length, got a list of 1"},
      {R"({B, "input": {"mean": [0.5, 0.5, 0.5]}})", "/input/std: missing"},
      {R"({B, "optimizer": {"betas": [0.9]}})", "/optimizer/betas: wrong length"},
      {R"({B, "optimizer": {"betas": [0.9, 1]}})", "/optimizer/betas/1: out of range, got 1"},
      {R"({B, "augment": {"crop": "random_resized", "crop_area": [0.5, 0.1]}})",
       "/augment/crop_area: wrong order"},
      {R"({B, "augment": {"crop": "random_resized", "crop_ratio": [1]}})",
       "/augment/crop_ratio: wrong length"},
      {R"({B, "augment": {"crop": "random", "crop_area": [0.1, 1]}})",
       "/augment/crop_area: got a range without the crop"},
      {R"({B, "augment": {"crop": "inception", "resize_to": 256}})",
       "/augment/resize_to: got pixels without the crop \"random\""},
      {R"({B, "input": {"crop_fraction": 0.9, "resize_to": 256}})",
       "/input/crop_fraction: got 0.9 with input.resize_to"},
      {R"({B, "input": {"resize_to": [1, 2, 3]}})", "/input/resize_to: wrong length"},
      {R"({B, "augment": {"repeated": 3}, "train": {"small_set": "with_replacement"}})",
       "/augment/repeated: got 3 with train.small_set \"with_replacement\", wanted 1"},
      {R"({B, "train": {"ema_decay": 0.9, "ema_warmup": true}})",
       "/train/ema_warmup: got true with train.ema_form \"v2\", wanted the form \"v3\""},
      {R"({B, "train": {"ema_decay": 0.9, "ema_start": 5}})",
       "/train/ema_start: got 5 with train.ema_form \"v2\""},
      {R"({B, "augment": {"mixup": 0.8}, "train": {"batch_size": 33}})",
       "/train/batch_size: got 33, wanted an even number"},
      {R"({B, "augment": {"rand_augment": "rand-m7-w0"}})",
       "/augment/rand_augment: got \"rand-m7-w0\" with the part \"w0\", wanted \"rand\" and any "
       "of"},
      {R"({B, "augment": {"rand_augment": "rand-m7", "color_jitter": [0.4]}})",
       "/augment/color_jitter: got strengths with augment.rand_augment"},
      {R"({B, "augment": {"rand_augment": "rand-m7"}, "input": {"interpolation": "tf_area"}})",
       "/input/interpolation: got a filter of TensorFlow with augment.rand_augment"},
      {R"({B, "augment": {"color_jitter": [0.4, 0.4]}})",
       "/augment/color_jitter: wrong length, got a list of 2"},
      {R"({B, "augment": {"color_jitter": [0.4, 0.4, 0.4, 0.6]}})",
       "/augment/color_jitter/3: out of range, got 0.6"},
      {R"({B, "augment": {"color_jitter": [-1]}})", "/augment/color_jitter/0: out of range"},
      {R"({B, "augment": {"random_erasing": 2}})", "/augment/random_erasing: out of range"},
      {R"({B, "augment": {"erasing_mode": "noise"}})", "/augment/erasing_mode"},
      {R"({B, "augment": {"cutmix": 1, "mix_style": "funmatch"}})",
       "/augment/cutmix: got 1 with the style \"funmatch\", wanted 0"},
      {R"({B, "augment": {"mixup": 1, "mix_style": "bit", "mix_mode": "elem"}})",
       "/augment/mix_mode: got one of the style \"timm\" with \"bit\""},
      {R"({B, "augment": {"mixup": 1, "mix_style": "bit", "mix_probability": 0.5}})",
       "/augment/mix_probability: got 0.5"},
      {R"({B, "augment": {"mixup": 1}, "train": {"batch_size": 7}})",
       "/train/batch_size: got 7, wanted an even number"},
      {R"({B, "augment": {"mixup": 1}, "train": {"drop_last": false}})",
       "/train/drop_last: got false, wanted true"},
      {R"({B, "augment": {"erasing_mode": "pixel"}})",
       "/augment/erasing_mode: got a setting of random erasing with augment.random_erasing 0"},
      {R"({B, "head": {"type": "none", "init": "zero"}})", "/head/init: got initial weights"},
      {R"({B, "head": {"type": "cosine", "init": "zero"}})", "/head/init: got initial weights"},
      {R"({B, "head": {"text": "t.safetensors"}})", "/head/text: got embeddings for another head"},
      {R"({B, "distill": {"view": "mix", "teachers": {}}, "augment": {"mix_style": "timm"}})",
       "/augment/mix_style: got \"timm\", wanted \"funmatch\" or nothing"},
      {R"({B, "distill": {"view": "mix", "teachers": {}}, "augment": {"cutmix": 1}})",
       "/augment/cutmix: got 1 with the style \"funmatch\", wanted 0"},
      {R"({B, "distill": {"view": "fix_rs", "teachers": {}, "store": {"epochs": 2}}})",
       "/distill/store/epochs: got 2 with a view whose teacher is asked once, wanted 0"},
      {R"({B, "distill": {"teachers": {}, "store": {"top_k": 2}}})",
       "/distill/store/top_k: got 2 without distill.store.file, wanted 0"},
      {R"({B, "distill": {"teachers": {}, "mse": 1, "store": {"file": "s", "top_k": 2}}})",
       "/distill/mse: got 1 with distill.store.top_k, wanted 0"},
      {R"({B, "distill": {"teachers": {}, "store": {"file": "s", "top_k": 2, "type": "f16"}}})",
       "/distill/store/type: got \"f16\" with distill.store.top_k"},
      {R"({B, "distill": {"temperature": 1e-300}})", "/distill/temperature: out of range"},
      {R"({B, "data": {"train": {"format": "images"}}})", "/data/train/path: missing"},
      {R"({B, "schedule": {"type": "steps"}})", "/schedule/milestones: missing"},
      {R"({B, "schedule": {"type": "steps", "milestones": [3, 3]}})",
       "/schedule/milestones/1: wrong order"},
      {R"({B, "schedule": {"unit": "epoch", "warmup": 9, "cooldown": 2}, "train": {"epochs": 10}})",
       "/schedule/warmup: got 9 and a cooldown of 2, wanted together at most the run's 10 epochs"},
      {R"({B, "schedule": {"warmup": 10, "total": 10}})",
       "/schedule/total: got 10, wanted more than"},
      {R"({B, "select": "best_val"})", "/select: got \"best_val\" without data.val"},
      {R"({B, "select": "best_val", "data": {"val": {"path": "x"}, "test": {"path": "./x", "limit": 5}}})",
       "/data/val: got the images of data.test"},
      {R"({B, "select": "best_val",
          "data": {"train": {"path": "x"}, "val": {"path": "v"}, "test": {"path": "x"}}})",
       "/data/test: got the images of data.train"},
      {R"({B, "data": {"train": {"format": "idx", "images": "i"}}})",
       "/data/train/labels: missing"},
      {R"({B, "data": {"test": {}}})", "/data/test/path: missing"},
      {R"({B, "data": {"test": {"format": "held_out"}}})", "/data/test/format: got \"held_out\""},
      {R"({B, "data": {"train": {"format": "held_out"}}})", "/data/train/format: got \"held_out\""},
      {R"({B, "data": {"val": {"format": "held_out", "fraction": 0}}})",
       "/data/val/fraction: out of range, got 0"},
      {R"({B, "data": {"val": {"format": "held_out", "fraction": 0.95}}})",
       "/data/val/fraction: out of range, got 0.95"},
      {R"({B, "data": {"val": {"format": "held_out", "per_class": 5}}})",
       "/data/val/per_class: got 5 with the format \"held_out\""},
      {R"({B, "data": {"train_on_val": true}})", "/data/train_on_val: got true without data.val"},
      {R"({B, "select": "best_val", "data": {"train_on_val": true, "val": {"path": "v"}}})",
       "/select: got \"best_val\" with data.train_on_val"},
  };
  for (const Wrong& wrong : all) {
    std::string text = wrong.text;
    if (size_t at = text.find("{B,"); at == 0) text.replace(1, 1, kBackbone);
    std::string error = error_of(write("r.json", text));
    EXPECT_TRUE(error.starts_with(std::string("r.json: ") + wrong.error)) << text << "\n" << error;
    if (*wrong.near) {
      EXPECT_TRUE(error.ends_with(std::string("(did you mean \"") + wrong.near + "\"?)")) << error;
    }
  }
}

TEST_F(RecipeFiles, NeedWeightsAndImagesToTrain) {
  EXPECT_EQ(
      error_of(write("r.json", R"({"backbone": {"variant": "vit_base_patch16"}})"), {}, true),
      "r.json: /backbone/weights: missing, wanted a checkpoint file (from scratch: a variant and "
      "trainable)");
  EXPECT_EQ(error_of(write("r.json", std::string("{") + kBackbone + "}"), {}, true),
            "r.json: /data/train: missing, wanted the training images");
  EXPECT_EQ(
      error_of(write("r.json",
                     std::string("{") + kBackbone +
                         R"(, "data": {"train": {"path": "x"}}, "adapter": {"type": "none"}})"),
               {}, true),
      "no error");
}

TEST_F(RecipeFiles, AreBlamedForTheValuesThatTheyGive) {
  write("parent.json", std::string("{") + kBackbone + R"(, "augment": {"mixup": 1}})");
  const fs::path file =
      write("r.json", R"({"extends": "parent.json", "optimizer": {"betas": [0.9]}})");
  EXPECT_TRUE(error_of(file).starts_with("r.json: /optimizer/betas")) << error_of(file);
  EXPECT_TRUE(error_of(file, {"optimizer.betas=[0.9,1]"}).starts_with("--set: /optimizer/betas/1"));
  EXPECT_TRUE(error_of(file, {"optimizer.betas=[0.9,0.9]", "train.batch_size=7"})
                  .starts_with("--set: /train/batch_size"));
  const fs::path child =
      write("c.json", R"({"extends": "parent.json", "augment": {"mix_style": "bit"}})");
  write("parent.json", std::string("{") + kBackbone + R"(, "augment": {"mixup": 1, "cutmix": 1}})");
  EXPECT_TRUE(error_of(child).starts_with("parent.json: /augment/cutmix")) << error_of(child);
}

TEST_F(RecipeFiles, ReportAnUnknownSetLikeAnUnknownKey) {
  fs::path file = write("r.json", "{}");
  EXPECT_TRUE(
      error_of(file, {"adapter.widht=3"}).starts_with("--set: /adapter/widht: unknown key"));
  EXPECT_TRUE(error_of(file, {"adapter.widht=3"}).ends_with("(did you mean \"width\"?)"));
  EXPECT_TRUE(
      error_of(file, {"adapter.widht=null"}).starts_with("--set: /adapter/widht: unknown key"));
  EXPECT_TRUE(error_of(file, {"train.epochs.x=3"})
                  .starts_with("--set: /train/epochs: wrong type, got an object"));
  EXPECT_TRUE(error_of(file, {"train=3"}).starts_with("--set: /train: wrong type, got 3"));
}

}  // namespace
}  // namespace convpass
