#include "convpass/adapters/convpass.h"

#include "convpass/core/error.h"
#include "tests/adapters/reference.h"

namespace convpass {
namespace {

/// One block of width 32: what a module reference file needs.
class OneBlock final : public Backbone {
 public:
  at::Tensor forward(const at::Tensor& images, const Adapter*, const Pass&) const override {
    return images;
  }
  int64_t feature_dim() const override { return 32; }
  int64_t depth() const override { return 1; }
  int64_t step_values(const Adapter*, bool) const override { return 0; }
  std::array<int64_t, 2> image_size() const override { return {16, 16}; }
  NamedTensors parameters() const override { return {}; }
  void to(c10::Device, Precision) override {}
  void set_trainable(bool) override {}
  std::string describe() const override { return "one block"; }
};

class ConvpassModule : public ::testing::TestWithParam<const char*> {};

TEST_P(ConvpassModule, ForwardAndGradientsEqualTheOfficialFormula) {
  const TensorMap map =
      load_tensors(reference_file(std::string("module_") + GetParam() + ".safetensors"));
  auto number = [&](const char* key) { return std::stod(map.metadata.at(key)); };
  const TokenLayout layout{static_cast<int64_t>(number("prefix")),
                           static_cast<int64_t>(number("grid_height")),
                           static_cast<int64_t>(number("grid_width"))};
  ConvpassConfig config;
  config.width = static_cast<int64_t>(number("width"));
  config.scale = number("scale");
  config.sites = {"attn"};
  Convpass adapter(config, OneBlock(), 1);
  adapter.to(at::kCPU);
  const std::string start = "blocks.0.adapter_attn.";
  {
    at::NoGradGuard no_grad;
    for (auto& [name, tensor] : adapter.parameters())
      tensor.copy_(map.at("param/" + name.substr(start.size())));
  }
  at::Tensor input = map.at("input").clone().set_requires_grad(true);
  at::Tensor output = adapter.beside(0, Site::attn, input, layout, Pass{});
  EXPECT_TRUE(close(output, map.at("output"), 1e-5));
  output.backward(map.at("output_gradient"));
  EXPECT_TRUE(close(input.grad(), map.at("input_gradient"), 1e-5 * std::max(1.0, config.scale)));
  for (auto& [name, tensor] : adapter.parameters()) {
    const at::Tensor& wanted = map.at("grad/" + name.substr(start.size()));
    EXPECT_TRUE(
        close(tensor.grad(), wanted, 1e-5 * std::max(1.0, wanted.abs().max().item<double>())))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ConvpassModule,
                         ::testing::Values("square", "square_identity", "oblong", "three_prefix",
                                           "three_prefix_oblong", "no_prefix_h4"));

TEST(Convpass, FreshAdapterLeavesTheBackboneBitForBit) {
  for (ConvInit init : {ConvInit::identity, ConvInit::xavier}) {
    ConvpassConfig config;
    config.conv_init = init;
    config.scale = 100;
    TunedModel model = tiny_model(config);
    at::NoGradGuard no_grad;
    at::Tensor images = at::randn({3, 3, 16, 16});
    EXPECT_TRUE(at::equal(model.backbone->forward(images, nullptr, Pass{}),
                          model.backbone->forward(images, model.adapter.get(), Pass{})));
    const auto& vit = static_cast<const Vit&>(*model.backbone);
    EXPECT_TRUE(at::equal(vit.forward_tokens(images, nullptr, Pass{}),
                          vit.forward_tokens(images, model.adapter.get(), Pass{})));
  }
}

TEST(Convpass, ActsOnNetworksWithoutAClassToken) {
  VitConfig config = tiny_config();
  config.class_token = false;
  TunedModel model;
  model.backbone = std::make_unique<Vit>(
      config, Vit::random_weights(config, 3),
      Vit::Options{.image_size = {16, 16}, .pool = Pool::mean, .drop_path = 0.3});
  model.adapter = make_adapter(ConvpassConfig{.width = 4}, *model.backbone, 1);
  model.head = make_head({}, config.width, 3, 2);
  model.to(at::kCPU, Precision::f32);
  const at::Tensor images = at::randn({2, 3, 16, 16});
  EXPECT_TRUE(
      at::equal(model.features(images, Pass{}), model.backbone->forward(images, nullptr, Pass{})));
  {
    at::NoGradGuard no_grad;
    for (auto& [name, tensor] : model.adapter->parameters())
      tensor.add_(at::randn_like(tensor), 0.1);
  }
  model.logits(images, Pass{.random = seeded_generator(5)}).square().sum().backward();
  for (const auto& [name, tensor] : model.adapter->parameters()) {
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_GT(tensor.grad().abs().max().item<float>(), 0) << name;
  }
}

TEST(Convpass, FirstStepGivesGradientToUpAlone) {
  TunedModel model = tiny_model(ConvpassConfig{});
  model.logits(at::randn({3, 3, 16, 16}), Pass{}).square().sum().backward();
  for (const auto& [name, tensor] : model.adapter->parameters()) {
    const bool up = name.find("adapter_up") != std::string::npos;
    const bool any = tensor.grad().defined() && tensor.grad().abs().max().item<double>() > 0;
    EXPECT_EQ(any, up) << name;
  }
}

TEST(Convpass, ParameterCountIsThePapers) {
  EXPECT_EQ(Convpass::parameter_count({}, 12, 768), 327'552);
  EXPECT_EQ(Convpass::parameter_count({.sites = {"attn"}}, 12, 768), 327'552 / 2);
  for (std::vector<int64_t> blocks : {std::vector<int64_t>{}, {1}}) {
    ConvpassConfig config;
    config.width = 5;
    config.blocks = blocks;
    TunedModel model = tiny_model(config);
    int64_t counted = 0;
    for (const auto& [name, tensor] : model.adapter->parameters()) counted += tensor.numel();
    EXPECT_EQ(counted, Convpass::parameter_count(config, 2, 32));
  }
}

TEST(Convpass, BlocksRestrictsItAndNoGraphIsBuiltBelow) {
  ConvpassConfig config;
  config.blocks = {1};
  TunedModel model = tiny_model(config);
  EXPECT_FALSE(model.adapter->acts(0, Site::attn));
  EXPECT_TRUE(model.adapter->acts(1, Site::mlp));
  // Without any adapter and with frozen weights, the features carry no graph at all.
  at::Tensor images = at::randn({2, 3, 16, 16});
  EXPECT_FALSE(model.backbone->forward(images, nullptr, Pass{}).requires_grad());
  EXPECT_TRUE(model.backbone->forward(images, model.adapter.get(), Pass{}).requires_grad());

  // An adapter in the last block only: the tokens that enter it require no gradient.
  struct Watcher final : public Adapter {
    bool acts(int64_t block, Site site) const override { return block == 1 && site == Site::attn; }
    at::Tensor beside(int64_t, Site, const at::Tensor& normed, const TokenLayout&,
                      const Pass&) const override {
      entered_with_graph = normed.requires_grad();
      return at::zeros_like(normed);
    }
    NamedTensors parameters() const override { return {}; }
    void to(c10::Device) override {}
    mutable bool entered_with_graph = true;
  } watcher;
  model.backbone->forward(images, &watcher, Pass{});
  EXPECT_FALSE(watcher.entered_with_graph);
}

TEST(Convpass, RefusesBlocksAndSitesThatDoNotExist) {
  OneBlock backbone;
  auto text = [&](ConvpassConfig config) -> std::string {
    try {
      Convpass(config, backbone, 1);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(text({.blocks = {1}}), "adapter.blocks: got 1, wanted 0 to 0");
  EXPECT_EQ(text({.blocks = {0, 0}}), "adapter.blocks: 0 stands there twice");
  EXPECT_EQ(text({.sites = {"atn"}}), "adapter.sites: got \"atn\", wanted \"attn\" or \"mlp\"");
  EXPECT_EQ(text({.sites = {"mlp", "mlp"}}), "adapter.sites: \"mlp\" stands there twice");
  EXPECT_NE(text({.sites = {}}), "");
}

TEST(Convpass, DropoutIsAFunctionOfThePassAndOffInEvaluation) {
  ConvpassConfig config;
  config.dropout = 0.5;
  config.conv_init = ConvInit::xavier;
  TunedModel model = tiny_model(config);
  {
    at::NoGradGuard no_grad;
    for (auto& [name, tensor] : model.adapter->parameters()) tensor.normal_(0, 0.3);
  }
  at::NoGradGuard no_grad;
  at::Tensor images = at::randn({2, 3, 16, 16});
  auto run = [&](Pass pass) { return model.logits(images, pass); };
  EXPECT_TRUE(at::equal(run({seeded_generator(3)}), run({seeded_generator(3)})));
  EXPECT_FALSE(at::equal(run({seeded_generator(3)}), run({seeded_generator(4)})));
  EXPECT_TRUE(at::equal(run({}), run({})));
  EXPECT_FALSE(at::equal(run({}), run({seeded_generator(3)})));
}

TEST(Convpass, SeedDecidesTheInitialValues) {
  OneBlock backbone;
  ConvpassConfig config;
  config.conv_init = ConvInit::xavier;
  auto first = [&](uint64_t seed) {
    return Convpass(config, backbone, seed).parameters()[0].second;
  };
  EXPECT_TRUE(at::equal(first(1), first(1)));
  EXPECT_FALSE(at::equal(first(1), first(2)));
  EXPECT_LE(first(1).abs().max().item<double>(), std::sqrt(6.0 / 40));
}

}  // namespace
}  // namespace convpass
