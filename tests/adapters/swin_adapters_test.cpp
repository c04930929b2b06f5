#include "convpass/adapters/adapter_file.h"
#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "tests/adapters/reference.h"
#include "tests/core/temp_folder.h"
#include "tests/models/swin_files.h"

// Adapters in the blocks of a Swin, whose stages have widths and grids of their own.
namespace convpass {
namespace {

AdapterConfig config_of(const std::string& text) {
  AdapterConfig config;
  read_json_fields(text, config, "test");
  return config;
}

const std::vector<std::string> kEach = {
    R"({"type": "convpass"})",
    R"({"type": "convpass", "sites": ["attn"], "blocks": [1, 2], "conv_init": "xavier"})",
    R"({"type": "lora", "layers": ["q", "k", "v", "proj", "fc1", "fc2"]})",
    R"({"type": "lora", "layers": ["qkv"], "blocks": [3]})",
    R"({"type": "adaptformer"})",
    R"({"type": "bottleneck"})",
    R"({"type": "repadapter"})"};

/// 48x64 pixels: windows of the second stage reach beyond its grid.
TunedModel swin_model(const AdapterConfig& adapter, std::array<int64_t, 2> size = {48, 64}) {
  const SwinCheckpoint checkpoint = load_swin_checkpoint(swin_file("shifted/timm.safetensors"));
  TunedModel model;
  model.backbone = std::make_unique<Swin>(checkpoint.config, checkpoint.backbone,
                                          Swin::Options{.image_size = size, .drop_path = 0.1});
  model.identity = {.name = "tiny",
                    .format = "timm",
                    .hash = checkpoint.hash,
                    .position_resize = "none",
                    .normalization = {},
                    .architecture = "{}"};
  model.adapter = make_adapter(adapter, *model.backbone, 1);
  model.head = make_head({}, model.backbone->feature_dim(), 5, 2);
  return model;
}

void disturb(const Adapter& adapter) {
  at::NoGradGuard no_grad;
  at::Generator generator = seeded_generator(9);
  for (const auto& [name, tensor] : adapter.parameters())
    tensor.add_(at::empty_like(tensor).normal_(0, 0.1, generator));
}

TEST(SwinAdapters, ConvpassEqualsTheOfficialFormulaForwardAndBackward) {
  const TensorMap expected = load_tensors(swin_file("shifted/expected.safetensors"));
  ConvpassConfig config;
  config.width = 4;
  config.scale = 0.5;
  TunedModel model = swin_model(config, {32, 32});
  model.to(at::kCPU, Precision::f32);
  {
    at::NoGradGuard no_grad;
    for (const auto& [name, tensor] : model.adapter->parameters()) {
      ASSERT_EQ(expected.at("param/" + name).sizes(), tensor.sizes()) << name;
      tensor.copy_(expected.at("param/" + name));
    }
  }
  at::Tensor features = model.features(swin_images(2, 32, 32), Pass{});
  EXPECT_TRUE(close(features, expected.at("convpass/features"), 1e-5));
  (features * expected.at("pull")).sum().backward();
  size_t count = 0;
  for (const auto& [name, tensor] : model.adapter->parameters()) {
    const at::Tensor& wanted = expected.at("adapter_grad/" + name);
    EXPECT_TRUE(
        close(tensor.grad(), wanted, 1e-5 * std::max(1.0, wanted.abs().max().item<double>())))
        << name;
    ++count;
  }
  EXPECT_EQ(count, 4 * 2 * 6);
}

TEST(SwinAdapters, FusedConvpassEqualsThePlainOne) {
  at::NoGradGuard no_grad;
  TunedModel model = swin_model(ConvpassConfig{});
  model.to(at::kCPU, Precision::f32);
  disturb(*model.adapter);
  const TokenLayout layout{.prefix = 0, .height = 3, .width = 4};
  Adapter::Residual residual;
  residual.stream = at::zeros({2, 12, 32});
  residual.normed = at::randn({2, 12, 32});
  const at::Tensor plain = model.adapter->beside(3, Site::mlp, residual.normed, layout, Pass{});
  residual.begun = model.adapter->begin_beside(3, Site::mlp, residual.normed, layout);
  const at::Tensor sum = model.adapter->add_beside(3, Site::mlp, residual, layout, Pass{});
  EXPECT_TRUE(close(sum, plain, 1e-5));
}

TEST(SwinAdapters, FrozenBlocksBelowThemHaveNoStochasticDepth) {
  at::NoGradGuard no_grad;
  const at::Tensor images = swin_images(64, 48, 64);
  // The rate is linear over the four blocks: 0 in the first, 0.1 in the last.
  auto drops = [&](const AdapterConfig& adapter) {
    TunedModel model = swin_model(adapter);
    model.to(at::kCPU, Precision::f32);
    const Backbone& swin = *model.backbone;
    return !at::equal(swin.forward(images, model.adapter.get(), Pass{seeded_generator(7)}),
                      swin.forward(images, model.adapter.get(), Pass{}));
  };
  EXPECT_TRUE(drops(ConvpassConfig{.dropout = 0}));
  EXPECT_TRUE(drops(ConvpassConfig{.blocks = {3}, .dropout = 0}));
  EXPECT_FALSE(drops(NoAdapter{}));
}

TEST(SwinAdapters, FreshOnesLeaveTheFeaturesBitForBit) {
  at::NoGradGuard no_grad;
  const at::Tensor images = swin_images(2, 48, 64);
  for (const std::string& text : kEach) {
    TunedModel model = swin_model(config_of(text));
    model.to(at::kCPU, Precision::f32);
    EXPECT_TRUE(
        at::equal(model.backbone->forward(images, nullptr, Pass{}), model.features(images, Pass{})))
        << text;
  }
}

TEST(SwinAdapters, TheBackboneStaysFrozenAndEverythingOfTheAdapterTrains) {
  for (const std::string& text : kEach) {
    TunedModel model = swin_model(config_of(text));
    model.to(at::kCPU, Precision::f32);
    disturb(*model.adapter);
    model.logits(swin_images(4, 48, 64), Pass{seeded_generator(1)}).square().sum().backward();
    for (const auto& [name, tensor] : model.backbone->parameters())
      EXPECT_FALSE(tensor.requires_grad() || tensor.grad().defined()) << text << " " << name;
    for (const auto& [name, tensor] : model.adapter->parameters()) {
      ASSERT_TRUE(tensor.grad().defined()) << text << " " << name;
      EXPECT_GT(tensor.grad().abs().max().item<double>(), 0) << text << " " << name;
    }
  }
}

TEST(SwinAdapters, MergedEqualsUnmergedAlsoWhereWindowsReachBeyondTheGrid) {
  at::NoGradGuard no_grad;
  const at::Tensor images = swin_images(2, 48, 64);
  for (const std::string& text : kEach) {
    TunedModel model = swin_model(config_of(text));
    disturb(*model.adapter);
    const at::Tensor before = model.features(images, Pass{});
    model.merge_adapter();
    EXPECT_EQ(model.adapter_merged, std::holds_alternative<LoraConfig>(config_of(text))) << text;
    EXPECT_TRUE(close(model.features(images, Pass{}), before, 1e-5)) << text;
  }
}

TEST(SwinAdapters, ComeBackFromTheirFile) {
  const TempFolder folder;
  at::NoGradGuard no_grad;
  const at::Tensor images = swin_images(2, 48, 64);
  for (const std::string& text : kEach) {
    TunedModel model = swin_model(config_of(text));
    disturb(*model.adapter);
    AdapterFile file{.weights = {},
                     .backbone = model.identity,
                     .image_size = {48, 64},
                     .pool = "auto",
                     .adapter = config_of(text),
                     .head = HeadType::linear,
                     .preprocessing = "{}",
                     .classes = {"a", "b", "c", "d", "e"},
                     .recipe_hash = ""};
    for (const auto& [name, tensor] : model.state()) file.weights.tensors[name] = tensor;
    save_adapter(folder / "adapter.safetensors", file);
    TunedModel back = swin_model(config_of(text));
    apply_adapter(load_adapter(folder / "adapter.safetensors"), back);
    EXPECT_TRUE(at::equal(back.logits(images, Pass{}), model.logits(images, Pass{}))) << text;
  }
}

TEST(SwinAdapters, AreNearInBfloat16) {
  const at::Tensor images = swin_images(2, 48, 64);
  for (const std::string& text : kEach) {
    at::Tensor found[2];
    for (Precision precision : {Precision::f32, Precision::bf16}) {
      TunedModel model = swin_model(config_of(text));
      model.to(at::kCPU, precision);
      disturb(*model.adapter);
      at::Tensor features = model.features(images, Pass{});
      features.sum().backward();
      found[precision == Precision::bf16] = features.detach().to(at::kFloat);
    }
    EXPECT_LE((found[1] - found[0]).norm().item<double>(), 0.05 * found[0].norm().item<double>())
        << text;
  }
}

TEST(SwinAdapters, NothingIsKeptBelowTheLowestBlock) {
  const auto values = [](const std::string& text) {
    const TunedModel model = swin_model(config_of(text));
    return model.backbone->step_values(model.adapter.get(), false);
  };
  EXPECT_LT(values(R"({"type": "convpass", "blocks": [3]})"), values(R"({"type": "convpass"})"));
}

TEST(SwinAdapters, ConvpassOfSwinBaseHas437504Parameters) {
  const SwinConfig base = swin_variant("swin_base_patch4_window7");
  const Swin swin(base, Swin::random_weights(base, 1), {});
  int64_t count = 0;
  for (const auto& [name, tensor] : Convpass({}, swin, 1).parameters()) count += tensor.numel();
  EXPECT_EQ(count, 437'504);
  EXPECT_EQ(Convpass({}, swin, 1).parameters().back().first,
            "blocks.23.adapter_mlp.adapter_up.bias");
}

TEST(SwinAdapters, ThoseThatCannotBeInStagesSaySo) {
  for (const auto& [type, why] :
       {std::pair{"vpt", "its windows have no place for prompts"},
        {"fact", "its blocks share no width, and so no U and V"},
        {"ssf", "the layers that merge its patches are out of reach"},
        {"bitfit", "the layers that merge its patches are out of reach"}}) {
    std::string text = "no error";
    try {
      swin_model(config_of(R"({"type": ")" + std::string(type) + R"("})"));
    } catch (const Error& error) {
      text = error.what();
    }
    EXPECT_EQ(text, std::string("adapter.type: got \"") + type +
                        "\", wanted another for swin width 16 depths 2-2 heads 2-4 windows 4-4 "
                        "patch 4, 48x64: " +
                        why);
  }
}

}  // namespace
}  // namespace convpass
