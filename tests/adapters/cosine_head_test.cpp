#include <cmath>
#include <functional>

#include "convpass/adapters/adapter_file.h"
#include "convpass/adapters/text_embeddings.h"
#include "convpass/core/error.h"
#include "convpass/models/vit_checkpoint.h"
#include "tests/adapters/reference.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

/// What tests/reference/clip_zero_shot.py wrote.
std::filesystem::path clip_file(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "clip" / name;
}

TunedModel clip_model(const AdapterConfig& adapter, const std::string& text) {
  VitCheckpoint checkpoint = load_vit_checkpoint(clip_file("model.safetensors"));
  TunedModel model;
  model.backbone = std::make_unique<Vit>(checkpoint.config, checkpoint.backbone,
                                         Vit::Options{.image_size = {16, 16}});
  model.identity = {.name = "tiny clip",
                    .format = "hf-clip",
                    .hash = checkpoint.hash,
                    .position_resize = "none",
                    .normalization = checkpoint.normalization,
                    .architecture = "{}"};
  model.adapter = make_adapter(adapter, *model.backbone, 1);
  model.head = make_cosine_head(load_text_embeddings(clip_file(text)), 32, 3);
  model.to(at::kCPU, Precision::f32);
  return model;
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(CosineHead, AnswersBeforeTrainingAsZeroShotClip) {
  const TensorMap wanted = load_tensors(clip_file("expected.safetensors"));
  for (const auto& [text, logits] :
       {std::pair{"text.safetensors", "logits"}, {"text_two.safetensors", "logits_two"}})
    for (const AdapterConfig& adapter :
         {AdapterConfig(NoAdapter{}), AdapterConfig(ConvpassConfig{})}) {
      const TunedModel model = clip_model(adapter, text);
      const at::Tensor got = model.logits(wanted.at("images"), Pass{});
      // The scale is 100: a cosine is equal to 1e-6.
      EXPECT_TRUE(at::allclose(got.detach(), wanted.at(logits), /*rtol=*/0, /*atol=*/1e-4)) << text;
    }
}

TEST(CosineHead, TrainsItsEmbeddingsAndTheBypassesAlone) {
  TunedModel model = clip_model(ConvpassConfig{.width = 4}, "text.safetensors");
  {
    at::NoGradGuard no_grad;  // a fresh bypass passes no gradient on to what is before `up`
    for (const auto& [name, tensor] : model.adapter->parameters())
      if (name.find("adapter_up") != std::string::npos) tensor.normal_(0, 0.1);
  }
  const at::Tensor images = load_tensors(clip_file("expected.safetensors")).at("images");
  const at::Tensor labels = at::tensor({2, 1, 0, 1}, at::kLong);
  at::cross_entropy_loss(model.logits(images, Pass{}), labels).backward();
  const NamedTensors trainable = model.trainable();
  EXPECT_EQ(trainable.size(), 2u * 2u * 6u + 2u);
  EXPECT_EQ(trainable.back().first, "head.bias");
  for (const auto& [name, tensor] : trainable) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<float>(), 0) << name;
  }
  for (const auto& [name, tensor] : model.backbone->parameters())
    EXPECT_FALSE(tensor.requires_grad() || tensor.grad().defined()) << name;
  EXPECT_EQ(model.constants().size(), 2u);
  for (const auto& [name, tensor] : model.constants())
    EXPECT_FALSE(tensor.requires_grad() || tensor.grad().defined()) << name;
}

TEST(CosineHead, IsWholeInTheAdapterFile) {
  const ConvpassConfig config{.width = 4};
  TunedModel model = clip_model(config, "text.safetensors");
  {
    at::NoGradGuard no_grad;
    for (const auto& [name, tensor] : model.trainable()) tensor.normal_();
  }
  AdapterFile file;
  for (const auto& [name, tensor] : model.state()) file.weights.tensors[name] = tensor.detach();
  file.backbone = model.identity;
  file.image_size = {16, 16};
  file.adapter = config;
  file.head = HeadType::cosine;
  file.preprocessing = "{}";
  file.classes = {"a", "b", "c"};
  TempFolder folder;
  auto saved = [&](const std::function<void(TensorMap&)>& edit) {
    AdapterFile edited = file;
    edit(edited.weights);
    save_adapter(folder / "a.safetensors", edited);
    return load_adapter(folder / "a.safetensors");
  };
  const AdapterFile read = saved([](TensorMap&) {});
  EXPECT_EQ(read.head, HeadType::cosine);
  TunedModel other = clip_model(config, "text_two.safetensors");
  apply_adapter(read, other);
  const at::Tensor images = load_tensors(clip_file("expected.safetensors")).at("images");
  EXPECT_TRUE(at::equal(model.logits(images, Pass{}), other.logits(images, Pass{})));

  EXPECT_NE(error_of([&] {
              saved([](TensorMap& map) { map.tensors.erase("head.scale"); });
            }).find("head.scale is missing"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              saved([](TensorMap& map) { map.tensors["head.projection"] = at::ones({9, 32}); });
            }).find("head.projection: got shape [9, 32], wanted 8 rows"),
            std::string::npos);
}

TEST(CosineHead, NeedsEmbeddingsThatFitTheBackboneAndTheClasses) {
  TextEmbeddings text = load_text_embeddings(clip_file("text.safetensors"));
  EXPECT_EQ(text.classes, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_NE(error_of([&] { make_cosine_head(text, 48, 3); }).find("from 32 features, wanted one"),
            std::string::npos);
  EXPECT_NE(error_of([&] { make_cosine_head(text, 32, 4); }).find("3 classes, wanted 4"),
            std::string::npos);
  text.projection = at::Tensor();
  EXPECT_NE(error_of([&] { make_cosine_head(text, 32, 3); }).find("of width 8, wanted 32"),
            std::string::npos);
  const Head head = make_cosine_head(text, 8, 3);  // a tower whose features are in that space
  EXPECT_NEAR(head.forward(text.embeddings)[0][0].item<float>(), 100, 1e-4);
}

TEST(TextEmbeddings, RefuseWhatIsNoFileOfTheirs) {
  TempFolder folder;
  const std::filesystem::path file = folder / "t.safetensors";
  const TensorMap good = load_tensors(clip_file("text.safetensors"));
  auto refusal = [&](const std::function<void(TensorMap&)>& edit) {
    TensorMap map = good;
    edit(map);
    save_safetensors(file, map);
    const std::string error = error_of([&] { load_text_embeddings(file); });
    EXPECT_EQ(error.rfind(file.string() + ": ", 0), 0u) << error;
    return error;
  };
  const std::pair<std::function<void(TensorMap&)>, std::string> cases[] = {
      {[](TensorMap& map) { map.tensors.erase("embeddings"); }, "has no tensor embeddings"},
      {[](TensorMap& map) { map.tensors["embeddings"] = at::ones({3}); }, "got Float [3]"},
      {[](TensorMap& map) {
         map.tensors["embeddings"] = at::ones({3, 8}, at::kInt);
       },
       "got Int"},
      {[](TensorMap& map) {
         map.tensors["embeddings"] = at::ones({0, 8});
       },
       "[0, 8]"},
      {[](TensorMap& map) {
         map.tensors["embeddings"] = at::zeros({3, 8});
       },
       "a row of zeros"},
      {[](TensorMap& map) {
         map.tensors["embeddings"] = at::full({3, 8}, NAN);
       },
       "not finite"},
      {[](TensorMap& map) {
         map.tensors["projection"] = at::ones({7, 32});
       },
       "got 7 rows, wanted 8"},
      {[](TensorMap& map) { map.tensors.erase("scale"); }, "has no tensor scale"},
      {[](TensorMap& map) { map.tensors["scale"] = at::ones({1}); }, "scale: got Float [1]"},
      {[](TensorMap& map) { map.tensors["scale"] = at::zeros({}); }, "not above 0"},
      {[](TensorMap& map) { map.metadata["classes"] = R"(["a", "b"])"; }, "got 2 names, wanted 3"},
      {[](TensorMap& map) { map.metadata["classes"] = "a, b, c"; }, "wanted a JSON list of names"},
      {[](TensorMap& map) { map.metadata["classes"] = R"(["a", "b", "a"])"; }, R"(got "a" twice)"},
      {[](TensorMap& map) { map.metadata["classes"] = R"(["a", "", "c"])"; }, R"(got "", wanted)"},
  };
  for (const auto& [edit, says] : cases) {
    const std::string error = refusal(edit);
    EXPECT_NE(error.find(says), std::string::npos) << error << "\nlacks " << says;
  }
}

TEST(TextEmbeddings, WithoutNamesAreNumberedAndOfAnyLength) {
  TempFolder folder;
  TensorMap map = load_tensors(clip_file("text.safetensors"));
  const at::Tensor rows = map.at("embeddings").clone();
  map.tensors["embeddings"] = rows.to(at::kDouble) * 3;
  map.metadata.clear();
  save_safetensors(folder / "t.safetensors", map);
  const TextEmbeddings text = load_text_embeddings(folder / "t.safetensors");
  EXPECT_EQ(text.classes, (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_TRUE(close(text.embeddings, rows, 1e-6));
  for (double length : {1e30, 1e-30}) {  // whose squares float32 does not hold
    map.tensors["embeddings"] = (rows.to(at::kDouble) * length).to(at::kFloat);
    save_safetensors(folder / "t.safetensors", map);
    EXPECT_TRUE(close(load_text_embeddings(folder / "t.safetensors").embeddings, rows, 1e-6));
  }
}

}  // namespace
}  // namespace convpass
