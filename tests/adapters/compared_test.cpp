#include <functional>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/bit_resnet.h"
#include "tests/adapters/reference.h"

// The adapters that Convpass is compared with, against tests/reference/adapters.py.
namespace convpass {
namespace {

AdapterConfig config_of(const std::string& text) {
  AdapterConfig config;
  read_json_fields(text, config, "test");
  return config;
}

const std::vector<std::string> kEach = {
    R"({"type": "lora"})",
    R"({"type": "adaptformer"})",
    R"({"type": "bottleneck"})",
    R"({"type": "repadapter"})",
    R"({"type": "ssf"})",
    R"({"type": "bitfit"})",
    R"({"type": "vpt"})",
    R"({"type": "fact"})",
    R"({"type": "lora", "layers": ["q", "k", "v", "proj", "fc1", "fc2"]})",
    R"({"type": "lora", "layers": ["qkv", "fc2"], "blocks": [1]})",
    R"({"type": "vpt", "deep": false})",
    R"({"type": "bottleneck", "sites": ["mlp"], "activation": "relu"})"};

class Compared : public ::testing::TestWithParam<const char*> {
 protected:
  Compared()
      : map_(load_tensors(std::filesystem::path(CONVPASS_TEST_DATA) / "adapters" /
                          (std::string(GetParam()) + ".safetensors"))),
        model_(reference_model(config_of(map_.metadata.at("adapter")))) {}

  void set_values() {
    at::NoGradGuard no_grad;
    for (const auto& [name, tensor] : model_.adapter->parameters()) {
      ASSERT_TRUE(map_.has("param/" + name)) << name;
      ASSERT_EQ(map_.at("param/" + name).sizes(), tensor.sizes()) << name;
      tensor.copy_(map_.at("param/" + name));
    }
  }
  void expect_gradients(const std::string& kind) {
    for (const auto& [name, tensor] : model_.adapter->parameters()) {
      const at::Tensor& wanted = map_.at("grad_" + kind + "/" + name);
      ASSERT_TRUE(tensor.grad().defined()) << name;
      EXPECT_TRUE(
          close(tensor.grad(), wanted, 1e-5 * std::max(1.0, wanted.abs().max().item<double>())))
          << name;
      tensor.mutable_grad().reset();
    }
  }

  TensorMap map_;
  TunedModel model_;
};

TEST_P(Compared, ForwardAndGradientsEqualTheReference) {
  model_.to(at::kCPU, Precision::f32);
  set_values();
  const auto& vit = static_cast<const Vit&>(*model_.backbone);
  const at::Tensor& images = map_.at("images");
  at::Tensor tokens = vit.forward_tokens(images, model_.adapter.get(), Pass{});
  EXPECT_TRUE(close(tokens, map_.at("tokens"), 1e-5));
  tokens.backward(map_.at("tokens_gradient"));
  expect_gradients("tokens");
  // The last block computes the class token alone here.
  at::Tensor features = vit.forward(images, model_.adapter.get(), Pass{});
  EXPECT_TRUE(close(features, map_.at("features"), 1e-5));
  features.backward(map_.at("features_gradient"));
  expect_gradients("features");
}

TEST_P(Compared, MergedEqualsUnmerged) {
  const std::set<std::string> stay{"adaptformer", "adaptformer_top", "houlsby",
                                   "pfeiffer",    "vpt_shallow",     "vpt_deep"};
  set_values();
  model_.merge_adapter();
  EXPECT_EQ(model_.adapter_merged, stay.count(GetParam()) == 0);
  model_.to(at::kCPU, Precision::f32);
  at::NoGradGuard no_grad;
  EXPECT_TRUE(close(model_.features(map_.at("images"), Pass{}), map_.at("features"), 1e-5));
}

TEST_P(Compared, RunsInBfloat16) {
  set_values();
  model_.to(at::kCPU, Precision::bf16);
  at::Tensor features = model_.features(map_.at("images"), Pass{});
  EXPECT_EQ(features.scalar_type(), at::kBFloat16);
  features.sum().backward();
  EXPECT_TRUE(close(features, map_.at("features"), 0.3));
}

INSTANTIATE_TEST_SUITE_P(Cases, Compared,
                         ::testing::Values("lora", "lora_k", "lora_peft", "lora_rs", "adaptformer",
                                           "adaptformer_top", "houlsby", "pfeiffer", "repadapter",
                                           "repattn", "ssf", "bitfit", "vpt_shallow", "vpt_deep",
                                           "fact"));

TEST(Adapters, FreshOnesLeaveTheFeaturesBitForBit) {
  at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({3, 3, 16, 16});
  for (const std::string& text : kEach) {
    TunedModel model = reference_model(config_of(text));
    model.to(at::kCPU, Precision::f32);
    const at::Tensor without = model.backbone->forward(images, nullptr, Pass{});
    const at::Tensor with = model.features(images, Pass{});
    const std::string type = adapter_type(config_of(text));
    EXPECT_EQ(at::equal(without, with), type != "ssf" && type != "vpt") << text;
  }
}

TEST(Adapters, FitEveryKindOfViT) {
  struct Kind {
    const char* name;
    std::function<void(VitConfig&)> change;
    Pool pool = Pool::automatic;
  };
  const Kind kinds[] = {
      {"DINOv2 with registers", [](VitConfig& c) { c.registers = 4, c.layer_scale = true; }},
      {"DeiT", [](VitConfig& c) { c.distillation_token = true; }},
      {"DeiT, two heads", [](VitConfig& c) { c.distillation_token = true; },
       Pool::cls_and_distillation},
      {"MAE", [](VitConfig& c) { c.pooled_norm = true; }, Pool::mean},
      {"big_vision", [](VitConfig& c) { c.class_token = false; }, Pool::mean},
      {"CLIP", [](VitConfig& c) { c.pre_norm = true, c.patch_bias = false; }},
      {"SwiGLU", [](VitConfig& c) { c.activation = Activation::swiglu; }},
      {"without biases of qkv", [](VitConfig& c) { c.qkv_bias = false; }}};
  at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({2, 3, 16, 16});
  for (const Kind& kind : kinds)
    for (const std::string& text : kEach) {
      VitConfig config = tiny_config();
      kind.change(config);
      const AdapterConfig adapter = config_of(text);
      TunedModel model;
      TensorMap weights = Vit::random_weights(config, 3);
      for (auto& [name, tensor] : weights.tensors) tensor.add_(at::randn_like(tensor), 0.1);
      model.backbone = std::make_unique<Vit>(
          config, weights, Vit::Options{.image_size = {16, 16}, .pool = kind.pool});
      model.adapter = make_adapter(adapter, *model.backbone, 1);
      const std::string what = kind.name + (" " + text);
      const at::Tensor without = model.backbone->forward(images, nullptr, Pass{});
      const std::string type = adapter_type(adapter);
      EXPECT_EQ(at::equal(without, model.features(images, Pass{})), type != "ssf" && type != "vpt")
          << what;
      for (const auto& [name, tensor] : model.adapter->parameters())
        tensor.add_(at::randn_like(tensor), 0.1);
      const at::Tensor with = model.features(images, Pass{});
      EXPECT_EQ(with.sizes(), without.sizes()) << what;
      EXPECT_GT((with - without).abs().max().item<double>(), 1e-3) << what;
      model.merge_adapter();
      EXPECT_TRUE(close(model.features(images, Pass{}), with, 1e-5)) << what;
    }
}

TEST(Adapters, TheBackboneStaysFrozenAndEverythingOfTheAdapterTrains) {
  for (const std::string& text : kEach) {
    TunedModel model = reference_model(config_of(text), Pool::mean);
    model.to(at::kCPU, Precision::f32);
    {
      at::NoGradGuard no_grad;
      for (const auto& [name, tensor] : model.adapter->parameters())
        tensor.add_(at::randn_like(tensor), 0.1);
    }
    model.logits(at::randn({2, 3, 16, 16}), Pass{seeded_generator(1)}).square().sum().backward();
    for (const auto& [name, tensor] : model.backbone->parameters())
      EXPECT_FALSE(tensor.requires_grad() || tensor.grad().defined()) << text << " " << name;
    for (const auto& [name, tensor] : model.adapter->parameters())
      EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << text << " " << name;
  }
}

TEST(Adapters, DropoutIsAFunctionOfThePassAndOffInEvaluation) {
  at::NoGradGuard no_grad;
  const at::Tensor images = at::randn({2, 3, 16, 16});
  for (const char* type : {"lora", "adaptformer", "bottleneck", "repadapter", "vpt", "fact"}) {
    TunedModel model =
        reference_model(config_of(R"({"dropout": 0.5, "type": ")" + std::string(type) + "\"}"));
    model.to(at::kCPU, Precision::f32);
    for (const auto& [name, tensor] : model.adapter->parameters()) tensor.normal_(0, 0.3);
    auto run = [&](Pass pass) { return model.features(images, pass); };
    EXPECT_TRUE(at::equal(run({seeded_generator(3)}), run({seeded_generator(3)}))) << type;
    EXPECT_FALSE(at::equal(run({seeded_generator(3)}), run({seeded_generator(4)}))) << type;
    EXPECT_TRUE(at::equal(run({}), run({}))) << type;
    EXPECT_FALSE(at::equal(run({}), run({seeded_generator(3)}))) << type;
  }
}

TEST(Adapters, NoGraphIsBuiltBelowTheLowestBlock) {
  for (const char* type : {"lora", "adaptformer", "bottleneck", "repadapter"}) {
    TunedModel model =
        reference_model(config_of(R"({"blocks": [1], "type": ")" + std::string(type) + "\"}"));
    EXPECT_FALSE(model.adapter->touches(0)) << type;
    EXPECT_TRUE(model.adapter->touches(1)) << type;
    EXPECT_LT(model.backbone->step_values(model.adapter.get(), false),
              reference_model(SsfConfig{})
                  .backbone->step_values(reference_model(SsfConfig{}).adapter.get(), false));
  }
}

TEST(Adapters, ParameterCountsOfVitBaseAreThoseOfTheDocs) {
  // docs/adapters.md holds these numbers.
  VitConfig base = vit_variant("vit_base_patch16_224");
  const Vit vit(base, Vit::random_weights(base, 1), Vit::Options{});
  const std::vector<std::pair<std::string, int64_t>> counts = {
      {R"({"type": "convpass"})", 327'552},
      {R"({"type": "lora"})", 294'912},
      {R"({"type": "lora", "layers": ["q", "k", "v", "proj", "fc1", "fc2"]})", 1'327'104},
      {R"({"type": "adaptformer"})", 1'189'632},
      {R"({"type": "bottleneck"})", 2'379'264},
      {R"({"type": "bottleneck", "sites": ["mlp"]})", 1'189'632},
      {R"({"type": "repadapter"})", 239'808},
      {R"({"type": "ssf"})", 205'824},
      {R"({"type": "bitfit"})", 102'912},
      {R"({"type": "vpt"})", 460'800},
      {R"({"type": "vpt", "deep": false})", 38'400},
      {R"({"type": "fact"})", 61'440},
  };
  for (const auto& [text, wanted] : counts) {
    int64_t count = 0;
    for (const auto& [name, tensor] : make_adapter(config_of(text), vit, 1)->parameters())
      count += tensor.numel();
    EXPECT_EQ(count, wanted) << text;
  }
}

TEST(Adapters, RefuseWhatCannotBe) {
  auto error_of = [](const std::string& text) -> std::string {
    try {
      reference_model(config_of(text));
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_NE(error_of(R"({"type": "lora", "rank": 0})").find("/rank: out of range, got 0"),
            std::string::npos)
      << error_of(R"({"type": "lora", "rank": 0})");
  EXPECT_EQ(error_of(R"({"type": "lora", "layers": ["qk"]})"),
            "adapter.layers: got \"qk\", wanted q, k, v, qkv, proj, fc1 or fc2");
  EXPECT_EQ(error_of(R"({"type": "lora", "layers": ["q", "q"]})"),
            "adapter.layers: \"q\" stands there twice");
  EXPECT_EQ(error_of(R"({"type": "lora", "layers": ["q", "qkv"]})"),
            "adapter.layers: got \"qkv\" beside q, k or v, wanted the one or the others");
  EXPECT_EQ(error_of(R"({"type": "lora", "blocks": [2]})"), "adapter.blocks: got 2, wanted 0 to 1");
  EXPECT_EQ(error_of(R"({"type": "repadapter", "groups": 3})"),
            "adapter.groups: got 3, wanted a divisor of the width 8 and of the tokens' 32");
  EXPECT_EQ(error_of(R"({"type": "bottleneck", "sites": []})"),
            "adapter.sites: got an empty list, wanted \"attn\", \"mlp\"");

  // A network without blocks of tokens.
  const BitConfig bit = bit_variant("bit root 32 widths 128-256 units 1-1");
  const BitResnet resnet(bit, BitResnet::random_weights(bit, 1), {});
  for (const std::string& text : kEach) {
    const AdapterConfig config = config_of(text);
    try {
      make_adapter(config, resnet, 1);
      FAIL() << text;
    } catch (const Error& error) {
      const std::string start = std::string("adapter.type: got \"") + adapter_type(config);
      EXPECT_TRUE(std::string(error.what()).starts_with(start)) << error.what();
    }
  }
}

TEST(Adapters, ConfigsReadBackAsTheyAreWritten) {
  for (const std::string& text : kEach) {
    const std::string written = write_json_fields(config_of(text));
    EXPECT_EQ(written, write_json_fields(config_of(written)));
    EXPECT_NE(written.find(adapter_type(config_of(text))), std::string::npos);
  }
}

}  // namespace
}  // namespace convpass
