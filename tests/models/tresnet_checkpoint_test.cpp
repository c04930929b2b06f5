#include "convpass/models/tresnet_checkpoint.h"

#include <ATen/ATen.h>

#include <fstream>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/backbone_checkpoint.h"
#include "tests/core/temp_folder.h"
#include "tresnet_files.h"

namespace convpass {
namespace {

constexpr const char* kFiles[] = {"v1/model.safetensors", "v1/tresnet.pth", "v2/tresnet.pth"};

/// The message of the FileError that reading throws, or "" when it throws none.
std::string refusal(const TensorMap& tensors) {
  try {
    tresnet_checkpoint_from(tensors, "nowhere/file");
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void expect_equal(const TResnetCheckpoint& got, const TResnetCheckpoint& wanted) {
  EXPECT_EQ(got.hash, wanted.hash);
  EXPECT_EQ(got.config, wanted.config);
  for (auto part : {&TResnetCheckpoint::backbone, &TResnetCheckpoint::head}) {
    ASSERT_EQ((got.*part).tensors.size(), (wanted.*part).tensors.size());
    for (const auto& [name, tensor] : (wanted.*part).tensors)
      EXPECT_TRUE(at::equal((got.*part).at(name), tensor)) << name;
  }
}

TEST(TResnetCheckpoint, TellsItsNamingAndArchitecture) {
  for (const std::string file : kFiles) {
    const TResnetCheckpoint checkpoint = load_tresnet_checkpoint(tresnet_file(file));
    EXPECT_EQ(checkpoint.format, file.ends_with("pth") ? TResnetFormat::miil : TResnetFormat::timm);
    EXPECT_EQ(checkpoint.config, tiny_tresnet(file.starts_with("v2")));
    EXPECT_EQ(checkpoint.normalization.mean, (std::array<double, 3>{0, 0, 0}));
    EXPECT_EQ(checkpoint.normalization.std, (std::array<double, 3>{1, 1, 1}));
    EXPECT_EQ(checkpoint.head.at("head.weight").size(0), 3);
  }
}

TEST(TResnetCheckpoint, OfTheAuthorsHoldsWhatTimmMakesOfIt) {
  expect_equal(load_tresnet_checkpoint(tresnet_file("v1/tresnet.pth")),
               load_tresnet_checkpoint(tresnet_file("v1/model.safetensors")));
}

TEST(TResnetCheckpoint, ComesBackBitForBitFromTimmsNames) {
  for (const char* file : kFiles) {
    TResnetCheckpoint checkpoint = load_tresnet_checkpoint(tresnet_file(file));
    checkpoint.normalization.mean = {0.5, 0.25, 0.125};
    for (bool head : {true, false}) {
      if (!head) checkpoint.head.tensors.clear();
      const TResnetCheckpoint back =
          tresnet_checkpoint_from(tresnet_checkpoint_as_timm(checkpoint), "nowhere/converted");
      EXPECT_EQ(back.format, TResnetFormat::timm);
      EXPECT_EQ(back.normalization.mean, checkpoint.normalization.mean);
      expect_equal(back, checkpoint);
    }
  }
}

TEST(TResnetCheckpoint, TakesMeanAndStdFromTheConfigurationBesideIt) {
  const TempFolder folder;
  const TensorMap map = load_tensors(tresnet_file("v1/model.safetensors"));
  auto mean = [&](const char* config) {
    std::ofstream(folder / "config.json") << config;
    return tresnet_checkpoint_from(map, folder / "model.safetensors").normalization.mean[1];
  };
  EXPECT_EQ(mean(R"({"architecture": "tresnet_m"})"), 0);
  EXPECT_EQ(mean(R"({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}})"), 0.2);
  EXPECT_THROW(mean(R"({"pretrained_cfg": {"mean": [0.1], "std": [1, 1, 1]}})"), FileError);
}

TEST(TResnetCheckpoint, NeedsEveryTensorButCounters) {
  for (const std::string file : kFiles) {
    const TensorMap tensors = load_tensors(tresnet_file(file));
    const bool timm = file.ends_with("safetensors");
    for (const auto& [name, tensor] : tensors.tensors) {
      TensorMap less = tensors;
      less.tensors.erase(name);
      const std::string text = refusal(less);
      if (name.ends_with("num_batches_tracked"))
        EXPECT_EQ(text, "") << name;
      else if (name == "body.conv1.conv.weight" || name == "body.conv1.0.weight")
        EXPECT_TRUE(contains(text, "holds no TResNet")) << name << ": " << text;
      else
        EXPECT_TRUE(contains(text, "misses 1 tensor: " + (timm ? name : "")))
            << name << ": " << text;
    }
  }
}

TEST(TResnetCheckpoint, RefusesATensorThatHasNoPlace) {
  for (const char* file : kFiles)
    for (const char* name : {"stray.weight", "head.fc.scale", "body.layer5.0.conv1.conv.weight",
                             "body.layer1.1024.conv1.conv.weight", "body.layer1.00.se.fc1.bias",
                             "body.layer4.0.se.fc1.weight", "body.layer1.-1.conv1.bn.bias"}) {
      TensorMap more = load_tensors(tresnet_file(file));
      more.tensors[name] = at::ones({2});
      EXPECT_TRUE(contains(refusal(more), std::string("1 tensor: ") + name)) << refusal(more);
    }
}

TEST(TResnetCheckpoint, RefusesTwoNamesForOneTensor) {
  TensorMap map = load_tensors(tresnet_file("v1/tresnet.pth"));
  map.tensors["body.layer1.0.conv1.conv.weight"] = map.at("body.layer1.0.conv1.0.weight");
  EXPECT_TRUE(
      contains(refusal(map), "has, beside those of a TResNet, 1 tensor: body.layer1.0.conv1."))
      << refusal(map);
}

TEST(TResnetCheckpoint, RefusesAnyOtherShapeOrType) {
  for (const char* file : kFiles) {
    const TensorMap tensors = load_tensors(tresnet_file(file));
    for (const auto& [name, tensor] : tensors.tensors) {
      if (!tensor.is_floating_point()) continue;  // a counter
      for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
        if (name.starts_with("head.") && axis == 0) continue;  // more classes, once both have them
        TensorMap longer = tensors;
        longer.tensors[name] = at::cat({tensor, tensor.narrow(axis, 0, 1)}, axis);
        EXPECT_TRUE(contains(refusal(longer), "got shape")) << name << " longer along " << axis;
      }
      TensorMap other = tensors;
      other.tensors[name] = tensor.to(at::kInt);
      EXPECT_TRUE(contains(refusal(other), "tensor " + name + ": got int")) << name;
      other.tensors[name] = tensor.narrow(0, 0, 0);
      EXPECT_TRUE(contains(refusal(other), "tensor " + name + " is empty")) << name;
      other.tensors[name] = at::ones({});
      EXPECT_TRUE(contains(refusal(other), "got shape")) << name;
    }
  }
}

TEST(TResnetCheckpoint, RefusesAMissingBlockByName) {
  TensorMap map = load_tensors(tresnet_file("v1/model.safetensors"));
  map.tensors["body.layer2.1.conv1.conv.weight"] = at::zeros({8, 8, 3, 3});
  EXPECT_TRUE(contains(refusal(map), "misses 13 tensors: body.layer2.1.conv1.bn.bias"))
      << refusal(map);
  std::erase_if(map.tensors,
                [](const auto& entry) { return entry.first.starts_with("body.layer2."); });
  EXPECT_TRUE(contains(refusal(map), "body.layer2.0.conv1.bn.bias")) << refusal(map);
}

TEST(TResnetCheckpoint, OfAnotherNetworkIsToldSo) {
  EXPECT_TRUE(contains(refusal(TensorMap{}), "holds no TResNet"));
  EXPECT_FALSE(is_tresnet_checkpoint(TensorMap{}));
}

TEST(BackboneCheckpoint, TellsTResnetFromOthersAndWritesTheKindIntoTheArchitecture) {
  const BackboneCheckpoint checkpoint = load_backbone_checkpoint(tresnet_file("v2/tresnet.pth"));
  EXPECT_EQ(checkpoint.format, "miil");
  EXPECT_EQ(std::get<TResnetConfig>(checkpoint.architecture), tiny_tresnet(true));
  BackboneArchitecture back;
  read_json_fields(write_json_fields(checkpoint.architecture), back, "test");
  EXPECT_EQ(back, checkpoint.architecture);
  EXPECT_EQ(architecture_text(backbone_variant("tresnet_v2_l")),
            "tresnet_v2_l (v2, width 64, layers 3-4-23-3)");
  EXPECT_TRUE(
      same_architecture(backbone_variant("tresnet_m"), backbone_variant("tresnet_m.miil_in1k")));
  EXPECT_FALSE(same_architecture(backbone_variant("tresnet_m"), backbone_variant("tresnet_l")));
  EXPECT_FALSE(same_architecture(backbone_variant("tresnet_m"), backbone_variant("R50x1")));
}

}  // namespace
}  // namespace convpass
