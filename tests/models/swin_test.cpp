#include "convpass/models/swin.h"

#include <ATen/core/grad_mode.h>

#include <numeric>

#include "convpass/core/error.h"
#include "convpass/models/backbone_checkpoint.h"
#include "models/swin_shapes.h"
#include "swin_files.h"

namespace convpass {
namespace {

void expect_near(const at::Tensor& got, const at::Tensor& wanted, const std::string& what,
                 double tolerance = 1e-5) {
  ASSERT_EQ(got.sizes(), wanted.sizes()) << what;
  const double size = std::max(1.0, wanted.abs().max().item<double>());
  EXPECT_LE((got - wanted).abs().max().item<double>(), tolerance * size) << what;
}

Swin build(const std::string& file, std::array<int64_t, 2> size = {32, 32}) {
  const SwinCheckpoint checkpoint = load_swin_checkpoint(swin_file(file));
  return Swin(checkpoint.config, checkpoint.backbone, {.image_size = size});
}

Swin random_swin(const Swin::Options& options = {.image_size = {32, 32}}) {
  TensorMap weights = Swin::random_weights(tiny_swin(), 1);
  for (auto& [name, tensor] : weights.tensors)
    if (tensor.dim() > 1) tensor.mul_(8);
  return Swin(tiny_swin(), weights, options);
}

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Swin, FeaturesAndTheOldHeadsLogitsEqualTimms) {
  at::NoGradGuard no_grad;
  for (const std::string name : {"shifted", "clipped"}) {
    const TensorMap expected = load_tensors(swin_file(name + "/expected.safetensors"));
    const SwinCheckpoint checkpoint = load_swin_checkpoint(swin_file(name + "/microsoft.pth"));
    const Swin swin = build(name + "/microsoft.pth");
    const at::Tensor images = swin_images(2, 32, 32);
    expect_near(swin.forward_tokens(images, nullptr, Pass{}), expected.at("tokens"), name);
    const at::Tensor features = swin.forward(images, nullptr, Pass{});
    expect_near(features, expected.at("features"), name);
    expect_near(
        at::linear(features, checkpoint.head.at("head.weight"), checkpoint.head.at("head.bias")),
        expected.at("logits"), name);
  }
}

TEST(Swin, FeaturesOfAnotherSizeWhoseWindowsReachBeyondTheGridEqualTimms) {
  at::NoGradGuard no_grad;
  const TensorMap expected = load_tensors(swin_file("shifted/expected.safetensors"));
  const Swin swin = build("shifted/timm.safetensors", {48, 64});
  expect_near(swin.forward(swin_images(1, 48, 64), nullptr, Pass{}), expected.at("larger/features"),
              "48x64");
}

TEST(Swin, GradientsOfAllWeightsEqualTimms) {
  for (const std::string name : {"shifted", "clipped"}) {
    const TensorMap expected = load_tensors(swin_file(name + "/expected.safetensors"));
    Swin swin = build(name + "/microsoft.pth");
    swin.set_trainable(true);
    (swin.forward(swin_images(2, 32, 32), nullptr, Pass{}) * expected.at("pull")).sum().backward();
    size_t compared = 0;
    for (const auto& [weight, tensor] : swin.parameters()) {
      ASSERT_TRUE(tensor.grad().defined()) << weight;
      if (!expected.has("grad/" + weight)) continue;
      expect_near(tensor.grad(), expected.at("grad/" + weight), weight, 3e-5);
      ++compared;
    }
    EXPECT_GT(compared, 30) << name;
  }
}

TEST(Swin, IsNearInBfloat16AndHoldsItsWeightsOnceInIt) {
  at::NoGradGuard no_grad;
  const at::Tensor wanted = load_tensors(swin_file("shifted/expected.safetensors")).at("features");
  Swin swin = build("shifted/timm.safetensors");
  const int64_t bytes = swin.size().bytes, values = swin.size().values;
  swin.to(at::kCPU, Precision::bf16);
  swin.set_trainable(false);  // hands dense layers to the CPU's kernels where there are such
  EXPECT_EQ(swin.size().values, values);
  EXPECT_LT(swin.size().bytes, bytes);
  for (const auto& [name, tensor] : swin.parameters())
    EXPECT_EQ(tensor.scalar_type(), at::kBFloat16) << name;
  const at::Tensor got = swin.forward(swin_images(2, 32, 32), nullptr, Pass{});
  EXPECT_EQ(got.scalar_type(), at::kBFloat16);
  EXPECT_LE((got.to(at::kFloat) - wanted).norm().item<double>(),
            0.03 * wanted.norm().item<double>());
}

TEST(Swin, KnowsTheWidthAndTheNameOfEachBlock) {
  const Swin swin = random_swin();
  EXPECT_EQ(swin.depth(), 4);
  EXPECT_EQ(swin.feature_dim(), 32);
  for (const auto& [block, dim] : {std::pair{0, 16}, {1, 16}, {2, 32}, {3, 32}})
    EXPECT_EQ(swin.token_dim(block), dim);
  EXPECT_EQ(swin.block_name(1), "layers.0.blocks.1.");
  EXPECT_EQ(swin.block_name(2), "layers.1.blocks.0.");
  EXPECT_EQ(swin.describe(), "swin width 16 depths 2-2 heads 2-4 windows 4-4 patch 4, 32x32");
}

TEST(Swin, DropsWholeBranchesInTrainingOnly) {
  at::NoGradGuard no_grad;
  Swin swin = random_swin({.image_size = {32, 32}, .drop_path = 0.5});
  const at::Tensor images = swin_images(8, 32, 32);
  auto run = [&](const Pass& pass) { return swin.forward(images, nullptr, pass); };
  EXPECT_TRUE(at::equal(run({}), run({})));
  EXPECT_TRUE(at::equal(run({seeded_generator(1)}), run({})));  // nothing trains
  swin.set_trainable(true);
  EXPECT_TRUE(at::equal(run({seeded_generator(1)}), run({seeded_generator(1)})));
  EXPECT_FALSE(at::equal(run({seeded_generator(1)}), run({})));
}

TEST(Swin, ComputesBlocksTwiceForTheSameGradients) {
  const at::Tensor images = swin_images(2, 32, 32);
  std::vector<at::Tensor> found[2];
  for (int64_t again : {0, 3}) {
    Swin swin = random_swin({.image_size = {32, 32}, .drop_path = 0.3});
    swin.set_trainable(true);
    const int64_t most = swin.step_values(nullptr, true);
    swin.set_recomputed(again);
    if (again > 0) {
      EXPECT_LT(swin.step_values(nullptr, true), most);
    }
    swin.forward(images, nullptr, Pass{seeded_generator(2)}).square().sum().backward();
    for (const auto& [name, tensor] : swin.parameters()) found[again > 0].push_back(tensor.grad());
  }
  for (size_t i = 0; i < found[0].size(); ++i) EXPECT_TRUE(at::equal(found[0][i], found[1][i]));
}

TEST(Swin, TakesOtherWeightsUnderTimmsNames) {
  at::NoGradGuard no_grad;
  Swin swin = random_swin();
  const at::Tensor images = swin_images(1, 32, 32);
  const at::Tensor before = swin.forward(images, nullptr, Pass{});
  std::map<std::string, at::Tensor> weights;
  for (const auto& [name, tensor] : swin.parameters()) weights[name] = tensor.clone();
  weights.at("layers.1.downsample.reduction.weight").mul_(2);
  EXPECT_TRUE(swin.replace_parameters(weights));
  EXPECT_FALSE(at::equal(swin.forward(images, nullptr, Pass{}), before));
}

TEST(Swin, SaysWhichImageSizesArePossible) {
  const TensorMap weights = Swin::random_weights(tiny_swin("clipped"), 1);
  auto at_size = [&](int64_t height, int64_t width) {
    return refusal([&] { Swin(tiny_swin("clipped"), weights, {.image_size = {height, width}}); });
  };
  EXPECT_EQ(at_size(32, 32), "no error");
  EXPECT_EQ(at_size(40, 32),
            "backbone: image size: got 40, wanted a multiple of 16, the pixels of a token in the "
            "last stage");
  EXPECT_EQ(at_size(48, 48),
            "backbone: image size: got 48x48, wanted 32x32: the grid of stage 2 would be 6x6, and "
            "the weights have relative positions for windows of 4x4");
  EXPECT_EQ(at_size(16, 16),
            "backbone: image size: got 16x16, wanted at least 28x28: the grid of stage 1 would be "
            "4x4, and the weights have relative positions for windows of 7x7");
  EXPECT_EQ(fitted_to({}, {64, 64}).windows, (std::vector<int64_t>{7, 7, 4, 2}));
  EXPECT_EQ(fitted_to({}, {224, 224}).windows, (std::vector<int64_t>{7, 7, 7, 7}));
  EXPECT_NE(refusal([] { fitted_to({}, {64, 96}); }).find("wanted 64x64"), std::string::npos);
}

TEST(Swin, RefusesWeightsOfAnotherShape) {
  TensorMap weights = Swin::random_weights(tiny_swin(), 1);
  weights.tensors["layers.0.blocks.0.attn.relative_position_bias_table"] = at::zeros({25, 2});
  EXPECT_EQ(refusal([&] {
              Swin(tiny_swin(), weights, {.image_size = {32, 32}});
            }),
            "backbone: tensor layers.0.blocks.0.attn.relative_position_bias_table: got shape [25, "
            "2], wanted [49, 2]");
  weights = Swin::random_weights(tiny_swin(), 1);
  weights.tensors["stray"] = at::zeros({1});
  EXPECT_NE(refusal([&] {
              Swin(tiny_swin(), weights, {.image_size = {32, 32}});
            }).find("1 tensor"),
            std::string::npos);
}

TEST(SwinVariants, AreTimmsWithEveryTensorOfTheirs) {
  struct Known {
    const char* name;
    int64_t parameters;
  };
  // timm 1.0.31, without the head.
  for (const auto& [name, parameters] : {Known{"swin_tiny_patch4_window7", 27'519'354},
                                         {"swin_small_patch4_window7", 48'837'258},
                                         {"swin_base_patch4_window7", 86'743'224},
                                         {"swin_base_patch4_window12", 86'878'584},
                                         {"swin_large_patch4_window12", 195'198'516}}) {
    const SwinConfig config = swin_variant(name);
    int64_t count = 0;
    for (const auto& [tensor, shape] : swin_shapes(config))
      count += std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    EXPECT_EQ(count, parameters) << name;
    EXPECT_EQ(swin_name(config), name);
  }
}

TEST(SwinVariants, AreReadAsTimmSpellsThem) {
  for (const char* name : {"swin_base_patch4_window7_224", "swin_base_patch4_window7_224_in22k",
                           "swin_base_patch4_window7_224.ms_in22k", "swin_base_patch4_window7"})
    EXPECT_EQ(swin_name(swin_variant(name)), "swin_base_patch4_window7") << name;
  const SwinConfig tiny = tiny_swin("clipped");
  EXPECT_EQ(swin_variant(swin_name(tiny)), tiny);
  EXPECT_EQ(own_image_size(swin_variant("swin_base_patch4_window12")),
            (std::array<int64_t, 2>{384, 384}));
  auto error = [](const std::string& name) { return refusal([&] { backbone_variant(name); }); };
  EXPECT_NE(error("swin_bass_patch4_window7").find("did you mean \"swin_base_patch4_window7\"?"),
            std::string::npos);
  EXPECT_NE(error("swin width 16 depths 1-1 heads 1 windows 4-4 patch 4")
                .find("got 1 for heads, wanted one for each of 2 stages"),
            std::string::npos);
  EXPECT_NE(error("swin width 16 depths 1 heads 3 windows 4 patch 4")
                .find("got 3 heads in stage 1, wanted a divisor of the width 16"),
            std::string::npos);
  EXPECT_NE(error("swin width 0 depths 1 heads 1 windows 4 patch 4").find("wanted 1 to"),
            std::string::npos);
}

TEST(SwinVariants, AreTheSameArchitectureWhateverTheResolution) {
  const SwinConfig tiny = swin_variant("swin_tiny_patch4_window7");
  EXPECT_TRUE(same_architecture(tiny, fitted_to(tiny, {64, 64})));
  EXPECT_FALSE(same_architecture(tiny, swin_variant("swin_small_patch4_window7")));
  EXPECT_FALSE(same_architecture(tiny, swin_variant("swin_tiny_patch4_window12")));
  EXPECT_EQ(architecture_text(BackboneArchitecture(tiny)),
            "swin_tiny_patch4_window7 (width 96, depths 2-2-6-2, heads 3-6-12-24, windows 7-7-7-7, "
            "patch 4)");
}

}  // namespace
}  // namespace convpass
