#include "convpass/models/bit_checkpoint.h"

#include <ATen/ATen.h>

#include <fstream>

#include "bit_ports.h"
#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/backbone_checkpoint.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

/// The message of the FileError that reading throws, or "" when it throws none.
std::string refusal(const TensorMap& tensors, const std::filesystem::path& file) {
  try {
    bit_checkpoint_from(tensors, file);
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TensorMap without_prefix(const TensorMap& map, const std::string& prefix) {
  TensorMap out;
  for (const auto& [name, tensor] : map.tensors)
    if (name.starts_with(prefix)) out.tensors[name.substr(prefix.size())] = tensor;
  return out;
}

class BitFile : public testing::TestWithParam<BitPort> {
 protected:
  const std::filesystem::path file = bit_file(GetParam());
  const TensorMap tensors = load_tensors(file);
  const BitCheckpoint timm = load_bit_checkpoint(bit_folder("timm") / "model.safetensors");
};

TEST_P(BitFile, TellsItsArchitectureAndFollowsItsSourcesNumerics) {
  const BitCheckpoint checkpoint = bit_checkpoint_from(tensors, file);
  BitConfig wanted = tiny_bit();
  wanted.standardization_eps = GetParam().standardization_eps;
  wanted.pool_padding = GetParam().pool_padding;
  EXPECT_EQ(checkpoint.format, GetParam().format);
  EXPECT_EQ(checkpoint.config, wanted);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(checkpoint.normalization.mean[i], 0.5);
    EXPECT_EQ(checkpoint.normalization.std[i], 0.5);
  }
}

TEST_P(BitFile, HoldsTheSameTensorsAsTimms) {
  const BitCheckpoint checkpoint = bit_checkpoint_from(tensors, file);
  EXPECT_EQ(checkpoint.hash, timm.hash);
  for (auto part : {&BitCheckpoint::backbone, &BitCheckpoint::head}) {
    ASSERT_EQ((checkpoint.*part).tensors.size(), (timm.*part).tensors.size());
    for (const auto& [name, tensor] : (timm.*part).tensors)
      EXPECT_TRUE(at::equal((checkpoint.*part).at(name), tensor)) << name;
  }
}

TEST_P(BitFile, NeedsEveryTensor) {
  for (const auto& [name, tensor] : tensors.tensors) {
    if (!tensor.is_floating_point()) continue;  // the optimiser's step
    TensorMap less = tensors;
    less.tensors.erase(name);
    const std::string text = refusal(less, file);
    std::string plain = name;  // the number of a standardized_conv2d_7 is no part of its name
    if (const size_t at = plain.find("conv2d_"); at != std::string::npos)
      plain.erase(at + 6, plain.find('/', at) - at - 6);
    EXPECT_TRUE(contains(text, "misses") && contains(text, plain)) << name << ": " << text;
  }
}

TEST_P(BitFile, RefusesATensorThatHasNoPlace) {
  for (const char* name : {"stray.weight", "resnet/block1/unit1/a/group_norm/gamma"}) {
    TensorMap more = tensors;
    more.tensors[name] = at::ones({2});
    EXPECT_TRUE(contains(refusal(more, file), std::string("1 tensor: ") + name))
        << refusal(more, file);
  }
}

TEST_P(BitFile, RefusesAnyOtherShapeOrType) {
  for (const auto& [name, tensor] : tensors.tensors) {
    if (!tensor.is_floating_point()) continue;
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
      TensorMap longer = tensors;
      longer.tensors[name] = at::cat({tensor, tensor.narrow(axis, 0, 1)}, axis);
      EXPECT_NE(refusal(longer, file), "") << name << " longer along " << axis;
    }
    TensorMap other = tensors;
    other.tensors[name] = tensor.to(at::kInt);
    EXPECT_TRUE(contains(refusal(other, file), "tensor " + name + ": got int")) << name;
    other.tensors[name] = tensor.narrow(0, 0, 0);
    EXPECT_TRUE(contains(refusal(other, file), "tensor " + name + " is empty")) << name;
    other.tensors[name] = at::zeros({});
    EXPECT_NE(refusal(other, file), "") << name;
  }
}

TEST_P(BitFile, ComesBackBitForBitFromEveryFormat) {
  const BitCheckpoint checkpoint = bit_checkpoint_from(tensors, file);
  for (const BitPort& port : bit_ports())
    for (bool head : {true, false}) {
      BitCheckpoint source = checkpoint;
      if (!head) source.head.tensors.clear();
      const BitCheckpoint back =
          bit_checkpoint_from(bit_checkpoint_as(source, port.format), "nowhere/converted");
      EXPECT_EQ(back.format, port.format);
      EXPECT_EQ(back.config, checkpoint.config);
      EXPECT_EQ(back.hash, checkpoint.hash);
      EXPECT_EQ(back.head.tensors.size(), source.head.tensors.size());
      for (const auto& [name, tensor] : source.head.tensors)
        EXPECT_TRUE(at::equal(back.head.at(name), tensor)) << name;
    }
}

INSTANTIATE_TEST_SUITE_P(Ports, BitFile, testing::ValuesIn(bit_ports()), port_name);

TEST(BitCheckpoint, ReadsABareHuggingFaceModelAndABigVisionFileWithoutItsPrefix) {
  const auto file = bit_folder("hf_bit") / "model.safetensors";
  const BitCheckpoint whole = load_bit_checkpoint(file);
  const BitCheckpoint bare = bit_checkpoint_from(without_prefix(load_tensors(file), "bit."), file);
  EXPECT_EQ(bare.format, BitFormat::hf_bit);
  EXPECT_EQ(bare.hash, whole.hash);
  EXPECT_TRUE(bare.head.tensors.empty());
  const auto npz = bit_folder("big_vision_npz") / "checkpoint.npz";
  EXPECT_EQ(bit_checkpoint_from(without_prefix(load_tensors(npz), "params/"), npz).hash,
            whole.hash);
}

TEST(BitCheckpoint, PadsThePoolOfTheJaxPortWithZeros) {
  const auto file = bit_folder("big_vision_npz") / "checkpoint.npz";
  TensorMap map = without_prefix(load_tensors(file), "params/");
  for (const char* leaf : {"kernel", "bias"}) {
    auto entry = map.tensors.extract(std::string("head/") + leaf);
    entry.key() = std::string("conv_head/") + leaf;
    map.tensors.insert(std::move(entry));
  }
  const BitCheckpoint checkpoint = bit_checkpoint_from(map, file);
  EXPECT_EQ(checkpoint.config.pool_padding, PoolPadding::zero);
  EXPECT_EQ(checkpoint.config.standardization_eps, 1e-10);
  EXPECT_EQ(checkpoint.head.at("head.weight").sizes(), (std::vector<int64_t>{3, 64}));
}

TEST(BitCheckpoint, NeedsToBeToldOfOtherGroupsThan32) {
  const TensorMap map = load_tensors(bit_folder("timm") / "model.safetensors");
  const std::string text = refusal(map, "nowhere/model.safetensors");
  EXPECT_TRUE(contains(text, "got 16 channels of the root, wanted a multiple of the 32 groups"))
      << text;
}

TEST(BitCheckpoint, RefusesHuggingFaceModelsThatComputeSomethingElse) {
  const TempFolder folder;
  const TensorMap map = load_tensors(bit_folder("hf_bit") / "model.safetensors");
  auto with = [&](const std::string& field) {
    std::ofstream(folder / "config.json") << "{\"num_groups\": 8" << field << "}";
    return refusal(map, folder / "model.safetensors");
  };
  EXPECT_EQ(with(""), "");
  EXPECT_EQ(with(R"(, "global_padding": null, "output_stride": 32)"), "");
  for (const auto& [key, value] : {std::pair{"layer_type", "\"bottleneck\""},
                                   {"global_padding", "\"SAME\""},
                                   {"embedding_dynamic_padding", "true"},
                                   {"hidden_act", "\"gelu\""},
                                   {"output_stride", "16"}})
    EXPECT_TRUE(contains(with(std::string(", \"") + key + "\": " + value), std::string("/") + key))
        << key;
}

TEST(BitCheckpoint, RefusesAMissingUnitAndAbsurdCountsByName) {
  const auto file = bit_folder("timm") / "model.safetensors";
  const TensorMap map = load_tensors(file);
  auto add = [&](const std::string& unit) {
    TensorMap more = map;
    more.tensors[unit + ".conv1.weight"] = at::zeros({8, 32, 1, 1});
    return refusal(more, file);
  };
  EXPECT_TRUE(contains(add("stages.0.blocks.3"), "misses")) << add("stages.0.blocks.3");
  EXPECT_TRUE(contains(add("stages.3.blocks.0"), "misses")) << add("stages.3.blocks.0");
  // Neither may cost the memory of the units that they pretend.
  EXPECT_TRUE(contains(add("stages.0.blocks.1023"), "units")) << add("stages.0.blocks.1023");
  EXPECT_NE(add("stages.1000.blocks.1000"), "");
  for (const char* number : {"1024", "999999999999999999999", "-1", "01", "1x"})
    EXPECT_TRUE(contains(add(std::string("stages.0.blocks.") + number), "has, beside"))
        << add(std::string("stages.0.blocks.") + number);
}

TEST(BitCheckpoint, BelievesNoConfigurationOfItsOwnThatTheTensorsDoNotBear) {
  const BitCheckpoint checkpoint = load_bit_checkpoint(bit_folder("timm") / "model.safetensors");
  const TensorMap map = bit_checkpoint_as(checkpoint, BitFormat::timm);
  auto with = [&](const std::string& config) {
    TensorMap other = map;
    other.metadata["bit_config"] = config;
    return refusal(other, "nowhere/model.safetensors");
  };
  EXPECT_NE(with(R"({"units": [1000, 1000], "widths": [32, 64], "groups": 8})"), "");
  EXPECT_NE(with(R"({"units": [2, 1], "widths": [32, 128], "root": 16, "groups": 8})"), "");
  EXPECT_NE(with(R"({"units": [2], "widths": [32, 64], "root": 16, "groups": 8})"), "");
}

TEST(BackboneCheckpoint, TellsBitFromVitAndWritesTheKindIntoTheArchitecture) {
  const BackboneCheckpoint bit = load_backbone_checkpoint(bit_folder("timm") / "model.safetensors");
  EXPECT_TRUE(std::holds_alternative<BitConfig>(bit.architecture));
  EXPECT_EQ(bit.format, "timm");
  const BackboneCheckpoint vit = load_backbone_checkpoint(
      std::filesystem::path(CONVPASS_TEST_DATA) / "vit/timm_vit/model.safetensors");
  EXPECT_TRUE(std::holds_alternative<VitConfig>(vit.architecture));
  for (const BackboneCheckpoint* checkpoint : {&bit, &vit}) {
    BackboneArchitecture back;
    read_json_fields(write_json_fields(checkpoint->architecture), back, "test");
    EXPECT_EQ(back, checkpoint->architecture);
  }
  // As adapter files had it before there were kinds.
  BackboneArchitecture old;
  read_json_fields(write_json_fields(std::get<VitConfig>(vit.architecture)), old, "test");
  EXPECT_EQ(old, vit.architecture);
}

TEST(BackboneCheckpoint, NamesVariantsOfBothKinds) {
  EXPECT_EQ(backbone_name(backbone_variant("R101x1")), "resnetv2_101x1_bit");
  EXPECT_EQ(backbone_name(backbone_variant("vit_base_patch16")), "vit_base_patch16");
  EXPECT_FALSE(same_architecture(backbone_variant("R101x1"), backbone_variant("R50x1")));
  EXPECT_FALSE(same_architecture(backbone_variant("R50x1"), backbone_variant("vit_base_patch16")));
  EXPECT_EQ(architecture_text(backbone_variant("R50x1")),
            "resnetv2_50x1_bit (units 3-4-6-3, widths 256-512-1024-2048, root 64, groups 32)");
}

}  // namespace
}  // namespace convpass
