#include "convpass/adapters/peft.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "convpass/core/error.h"
#include "convpass/core/rng.h"
#include "tests/adapters/reference.h"
#include "tests/core/temp_folder.h"

// Files that PEFT wrote: tests/reference/peft_lora.py.
namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

fs::path peft_folder(const std::string& name) {
  return fs::path(CONVPASS_TEST_DATA) / "peft" / name;
}

VitConfig reference_config() {
  VitConfig config = tiny_config();
  config.hidden = 4 * config.width;
  return config;
}

AdapterFile adapter_file(const PeftLora& lora) {
  AdapterFile file;
  file.weights = lora.weights;
  file.backbone = reference_model(NoAdapter{}).identity;
  file.image_size = {16, 16};
  file.adapter = lora.config;
  file.preprocessing = "{}";
  file.classes = {"a", "b", "c", "d", "e"};
  return file;
}

at::Tensor logits_of(const PeftLora& lora, const at::Tensor& images) {
  TunedModel model = reference_model(lora.config);
  model.to(at::kCPU, Precision::f32);
  apply_adapter(adapter_file(lora), model);
  at::NoGradGuard no_grad;
  return model.logits(images, Pass{});
}

class Peft : public ::testing::Test {
 protected:
  /// The folder of `timm` with its configuration and weights changed.
  fs::path changed(const std::function<void(Json&)>& config,
                   const std::function<void(TensorMap&)>& weights = {}) {
    const fs::path from = peft_folder("timm"), to = folder_ / "peft";
    fs::create_directories(to);
    Json json = Json::parse(std::ifstream(from / "adapter_config.json"));
    if (config) config(json);
    std::ofstream(to / "adapter_config.json") << json.dump();
    TensorMap map = load_tensors(from / "adapter_model.safetensors");
    if (weights) weights(map);
    save_safetensors(to / "adapter_model.safetensors", map);
    return to;
  }
  static std::string error_of(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  /// One line that names the file and holds `part`.
  void expect_refusal(const fs::path& folder, const std::string& part) {
    const std::string text = error_of([&] { load_peft(folder); });
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nwanted: " << part;
    EXPECT_TRUE(text.starts_with(folder.string())) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
  void expect_config_refusal(const std::string& key, const Json& value, const std::string& part) {
    expect_refusal(changed([&](Json& json) { json[key] = value; }), part);
  }

  TempFolder folder_;
};

class PeftCase : public Peft, public ::testing::WithParamInterface<const char*> {};

TEST_P(PeftCase, ReadsWhatPeftWroteToTheSameLogits) {
  const TensorMap expected = load_tensors(peft_folder(GetParam()) / "expected.safetensors");
  const PeftLora lora = load_peft(peft_folder(GetParam()));
  EXPECT_TRUE(close(logits_of(lora, expected.at("images")), expected.at("logits"), 1e-5));
  const PeftLora from_file = load_peft(peft_folder(GetParam()) / "adapter_model.safetensors");
  EXPECT_EQ(from_file.weights.tensors.size(), lora.weights.tensors.size());
}

TEST_P(PeftCase, WritesWhatItReadsBackTheSame) {
  const TensorMap expected = load_tensors(peft_folder(GetParam()) / "expected.safetensors");
  const PeftLora lora = load_peft(peft_folder(GetParam()));
  for (PeftNaming naming : {PeftNaming::timm, PeftNaming::huggingface, PeftNaming::huggingface5}) {
    auto write = [&] {
      save_peft(folder_ / "out", adapter_file(lora), reference_config(), naming);
    };
    if (naming == PeftNaming::timm && lora.naming != PeftNaming::timm) {
      EXPECT_NE(error_of(write).find("timm's attn.qkv is one layer"), std::string::npos);
      continue;
    }
    write();
    const PeftLora again = load_peft(folder_ / "out");
    EXPECT_EQ(again.naming, naming);
    EXPECT_EQ(again.config.blocks, lora.config.blocks);
    EXPECT_EQ(again.config.rank_stabilized, lora.config.rank_stabilized);
    EXPECT_TRUE(close(logits_of(again, expected.at("images")), expected.at("logits"), 1e-5));
    if (naming != lora.naming) continue;
    // The very tensors, under the very names.
    const TensorMap theirs = load_tensors(peft_folder(GetParam()) / "adapter_model.safetensors");
    const TensorMap ours = load_tensors(folder_ / "out" / "adapter_model.safetensors");
    EXPECT_EQ(theirs.tensors.size(), ours.tensors.size());
    for (const auto& [name, tensor] : theirs.tensors) {
      ASSERT_TRUE(ours.has(name)) << name;
      EXPECT_TRUE(at::equal(ours.at(name), tensor)) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, PeftCase,
                         ::testing::Values("timm", "timm_rslora", "hf", "hf_all", "hf5"));

TEST_F(Peft, ReadsTheNamesOfEveryHuggingFaceViT) {
  auto renamed = [&](const std::string& from, const std::string& start, const std::string& block) {
    const fs::path to = folder_ / "renamed";
    fs::create_directories(to);
    fs::copy_file(peft_folder(from) / "adapter_config.json", to / "adapter_config.json",
                  fs::copy_options::overwrite_existing);
    TensorMap out;
    for (const auto& [name, tensor] :
         load_tensors(peft_folder(from) / "adapter_model.safetensors").tensors) {
      std::string other = name;
      if (const size_t at = other.find(block); at != std::string::npos)
        other.replace(at, block.size(), start);
      out.tensors[other] = tensor;
    }
    save_safetensors(to / "adapter_model.safetensors", out);
    return load_peft(to);
  };
  for (const auto& [from, block] :
       {std::pair{"hf_all", "vit.encoder.layer."}, {"hf5", "vit.layers."}}) {
    const PeftLora wanted = load_peft(peft_folder(from));
    for (const char* start : {"dinov2.encoder.layer.", "dinov2_with_registers.encoder.layer.",
                              "deit.encoder.layer.", "encoder.layer."}) {
      const PeftLora got = renamed(from, start, block);
      EXPECT_EQ(got.config.layers, wanted.config.layers) << from << " as " << start;
      for (const auto& [name, tensor] : wanted.weights.tensors)
        EXPECT_TRUE(got.weights.has(name)) << name;
    }
  }
}

TEST_F(Peft, DamagedConfigurationsAreErrorsOrRead) {
  const fs::path folder = changed({});
  std::stringstream good;
  good << std::ifstream(folder / "adapter_config.json").rdbuf();
  Rng random(7);
  for (int i = 0; i < 500; ++i) {
    std::string text = good.str();
    for (uint64_t flips = 1 + random.below(3); flips > 0; --flips)
      text[random.below(text.size())] = static_cast<char>(random.below(256));
    if (i % 5 == 0) text.resize(random.below(text.size()));
    std::ofstream(folder / "adapter_config.json") << text;
    const std::string error = error_of([&] { load_peft(folder); });
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST_F(Peft, RefusesWhatItsConfigurationAsksForAndIsNotHere) {
  expect_config_refusal("use_dora", true, "\"use_dora\": got true, wanted its absence");
  expect_config_refusal("bias", "lora_only", "\"bias\": got \"lora_only\", wanted \"none\"");
  expect_config_refusal("bias", "all", "\"bias\"");
  expect_config_refusal("rank_pattern", Json{{"fc1", 2}}, "\"rank_pattern\": got {\"fc1\":2}");
  expect_config_refusal("alpha_pattern", Json{{"fc1", 2}}, "\"alpha_pattern\"");
  expect_config_refusal("lora_bias", true, "\"lora_bias\"");
  expect_config_refusal("fan_in_fan_out", true, "\"fan_in_fan_out\"");
  expect_config_refusal("layer_replication", Json{{0, 1}}, "\"layer_replication\"");
  expect_config_refusal("trainable_token_indices", Json{1}, "\"trainable_token_indices\"");
  expect_config_refusal("some_new_field", 3, "\"some_new_field\": got 3");
  expect_config_refusal("peft_type", "IA3", "\"peft_type\": got \"IA3\", wanted \"LORA\"");
  expect_config_refusal("init_lora_weights", "pissa", "others change the backbone");
  expect_config_refusal("modules_to_save", Json{"classifier", "pooler"}, "\"modules_to_save\"");
  load_peft(changed([](Json& json) { json["some_new_field"] = nullptr; }));
  load_peft(changed([](Json& json) { json["init_lora_weights"] = "gaussian"; }));
}

TEST_F(Peft, RefusesConfigurationsThatAreWrong) {
  for (const Json& bad : {Json(0), Json(-1), Json(1.5), Json("8"), Json(5000), Json(1e300),
                          Json(18446744073709551615ULL), Json::array({8}), Json(nullptr)})
    expect_config_refusal("r", bad, "\"r\": got ");
  for (const Json& bad : {Json("x"), Json::array(), Json(true)})
    expect_config_refusal("lora_alpha", bad, "\"lora_alpha\": got ");
  expect_config_refusal("lora_dropout", 1.5, "\"lora_dropout\": got 1.5");
  expect_config_refusal("use_rslora", 1, "\"use_rslora\": got 1, wanted true or false");
  expect_config_refusal("peft_type", Json::object(), "\"peft_type\": got {}");
  expect_config_refusal("r", 8, "wanted a matrix of rank 8, the configuration's r");
  expect_refusal(changed([](Json& json) { json.erase("peft_type"); }),
                 "\"peft_type\": got nothing");
  const fs::path folder = changed({});
  for (const char* text : {"", "[]", "{", "\xff\xfe{}", "null", "{\"r\":NaN}"}) {
    std::ofstream(folder / "adapter_config.json") << text;
    EXPECT_NE(error_of([&] { load_peft(folder); }), "no error") << text;
  }
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  std::ofstream(folder / "adapter_config.json") << deep;
  expect_refusal(folder, "nested deeper than 32 levels");
  std::ofstream(folder / "adapter_config.json") << "{\"x\": " << deep << "}";
  expect_refusal(folder, "nested deeper than 32 levels");
  fs::remove(folder / "adapter_config.json");
  expect_refusal(folder, "no such file, wanted PEFT's configuration");
}

TEST_F(Peft, RefusesTensorsThatHaveNoCounterpart) {
  const std::string block = "base_model.model.blocks.1.";
  auto with = [&](const std::function<void(TensorMap&)>& change) { return changed({}, change); };
  auto add = [&](const std::string& name, const at::Tensor& tensor) {
    return with([&](TensorMap& map) { map.tensors[name] = tensor; });
  };
  for (const char* name :
       {"x", "base_model.model.", "base_model.model.blocks.0.attn.q_norm.lora_A.weight",
        "base_model.model.blocks.x.attn.qkv.lora_A.weight",
        "base_model.model.blocks.99999999999999999999.attn.qkv.lora_A.weight",
        "base_model.model.blocks..attn.qkv.lora_A.weight",
        "base_model.model.blocks.0.attn.qkv.lora_magnitude_vector",
        "base_model.model.patch_embed.proj.lora_A.weight", "base_model.model.head_dist.weight"})
    expect_refusal(add(name, at::zeros({4, 4})), "is no LoRA of a layer that is known here");
  expect_refusal(add("base_model.model.vit.layers.0.mlp.fc1.lora_A.weight", at::zeros({4, 32})),
                 "timm's and Hugging Face's at once");
  expect_refusal(add(block + "attn.qkv.lora_A.weight", at::zeros({4})),
                 "wanted a matrix of rank 4");
  expect_refusal(add(block + "attn.qkv.lora_A.weight", at::zeros({4, 32}, at::kLong)),
                 "wanted a floating point type");
  expect_refusal(add("base_model.model.classifier.weight", at::zeros({5, 32})),
                 "which another does too");
  expect_refusal(with([&](TensorMap& map) { map.tensors.erase(block + "mlp.fc1.lora_B.weight"); }),
                 "there is a blocks.1.mlp.fc1.lora_A.weight but no");
  expect_refusal(with([&](TensorMap& map) {
                   map.tensors.erase(block + "mlp.fc1.lora_A.weight");
                   map.tensors.erase(block + "mlp.fc1.lora_B.weight");
                 }),
                 "block 1 has LoRA on other layers than block 0");
  expect_refusal(with([&](TensorMap& map) { map.tensors.erase("base_model.model.head.weight"); }),
                 "has no classifier");
  expect_refusal(with([&](TensorMap& map) { map.tensors.clear(); }), "holds no LoRA");

  // Shapes that do not fit are found where the model is known.
  const PeftLora lora = load_peft(add(block + "attn.qkv.lora_A.weight", at::zeros({4, 64})));
  EXPECT_EQ(error_of([&] {
              logits_of(lora, at::zeros({1, 3, 16, 16}));
            }),
            "adapter: tensor blocks.1.attn.qkv.lora_A.weight: got shape [4, 64], wanted [4, 32]");
}

TEST_F(Peft, RefusesToWriteWhatPeftOrHuggingFaceHasNot) {
  const PeftLora lora = load_peft(peft_folder("timm"));
  auto write = [&](const AdapterFile& file, const VitConfig& vit) {
    return error_of([&] { save_peft(folder_ / "out", file, vit, PeftNaming::huggingface); });
  };
  AdapterFile file = adapter_file(lora);
  VitConfig vit = reference_config();
  vit.layer_scale = true;
  EXPECT_NE(write(file, vit).find("has no LayerScale"), std::string::npos);
  file.pool = "mean";
  EXPECT_NE(write(file, reference_config()).find("mean of the patches"), std::string::npos);
  file = adapter_file(lora);
  file.weights.tensors["backbone.norm.weight"] = at::zeros({32});
  EXPECT_NE(write(file, reference_config()).find("other tensors than LoRA"), std::string::npos);
  file.adapter = SsfConfig{};
  EXPECT_NE(write(file, reference_config()).find("type \"ssf\", wanted \"lora\""),
            std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

}  // namespace
}  // namespace convpass
