#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "vit_families.h"

namespace convpass {
namespace {

class VitFeatures : public testing::TestWithParam<VitFamily> {
 protected:
  static void expect_near(const at::Tensor& got, const at::Tensor& wanted) {
    ASSERT_EQ(got.sizes(), wanted.sizes());
    const at::Tensor error = (got - wanted).abs() / (1 + wanted.abs());
    EXPECT_LE(error.max().item<double>(), 1e-5);
  }

  void expect_equal_at(const std::string& suffix) {
    const at::NoGradGuard no_grad;
    const VitCheckpoint checkpoint = load_vit_checkpoint(family_file(GetParam()));
    const TensorMap images = load_tensors(family_folder("") / "images.safetensors");
    const TensorMap expected =
        load_tensors(family_folder(GetParam().name) / "expected.safetensors");
    const at::Tensor& image = images.at("images" + suffix);
    const Vit vit(checkpoint.config, checkpoint.backbone,
                  {.image_size = {image.size(2), image.size(3)}});
    expect_near(vit.forward(image, nullptr, Pass{}), expected.at("features" + suffix));
    expect_near(vit.forward_tokens(image, nullptr, Pass{}), expected.at("tokens" + suffix));
  }
};

TEST_P(VitFeatures, EqualThoseOfTheFamilysOwnLibrary) { expect_equal_at(""); }

TEST_P(VitFeatures, EqualThoseOfTheFamilysOwnLibraryWhenPositionsAreResized) {
  expect_equal_at("_resized");
}

INSTANTIATE_TEST_SUITE_P(Families, VitFeatures, testing::ValuesIn(vit_families()), family_name);

}  // namespace
}  // namespace convpass
