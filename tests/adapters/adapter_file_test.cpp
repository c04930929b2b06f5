#include "convpass/adapters/adapter_file.h"

#include <fstream>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "tests/adapters/reference.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

class AdapterFileTest : public ::testing::Test {
 protected:
  void SetUp() override { file_ = folder_ / "adapter.safetensors"; }

  AdapterFile example(const TunedModel& model) const {
    AdapterFile file;
    for (const auto& [name, tensor] : model.trainable())
      file.weights.tensors[name] = tensor.detach();
    file.backbone = model.identity;
    file.image_size = {16, 16};
    file.adapter = config_;
    file.preprocessing = "{}";
    file.classes = {"cat", "dog", "\"quoted\"", "ünï", "e"};
    file.recipe_hash = "abc";
    return file;
  }
  std::string error_of(const std::function<void()>& work) const {
    try {
      work();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  ConvpassConfig config_{.width = 4, .scale = 10, .blocks = {1}};
  TempFolder folder_;
  std::filesystem::path file_;
};

TEST_F(AdapterFileTest, CarriesEverythingThere_AndBack) {
  TunedModel model = tiny_model(config_);
  save_adapter(file_, example(model));
  const AdapterFile read = load_adapter(file_);
  EXPECT_EQ(read.classes, example(model).classes);
  EXPECT_EQ(read.backbone.hash, model.identity.hash);
  EXPECT_EQ(read.image_size, (std::array<int64_t, 2>{16, 16}));
  const auto& adapter = std::get<ConvpassConfig>(read.adapter);
  EXPECT_EQ(adapter.width, 4);
  EXPECT_EQ(adapter.scale, 10);
  EXPECT_EQ(adapter.blocks, std::vector<int64_t>{1});

  TunedModel other = tiny_model(config_);
  at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : model.trainable()) tensor.normal_();
  save_adapter(file_, example(model));
  apply_adapter(load_adapter(file_), other);
  at::Tensor images = at::randn({2, 3, 16, 16});
  EXPECT_TRUE(at::equal(model.logits(images, Pass{}), other.logits(images, Pass{})));
}

TEST_F(AdapterFileTest, EqualContentGivesEqualBytes) {
  TunedModel model = tiny_model(config_);
  save_adapter(file_, example(model));
  const auto first = read_file(file_);
  save_adapter(file_, example(model));
  EXPECT_EQ(first, read_file(file_));
}

TEST_F(AdapterFileTest, RefusesAnotherBackboneNamingBoth) {
  TunedModel model = tiny_model(config_);
  AdapterFile file = example(model);
  file.backbone.hash = "ffffffffffffffffffffffffffffffffffffffff";
  file.backbone.name = "vit_base_patch16";
  EXPECT_EQ(error_of([&] { apply_adapter(file, model); }),
            "the adapter was trained on vit_base_patch16 (weights ffffffffffff), got tiny (weights "
            "0123456789ab)");
}

TEST_F(AdapterFileTest, RefusesMissingLeftOverAndMisshapenTensors) {
  TunedModel model = tiny_model(config_);
  AdapterFile file = example(model);
  file.weights.tensors.erase("head.bias");
  EXPECT_EQ(error_of([&] { apply_adapter(file, model); }), "adapter: tensor head.bias is missing");
  file = example(model);
  file.weights.tensors["blocks.0.extra"] = at::zeros({1});
  EXPECT_NE(error_of([&] { apply_adapter(file, model); }).find("some belong to no part"),
            std::string::npos);
  file = example(model);
  file.weights.tensors["head.bias"] = at::zeros({4});
  EXPECT_EQ(error_of([&] { apply_adapter(file, model); }),
            "adapter: tensor head.bias: got shape [4], wanted [5]");
}

TEST_F(AdapterFileTest, RefusesFilesThatAreNoAdapterOfOurs) {
  TunedModel model = tiny_model(config_);
  TensorMap plain;
  plain.tensors["x"] = at::zeros({1});
  save_safetensors(file_, plain);
  EXPECT_NE(error_of([&] { load_adapter(file_); }).find("wanted an adapter file"),
            std::string::npos);

  // Each metadata entry is damaged in turn: always one clear line, never a crash.
  save_adapter(file_, example(model));
  const TensorMap good = load_tensors(file_);
  for (const auto& [key, value] : good.metadata) {
    for (const std::string& bad :
         {std::string("{"), std::string("[1,2,\"x\"]"), std::string("\xff\xfe")}) {
      if (key == "recipe_hash" || key == "preprocessing" || key == "pool")
        continue;  // the engine reads these
      TensorMap damaged = good;
      damaged.metadata[key] = bad;
      const std::filesystem::path other = folder_ / "damaged.safetensors";
      try {
        save_safetensors(other, damaged);
      } catch (const std::exception&) {
        continue;  // not text: a safetensors header cannot hold it
      }
      const std::string text = error_of([&] { load_adapter(other); });
      EXPECT_NE(text, "no error") << key << " = " << bad;
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    }
    TensorMap lacking = good;
    lacking.metadata.erase(key);
    save_safetensors(folder_ / "lacking.safetensors", lacking);
    EXPECT_NE(error_of([&] { load_adapter(folder_ / "lacking.safetensors"); }), "no error") << key;
  }
}

TEST_F(AdapterFileTest, ReadsTheOfficialFileUnderTheSameNames) {
  const TensorMap official = load_tensors(reference_file("official_adapter.pt"));
  TunedModel model = tiny_model(ConvpassConfig{});
  for (const auto& [name, tensor] : model.trainable()) {
    ASSERT_TRUE(official.has(name)) << name;
    EXPECT_EQ(official.at(name).sizes(), tensor.sizes()) << name;
  }
  EXPECT_EQ(official.tensors.size(), model.trainable().size());
}

}  // namespace
}  // namespace convpass
