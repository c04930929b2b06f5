#include "convpass/models/bit_resnet.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "bit_ports.h"
#include "convpass/core/error.h"

namespace convpass {
namespace {

void expect_near(const at::Tensor& got, const at::Tensor& wanted) {
  ASSERT_EQ(got.sizes(), wanted.sizes());
  EXPECT_LE(((got - wanted).abs() / (1 + wanted.abs())).max().item<double>(), 1e-5);
}

BitResnet build(const BitCheckpoint& checkpoint, const at::Tensor& images) {
  return BitResnet(checkpoint.config, checkpoint.backbone,
                   {.image_size = {images.size(2), images.size(3)}});
}

class BitFeatures : public testing::TestWithParam<BitPort> {
 protected:
  const at::Tensor images = load_tensors(bit_folder("") / "images.safetensors").at("images");
  const TensorMap expected = load_tensors(bit_folder(GetParam().name) / "expected.safetensors");
  const BitCheckpoint checkpoint = load_bit_checkpoint(bit_file(GetParam()));
};

TEST_P(BitFeatures, AndLogitsOfTheOldHeadEqualThePorts) {
  at::NoGradGuard no_grad;
  const BitResnet bit = build(checkpoint, images);
  const at::Tensor features = bit.forward(images, nullptr, Pass{});
  expect_near(features, expected.at("features"));
  expect_near(
      at::linear(features, checkpoint.head.at("head.weight"), checkpoint.head.at("head.bias")),
      expected.at("logits"));
}

TEST_P(BitFeatures, AreTheSameFrozen) {
  at::NoGradGuard no_grad;
  BitResnet bit = build(checkpoint, images);
  bit.to(at::kCPU, Precision::f32);
  bit.set_trainable(false);
  expect_near(bit.forward(images, nullptr, Pass{}), expected.at("features"));
}

TEST_P(BitFeatures, AreNearInBfloat16) {
  at::NoGradGuard no_grad;
  BitResnet bit = build(checkpoint, images);
  bit.to(at::kCPU, Precision::bf16);
  bit.set_trainable(false);
  for (const auto& [name, tensor] : bit.parameters())
    EXPECT_EQ(tensor.scalar_type(), at::kBFloat16) << name;
  const at::Tensor got = bit.forward(images, nullptr, Pass{});
  EXPECT_EQ(got.scalar_type(), at::kBFloat16);
  const at::Tensor& wanted = expected.at("features");
  const double error = (got.to(at::kFloat) - wanted).norm().item<double>();
  EXPECT_LE(error, 0.03 * wanted.norm().item<double>());
}

INSTANTIATE_TEST_SUITE_P(Ports, BitFeatures, testing::ValuesIn(bit_ports()), port_name);

TEST(BitResnet, GradientsEqualTimms) {
  const TensorMap expected = load_tensors(bit_folder("timm") / "expected.safetensors");
  const at::Tensor images = load_tensors(bit_folder("") / "images.safetensors").at("images");
  BitResnet bit = build(load_bit_checkpoint(bit_folder("timm") / "model.safetensors"), images);
  bit.set_trainable(true);
  (bit.forward(images, nullptr, Pass{}) * expected.at("pull")).sum().backward();
  for (const auto& [name, tensor] : bit.parameters()) {
    const at::Tensor& wanted = expected.at("grad/" + name);
    ASSERT_TRUE(tensor.grad().defined()) << name;
    EXPECT_LE((tensor.grad() - wanted).norm().item<double>(), 1e-5 * wanted.norm().item<double>())
        << name;
  }
}

TEST(BitResnet, TakesImagesOfAnySize) {
  at::NoGradGuard no_grad;
  const BitConfig config = tiny_bit();
  const TensorMap weights = BitResnet::random_weights(config, 1);
  for (int64_t height : {1, 2, 31, 64})
    for (int64_t width : {1, 17}) {
      const BitResnet bit(config, weights, {.image_size = {height, width}});
      const at::Tensor features = bit.forward(at::randn({2, 3, height, width}), nullptr, Pass{});
      EXPECT_EQ(features.sizes(), (std::vector<int64_t>{2, 64}));
      EXPECT_TRUE(at::isfinite(features).all().item<bool>());
    }
  EXPECT_THROW(BitResnet(config, weights, {.image_size = {0, 8}}), Error);
}

TEST(BitResnet, StandardisesOutOfBfloat16EvenForTinyKernels) {
  at::NoGradGuard no_grad;
  const BitConfig config = tiny_bit();
  TensorMap weights = BitResnet::random_weights(config, 1);
  // A mean a thousand times the deviation: in bfloat16 nothing but the mean would be left.
  for (auto& [name, tensor] : weights.tensors)
    if (tensor.dim() == 4) tensor.mul_(1e-2).add_(10);
  BitResnet full(config, weights, {.image_size = {32, 32}});
  BitResnet half(config, weights, {.image_size = {32, 32}});
  half.to(at::kCPU, Precision::bf16);
  const at::Tensor images = at::randn({2, 3, 32, 32});
  const at::Tensor wanted = full.forward(images, nullptr, Pass{});
  for (bool frozen : {false, true}) {
    if (frozen) half.set_trainable(false);
    const at::Tensor got = half.forward(images, nullptr, Pass{}).to(at::kFloat);
    EXPECT_LE((got - wanted).norm().item<double>(), 0.05 * wanted.norm().item<double>());
  }
}

TEST(BitResnet, HoldsItsParametersUnderTimmsNamesAndKeepsTheCheckpointsMemoryUnchanged) {
  const BitConfig config = tiny_bit();
  const TensorMap weights = BitResnet::random_weights(config, 1);
  const at::Tensor kernel = weights.at("stages.0.blocks.1.conv2.weight").clone();
  BitResnet bit(config, weights, {.image_size = {16, 16}});
  bit.set_trainable(true);
  NamedTensors parameters = bit.parameters();
  EXPECT_EQ(parameters.size(), weights.tensors.size());
  for (auto& [name, tensor] : parameters) {
    EXPECT_TRUE(at::equal(tensor, weights.at(name))) << name;
    EXPECT_TRUE(tensor.requires_grad()) << name;
    at::NoGradGuard no_grad;
    tensor.zero_();
  }
  EXPECT_TRUE(at::equal(kernel, weights.at("stages.0.blocks.1.conv2.weight")));
}

TEST(BitResnet, RefusesWeightsThatDoNotFitByName) {
  auto text = [](const std::function<void(TensorMap&)>& damage) -> std::string {
    TensorMap weights = BitResnet::random_weights(tiny_bit(), 1);
    damage(weights);
    try {
      BitResnet(tiny_bit(), weights, {.image_size = {16, 16}});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(text([](TensorMap&) {}), "");
  EXPECT_EQ(text([](TensorMap& m) { m.tensors.erase("stages.1.blocks.0.downsample.conv.weight"); }),
            "backbone: tensor stages.1.blocks.0.downsample.conv.weight is missing");
  EXPECT_EQ(text([](TensorMap& m) { m.tensors["norm.bias"] = at::zeros({63}); }),
            "backbone: tensor norm.bias: got shape [63], wanted [64]");
  EXPECT_EQ(text([](TensorMap& m) { m.tensors["extra"] = at::zeros({1}); }),
            "backbone: 1 tensors of the checkpoint have no place in this architecture");
}

TEST(BitVariant, HasTheUnitsAndWidthsOfItsName) {
  const BitConfig small = bit_variant("resnetv2_50x1_bit");
  EXPECT_EQ(small, BitConfig{});
  EXPECT_EQ(bit_variant("R50x1"), small);
  EXPECT_EQ(bit_variant("resnetv2_50x1_bit.goog_distilled_in1k"), small);
  const BitConfig large = bit_variant("R152x4");
  EXPECT_EQ(large.units, (std::vector<int64_t>{3, 8, 36, 3}));
  EXPECT_EQ(large.widths, (std::vector<int64_t>{1024, 2048, 4096, 8192}));
  EXPECT_EQ(large.root, 256);
  EXPECT_EQ(bit_name(large), "resnetv2_152x4_bit");
  EXPECT_EQ(bit_name(bit_variant("R101x3")), "resnetv2_101x3_bit");
  EXPECT_EQ(bit_name(tiny_bit()), "bit root 16 widths 32-64 units 2-1");
}

TEST(BitVariant, RefusesOthersNamingTheNearest) {
  for (const char* name : {"R50x0", "R50", "resnetv2_34x1_bit", "resnetv2_50x1", "R50x12"})
    EXPECT_THROW(bit_variant(name), Error) << name;
  try {
    bit_variant("resnetv2_50x1_bti");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean \"resnetv2_50x1_bit\"?"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace convpass
