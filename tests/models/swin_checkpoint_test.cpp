#include "convpass/models/swin_checkpoint.h"

#include <ATen/ATen.h>

#include <fstream>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/backbone_checkpoint.h"
#include "convpass/models/vit_checkpoint.h"
#include "swin_files.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

constexpr const char* kFiles[] = {"shifted/timm.safetensors", "shifted/microsoft.pth",
                                  "shifted/hf.safetensors", "clipped/microsoft.pth"};

/// The message of the FileError that reading throws, or "" when it throws none.
std::string refusal(const TensorMap& tensors) {
  try {
    swin_checkpoint_from(tensors, "nowhere/file");
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool is_buffer(const std::string& name) {
  return name.ends_with("relative_position_index") || name.ends_with("attn_mask");
}

TEST(SwinCheckpoint, TellsItsNamingAndArchitecture) {
  for (const std::string file : kFiles) {
    const SwinCheckpoint checkpoint = load_swin_checkpoint(swin_file(file));
    EXPECT_EQ(checkpoint.config, tiny_swin(file.substr(0, 7))) << file;
    EXPECT_EQ(swin_format_name(checkpoint.format), file.ends_with("pth") ? "microsoft"
                                                   : file.ends_with("timm.safetensors")
                                                       ? "timm"
                                                       : "hf-swin");
    EXPECT_EQ(checkpoint.normalization.mean, Normalization{}.mean);
    EXPECT_EQ(checkpoint.head.at("head.weight").size(0), 3);
  }
}

TEST(SwinCheckpoint, HoldsTheSameUnderAllNames) {
  const SwinCheckpoint timm = load_swin_checkpoint(swin_file(kFiles[0]));
  for (const char* file : {kFiles[1], kFiles[2]}) {
    const SwinCheckpoint other = load_swin_checkpoint(swin_file(file));
    EXPECT_EQ(other.hash, timm.hash) << file;
    EXPECT_EQ(weights_hash(other.head), weights_hash(timm.head)) << file;
  }
}

TEST(SwinCheckpoint, KnowsTheNamesOfTransformers5) {
  const TensorMap written = load_tensors(swin_file("shifted/hf.safetensors"));
  const std::pair<std::string, std::string> names[] = {
      {"attention.self.query.", "attention.q_proj."},
      {"attention.self.key.", "attention.k_proj."},
      {"attention.self.value.", "attention.v_proj."},
      {"attention.output.dense.", "attention.o_proj."},
      {"attention.self.relative_", "attention.relative_position_bias.relative_"},
      {"intermediate.dense.", "mlp.fc1."},
      {"output.dense.", "mlp.fc2."}};
  TensorMap in_memory;
  for (const auto& [name, tensor] : written.tensors) {
    std::string renamed = name;
    for (const auto& [from, to] : names)
      if (const size_t at = renamed.find(from); at != std::string::npos)
        renamed.replace(at, from.size(), to);
    in_memory.tensors[renamed] = tensor;
  }
  EXPECT_EQ(swin_checkpoint_from(in_memory, "nowhere/file").hash,
            load_swin_checkpoint(swin_file("shifted/hf.safetensors")).hash);
}

TEST(SwinCheckpoint, ComesBackBitForBitFromTimmsNames) {
  for (const char* file : kFiles) {
    SwinCheckpoint checkpoint = load_swin_checkpoint(swin_file(file));
    checkpoint.normalization.mean = {0.5, 0.25, 0.125};
    for (bool head : {true, false}) {
      if (!head) checkpoint.head.tensors.clear();
      const SwinCheckpoint back =
          swin_checkpoint_from(swin_checkpoint_as_timm(checkpoint), "nowhere/converted");
      EXPECT_EQ(back.format, SwinFormat::timm);
      EXPECT_EQ(back.normalization.mean, checkpoint.normalization.mean);
      EXPECT_EQ(back.hash, checkpoint.hash);
      EXPECT_EQ(back.config, checkpoint.config);
    }
  }
}

TEST(SwinCheckpoint, NeedsEveryTensorButBuffers) {
  for (const std::string file : kFiles) {
    const TensorMap tensors = load_tensors(swin_file(file));
    for (const auto& [name, tensor] : tensors.tensors) {
      TensorMap less = tensors;
      less.tensors.erase(name);
      const std::string text = refusal(less);
      if (is_buffer(name) || name.ends_with("mask_token"))
        EXPECT_EQ(text, "") << name;
      else if (contains(name, "layers.0.blocks.0.") && name.ends_with("bias_table"))
        EXPECT_TRUE(contains(text, "holds no Swin")) << name << ": " << text;
      else
        EXPECT_TRUE(contains(text, "misses ")) << name << ": " << text;
      EXPECT_EQ(text.find('\n'), std::string::npos);
    }
  }
}

TEST(SwinCheckpoint, RefusesAnyOtherShapeOrType) {
  for (const char* file : kFiles) {
    const TensorMap tensors = load_tensors(swin_file(file));
    for (const auto& [name, tensor] : tensors.tensors) {
      for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
        const bool head = name.starts_with("head.") || name.starts_with("classifier.");
        if (head && axis == 0) continue;  // more classes, once both have them
        if (name.ends_with("attn_mask") && axis == 0) continue;  // any number of windows
        if (name.ends_with("bias_table") && axis == 1 && std::string(file).starts_with("clipped") &&
            name.find("layers.1.") == std::string::npos)
          continue;  // the only table of its stage: more heads
        TensorMap longer = tensors;
        longer.tensors[name] = at::cat({tensor, tensor.narrow(axis, 0, 1)}, axis);
        const std::string text = refusal(longer);
        EXPECT_FALSE(text.empty()) << file << " " << name << " longer along " << axis;
        EXPECT_EQ(text.find('\n'), std::string::npos);
      }
      if (is_buffer(name)) continue;
      TensorMap other = tensors;
      other.tensors[name] = tensor.to(at::kInt);
      EXPECT_TRUE(contains(refusal(other), "tensor " + name + ": got int")) << name;
      other.tensors[name] = tensor.narrow(0, 0, 0);
      EXPECT_TRUE(contains(refusal(other), "tensor " + name + " is empty")) << name;
      other.tensors[name] = at::ones({});
      EXPECT_FALSE(refusal(other).empty()) << name;
    }
  }
}

TEST(SwinCheckpoint, RefusesTablesOfNoSquareWindowAndBuffersOfAnother) {
  TensorMap map = load_tensors(swin_file("shifted/microsoft.pth"));
  const std::string table = "layers.1.blocks.1.attn.relative_position_bias_table";
  for (int64_t rows : {48, 64, 35}) {
    TensorMap other = map;
    other.tensors[table] = at::zeros({rows, 4});
    EXPECT_TRUE(contains(refusal(other), "tensor " + table + ": got shape [" +
                                             std::to_string(rows) +
                                             ", 4], wanted (2 w - 1)^2 rows"))
        << refusal(other);
  }
  TensorMap other = map;
  other.tensors[table] = at::zeros({25, 4});
  EXPECT_TRUE(contains(refusal(other), "got shape [25, 4], wanted [49, 4]")) << refusal(other);
  other = map;
  other.tensors["layers.0.blocks.1.attn_mask"] = at::zeros({4, 49, 49});
  EXPECT_TRUE(contains(refusal(other),
                       "tensor layers.0.blocks.1.attn_mask: got shape [4, 49, 49], wanted "
                       "[windows, 16, 16]"))
      << refusal(other);
  other.tensors["layers.0.blocks.1.attn_mask"] = at::zeros({4, 16, 16});
  EXPECT_EQ(refusal(other), "");
  other.tensors["layers.0.blocks.9.attn.relative_position_index"] = at::zeros({16, 16}, at::kLong);
  EXPECT_TRUE(contains(refusal(other), "beside those of a Swin, 1 tensor: layers.0.blocks.9"))
      << refusal(other);
}

TEST(SwinCheckpoint, RefusesATensorThatHasNoPlace) {
  for (const char* file : kFiles)
    for (const char* name :
         {"stray.weight", "head.scale", "absolute_pos_embed", "layers.9.blocks.0.norm1.weight",
          "layers.0.blocks.1024.norm1.bias", "layers.0.blocks.-1.norm1.bias"}) {
      TensorMap more = load_tensors(swin_file(file));
      more.tensors[name] = at::ones({2});
      EXPECT_TRUE(contains(refusal(more), std::string("1 tensor: ") + name)) << refusal(more);
    }
}

TEST(SwinCheckpoint, RefusesAMissingBlockOrStageByName) {
  TensorMap map = load_tensors(swin_file("shifted/timm.safetensors"));
  map.tensors["layers.1.blocks.2.norm1.bias"] = at::zeros({32});
  EXPECT_TRUE(contains(refusal(map), "misses 12 tensors: layers.1.blocks.2.attn.proj.bias"))
      << refusal(map);
  map.tensors.erase("layers.1.blocks.2.norm1.bias");
  map.tensors["layers.3.blocks.0.norm1.bias"] = at::zeros({32});
  EXPECT_TRUE(contains(refusal(map), "layers.2.blocks.0.attn.proj.bias")) << refusal(map);
}

TEST(SwinCheckpoint, TakesMeanAndStdFromTheFilesBesideItAndRefusesAnotherEps) {
  const TempFolder folder;
  const TensorMap timm = load_tensors(swin_file(kFiles[0])),
                  hf = load_tensors(swin_file(kFiles[2]));
  std::ofstream(folder / "config.json")
      << R"({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}})";
  EXPECT_EQ(swin_checkpoint_from(timm, folder / "a.safetensors").normalization.mean[1], 0.2);
  std::ofstream(folder / "config.json")
      << R"({"layer_norm_eps": 1e-5, "hidden_act": "gelu", "num_heads": [2, 4]})";
  std::ofstream(folder / "preprocessor_config.json")
      << R"({"image_mean": [0.4, 0.5, 0.6], "image_std": [1, 1, 1]})";
  EXPECT_EQ(swin_checkpoint_from(hf, folder / "a.safetensors").normalization.mean[1], 0.5);
  for (const char* config : {R"({"layer_norm_eps": 1e-6})", R"({"hidden_act": "quick_gelu"})"}) {
    std::ofstream(folder / "config.json") << config;
    EXPECT_THROW(swin_checkpoint_from(hf, folder / "a.safetensors"), FileError) << config;
  }
}

TEST(BackboneCheckpoint, TellsSwinFromOthersAndWritesTheKindIntoTheArchitecture) {
  for (const char* file : kFiles) {
    const BackboneCheckpoint checkpoint = load_backbone_checkpoint(swin_file(file));
    ASSERT_TRUE(std::holds_alternative<SwinConfig>(checkpoint.architecture)) << file;
    BackboneArchitecture back;
    read_json_fields(write_json_fields(checkpoint.architecture), back, "test");
    EXPECT_EQ(back, checkpoint.architecture);
  }
  EXPECT_FALSE(is_swin_checkpoint(TensorMap{}));
}

}  // namespace
}  // namespace convpass
