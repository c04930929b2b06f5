#include <ATen/ATen.h>

#include <set>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "tests/core/temp_folder.h"
#include "vit_families.h"

namespace convpass {
namespace {

const VitFamily& family(const std::string& name) {
  for (const VitFamily& each : vit_families())
    if (name == each.name) return each;
  TORCH_CHECK(false, "no family ", name);
}

bool bitwise_equal(const TensorMap& a, const TensorMap& b) {
  if (a.tensors.size() != b.tensors.size()) return false;
  for (const auto& [name, tensor] : a.tensors)
    if (!b.has(name) || !at::equal(tensor, b.at(name))) return false;
  return true;
}

/// The message of the FileError that reading throws, or "" when it throws none.
std::string refusal(const TensorMap& tensors, const std::filesystem::path& file) {
  try {
    vit_checkpoint_from(tensors, file);
  } catch (const FileError& error) {
    return error.what();
  }
  return "";
}

constexpr VitFormat kAllFormats[] = {VitFormat::timm,    VitFormat::google_npz, VitFormat::hf_vit,
                                     VitFormat::hf_deit, VitFormat::hf_dinov2,  VitFormat::dinov2,
                                     VitFormat::clip,    VitFormat::hf_clip};

class VitFile : public testing::TestWithParam<VitFamily> {
 protected:
  const std::filesystem::path file = family_file(GetParam());
  const TensorMap tensors = load_tensors(file);
};

TEST_P(VitFile, TellsItsArchitecture) {
  const VitCheckpoint checkpoint = vit_checkpoint_from(tensors, file);
  EXPECT_EQ(checkpoint.format, GetParam().format);
  EXPECT_EQ(checkpoint.config, GetParam().config);
  EXPECT_EQ(checkpoint.normalization.mean, GetParam().normalization.mean);
  EXPECT_EQ(checkpoint.normalization.std, GetParam().normalization.std);
}

TEST_P(VitFile, NeedsEveryTensorOfTheBackbone) {
  // What remains without these is another valid model: one that pools by mean, one without
  // registers.
  const std::set<std::string> optional{"google_big_vision params/cls",
                                       "dinov2_registers register_tokens"};
  const std::string hash = vit_checkpoint_from(tensors, file).hash;
  for (const auto& [name, tensor] : tensors.tensors) {
    if (optional.count(std::string(GetParam().name) + " " + name) != 0) continue;
    TensorMap less = tensors;
    less.tensors.erase(name);
    if (!refusal(less, file).empty()) continue;
    EXPECT_EQ(vit_checkpoint_from(less, file).hash, hash) << "without " << name;
  }
}

TEST_P(VitFile, RefusesATensorThatHasNoPlace) {
  TensorMap more = tensors;
  more.tensors["stray.weight"] = at::ones({2});
  EXPECT_NE(refusal(more, file).find("1 tensor: stray.weight"), std::string::npos)
      << refusal(more, file);
}

TEST_P(VitFile, RefusesAnyOtherShape) {
  const std::string hash = vit_checkpoint_from(tensors, file).hash;
  for (const auto& [name, tensor] : tensors.tensors) {
    if (tensor.dim() == 0) continue;
    TensorMap longer = tensors;
    longer.tensors[name] = at::cat({tensor, tensor.narrow(0, 0, 1)}, 0);
    if (!refusal(longer, file).empty()) continue;
    EXPECT_EQ(vit_checkpoint_from(longer, file).hash, hash) << "with longer " << name;
  }
}

TEST_P(VitFile, ComesBackBitForBitFromItsOwnFormatAndFromTimms) {
  const VitCheckpoint checkpoint = vit_checkpoint_from(tensors, file);
  for (VitFormat format : {checkpoint.format, VitFormat::timm}) {
    const VitCheckpoint back =
        vit_checkpoint_from(vit_checkpoint_as(checkpoint, format), "nowhere/converted.safetensors");
    EXPECT_EQ(back.format, format);
    EXPECT_EQ(back.config, checkpoint.config);
    EXPECT_EQ(back.hash, checkpoint.hash);
    EXPECT_EQ(back.normalization.mean, checkpoint.normalization.mean);
    EXPECT_TRUE(bitwise_equal(back.backbone, checkpoint.backbone));
    EXPECT_TRUE(bitwise_equal(back.head, checkpoint.head));
  }
}

TEST_P(VitFile, HasOneHashInEveryFormatThatCanHoldIt) {
  VitCheckpoint checkpoint = vit_checkpoint_from(tensors, file);
  checkpoint.head.tensors.clear();
  for (VitFormat format : kAllFormats) {
    TensorMap converted;
    try {
      converted = vit_checkpoint_as(checkpoint, format);
    } catch (const Error& error) {
      EXPECT_NE(format, checkpoint.format) << error.what();
      continue;
    }
    const VitCheckpoint back = vit_checkpoint_from(converted, "nowhere/converted.safetensors");
    EXPECT_EQ(back.hash, checkpoint.hash) << vit_format_name(format);
    EXPECT_EQ(back.config, checkpoint.config) << vit_format_name(format);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, VitFile, testing::ValuesIn(vit_families()), family_name);

TEST(VitCheckpoint, KeepsOldHeadsApart) {
  const VitCheckpoint distilled = load_vit_checkpoint(family_file(family("hf_deit_distilled")));
  EXPECT_EQ(distilled.head.tensors.size(), 4u);
  EXPECT_TRUE(distilled.head.has("head.weight") && distilled.head.has("head_dist.bias"));
  const VitCheckpoint google = load_vit_checkpoint(family_file(family("google_original")));
  EXPECT_EQ(google.head.at("head.weight").sizes(), at::IntArrayRef({3, 32}));
  EXPECT_EQ(google.backbone.tensors.count("head.weight"), 0u);
}

TEST(VitCheckpoint, HasOneHashForOneModelInTwoFiles) {
  EXPECT_EQ(load_vit_checkpoint(family_file(family("google_original"))).hash,
            load_vit_checkpoint(family_file(family("google_opt_target"))).hash);
  EXPECT_NE(load_vit_checkpoint(family_file(family("timm_vit"))).hash,
            load_vit_checkpoint(family_file(family("google_original"))).hash);
}

TEST(VitCheckpoint, NamesUpToFiveMissingTensorsAndTheirNumber) {
  const auto file = family_file(family("hf_vit"));
  TensorMap tensors = load_tensors(file);
  for (const char* leaf : {"query", "key", "value"})
    for (const char* kind : {".weight", ".bias"})
      tensors.tensors.erase(std::string("encoder.layer.1.attention.attention.") + leaf + kind);
  const std::string text = refusal(tensors, file);
  EXPECT_NE(text.find(file.string() + ": misses 6 tensors: encoder.layer.1.attention.attention."),
            std::string::npos)
      << text;
  EXPECT_NE(text.find(", ..."), std::string::npos) << text;
}

TEST(VitCheckpoint, NamesTheTensorOfAnotherShapeWithGotAndWanted) {
  const auto file = family_file(family("timm_vit"));
  TensorMap tensors = load_tensors(file);
  tensors.tensors["blocks.1.norm2.bias"] = at::ones({31});
  EXPECT_NE(refusal(tensors, file).find("tensor blocks.1.norm2.bias: got shape [31]"),
            std::string::npos)
      << refusal(tensors, file);
}

TEST(VitCheckpoint, RefusesIntegersEmptyTensorsAndHugeBlockNumbers) {
  const auto file = family_file(family("timm_vit"));
  const TensorMap tensors = load_tensors(file);
  TensorMap bad = tensors;
  bad.tensors["norm.weight"] = at::ones({32}, at::kLong);
  EXPECT_NE(refusal(bad, file).find("wanted floating point"), std::string::npos);
  bad = tensors;
  bad.tensors["norm.weight"] = at::ones({0});
  EXPECT_NE(refusal(bad, file).find("is empty"), std::string::npos);
  bad = tensors;
  bad.tensors["blocks.999999999999.norm1.weight"] = at::ones({32});
  EXPECT_NE(refusal(bad, file).find("blocks.999999999999.norm1.weight"), std::string::npos);
}

TEST(VitCheckpoint, RefusesAttentionPoolingByItsName) {
  const auto file = family_file(family("google_scan"));
  TensorMap tensors = load_tensors(file);
  tensors.tensors["params/MAPHead_0/probe"] = at::ones({1, 1, 32});
  EXPECT_NE(refusal(tensors, file).find("MAPHead"), std::string::npos);
}

TEST(VitCheckpoint, RefusesAFileThatIsNoVit) {
  TensorMap tensors;
  tensors.tensors["layers.0.blocks.0.norm1.weight"] = at::ones({4});
  EXPECT_NE(refusal(tensors, "swin.pth").find("no vision transformer"), std::string::npos);
  EXPECT_FALSE(refusal(TensorMap{}, "empty.pth").empty());
}

TEST(VitCheckpoint, TakesHeadsOf64WithoutAConfiguration) {
  VitConfig config = vit_variant("vit_tiny_patch16");
  config.depth = 2;
  const TensorMap weights = Vit::random_weights(config, 1);
  const VitCheckpoint checkpoint = vit_checkpoint_from(weights, "nowhere/vit.safetensors");
  EXPECT_EQ(checkpoint.config, config);

  const TensorMap narrow = load_tensors(family_file(family("timm_vit")));
  EXPECT_NE(refusal(narrow, "nowhere/vit.safetensors").find("number of heads"), std::string::npos);
}

TEST(VitCheckpoint, ReadsTheFilesBesideTheWeights) {
  const TempFolder folder;
  const TensorMap tensors = load_tensors(family_file(family("hf_vit")));
  const auto file = folder / "model.safetensors";
  write_atomically(
      folder / "config.json",
      R"({"num_attention_heads": 4, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"})");
  write_atomically(folder / "preprocessor_config.json",
                   R"({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})");
  const VitCheckpoint checkpoint = vit_checkpoint_from(tensors, file);
  EXPECT_EQ(checkpoint.config.heads, 4);
  EXPECT_EQ(checkpoint.config.eps, 1e-5);
  EXPECT_EQ(checkpoint.config.activation, Activation::gelu_tanh);
  EXPECT_EQ(checkpoint.normalization.mean, (std::array<double, 3>{0.1, 0.2, 0.3}));
  EXPECT_EQ(checkpoint.normalization.std, (std::array<double, 3>{0.4, 0.5, 0.6}));

  const std::pair<const char*, const char*> bad[] = {
      {"{", "is no JSON"},
      {"[]", "wanted an object"},
      {R"({"num_attention_heads": 3})", "width 32 does not divide by 3 heads"},
      {R"({"num_attention_heads": "2"})", "/num_attention_heads: got \"2\""},
      {R"({"num_attention_heads": 2, "hidden_act": "relu"})", "/hidden_act: got \"relu\""},
      {R"({"num_attention_heads": 2, "num_hidden_layers": 3})", "misses 16 tensors"},
      {R"({"num_attention_heads": 2, "num_hidden_layers": 1000000000})", "blocks"},
      {R"({"num_attention_heads": 2, "num_hidden_layers": 1})", "got blocks 1, wanted 2"},
      {R"({"num_attention_heads": 2, "hidden_size": 64})", "got width 64, wanted 32"},
      {R"({"num_attention_heads": 2, "vision_config": 5})", "/vision_config: wanted an object"},
  };
  for (const auto& [text, message] : bad) {
    write_atomically(folder / "config.json", text);
    EXPECT_NE(refusal(tensors, file).find(message), std::string::npos)
        << text << " -> " << refusal(tensors, file);
  }
}

TEST(VitCheckpoint, HasTheEpsOfTheFormatWithoutAConfiguration) {
  VitConfig config = vit_variant("vit_tiny_patch16");
  config.depth = 1;
  VitCheckpoint checkpoint =
      vit_checkpoint_from(Vit::random_weights(config, 1), "nowhere/vit.safetensors");
  EXPECT_EQ(checkpoint.config.eps, 1e-6);
  TensorMap hf = vit_checkpoint_as(checkpoint, VitFormat::hf_vit);
  hf.metadata.clear();
  EXPECT_EQ(vit_checkpoint_from(hf, "nowhere/model.safetensors").config.eps, 1e-12);
}

TEST(VitCheckpoint, GuessesNormalizationOfTimmFilesFromTheirParts) {
  auto normalization_of = [](const char* variant) {
    VitConfig config = vit_variant(variant);
    config.depth = 1;
    return vit_checkpoint_from(Vit::random_weights(config, 1), "nowhere/vit.safetensors")
        .normalization;
  };
  auto mean_of = [&](const char* variant) { return normalization_of(variant).mean[0]; };
  EXPECT_EQ(mean_of("vit_tiny_patch16"), 0.5);
  EXPECT_TRUE(normalization_of("vit_tiny_patch16").assumed);
  EXPECT_FALSE(normalization_of("vit_base_patch32_clip_224").assumed);
  EXPECT_EQ(mean_of("deit3_small_patch16"), 0.485);
  EXPECT_EQ(mean_of("vit_small_patch14_reg4_dinov2"), 0.485);
  EXPECT_EQ(mean_of("deit_tiny_distilled_patch16"), 0.485);
  EXPECT_EQ(mean_of("vit_base_patch32_clip_224"), 0.48145466);
}

TEST(VitCheckpoint, ReadsTimmTrunksOfOpenClip) {
  const auto file = family_file(family("timm_vit"));
  const TensorMap plain = load_tensors(file);
  TensorMap trunk;
  for (const auto& [name, tensor] : plain.tensors)
    if (!name.starts_with("head.")) trunk.tensors["visual.trunk." + name] = tensor;
  trunk.tensors["visual.head.proj.weight"] = at::ones({8, 32});
  trunk.tensors["text.token_embedding.weight"] = at::ones({5, 8});
  trunk.tensors["logit_scale"] = at::ones({});
  const VitCheckpoint checkpoint = vit_checkpoint_from(trunk, file);
  EXPECT_EQ(checkpoint.hash, vit_checkpoint_from(plain, file).hash);
  EXPECT_EQ(checkpoint.head.tensors.size(), 1u);
}

TEST(VitCheckpoint, IsWholeInAConvertedFileAlone) {
  const TempFolder folder;
  for (const char* name : {"google_scan", "timm_reg1_gap", "hf_clip", "dinov2_swiglu"}) {
    const VitCheckpoint checkpoint = load_vit_checkpoint(family_file(family(name)));
    const auto file = folder / (std::string(name) + ".safetensors");
    save_safetensors(file, vit_checkpoint_as(checkpoint, VitFormat::timm));
    const VitCheckpoint back = load_vit_checkpoint(file);
    EXPECT_EQ(back.config, checkpoint.config) << name;
    EXPECT_EQ(back.hash, checkpoint.hash) << name;
    EXPECT_EQ(back.normalization.std, checkpoint.normalization.std) << name;
  }
}

TEST(VitCheckpoint, RefusesBadDeclarationsOfConvertedFiles) {
  const VitCheckpoint checkpoint = load_vit_checkpoint(family_file(family("timm_vit")));
  const TensorMap good = vit_checkpoint_as(checkpoint, VitFormat::timm);
  for (const char* text :
       {"{", R"({"width": 64})", R"({"heads": 3})", R"({"depth": 1000000000})"}) {
    TensorMap bad = good;
    bad.metadata["vit_config"] = text;
    EXPECT_THROW(vit_checkpoint_from(bad, "nowhere/vit.safetensors"), Error) << text;
  }
  TensorMap bad = good;
  bad.metadata["normalization"] = R"({"mean": [0.5], "std": [0.5, 0.5, 0.5]})";
  EXPECT_THROW(vit_checkpoint_from(bad, "nowhere/vit.safetensors"), Error);
}

TEST(VitCheckpoint, NamesWhatAFormatCannotHold) {
  const VitCheckpoint dino = load_vit_checkpoint(family_file(family("timm_dinov2_reg4")));
  try {
    vit_checkpoint_as(dino, VitFormat::google_npz);
    FAIL() << "registers have no name in Flax files";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("format google-npz cannot hold"), std::string::npos)
        << error.what();
  }
  const VitCheckpoint plain = load_vit_checkpoint(family_file(family("timm_vit")));
  EXPECT_THROW(vit_checkpoint_as(plain, VitFormat::clip), Error);
  EXPECT_THROW(vit_checkpoint_as(plain, VitFormat::hf_deit), Error);
}

TEST(VitCheckpoint, FormatNamesAreTheirOwnInverse) {
  for (VitFormat format : kAllFormats) EXPECT_EQ(vit_format_named(vit_format_name(format)), format);
  EXPECT_EQ(vit_format_named("keras"), std::nullopt);
}

TEST(WeightsHash, SeesNamesShapesAndValuesAndNothingElse) {
  TensorMap map;
  map.tensors["a"] = at::arange(6, at::kFloat);
  map.tensors["b"] = at::ones({2, 3});
  const std::string hash = weights_hash(map);
  EXPECT_EQ(hash.size(), 40u);
  EXPECT_EQ(hash, weights_hash(map));
  TensorMap other = map;
  other.tensors["b"] = at::ones({3, 2}).t();
  other.metadata["note"] = "x";
  other.tensors["a"] = map.at("a").to(at::kHalf);
  EXPECT_EQ(weights_hash(other), hash);
  other.tensors["b"] = at::ones({3, 2});
  EXPECT_NE(weights_hash(other), hash);
  other = map;
  other.tensors["a"] = map.at("a").clone();
  other.tensors["a"][5] = 5.0000005;
  EXPECT_NE(weights_hash(other), hash);
  other = map;
  other.tensors["c"] = other.tensors["b"];
  other.tensors.erase("b");
  EXPECT_NE(weights_hash(other), hash);
}

TEST(VitVariant, HasTheShapesOfTheNamedModels) {
  struct Named {
    const char* name;
    int64_t width, depth, heads, hidden, patch, grid, registers;
  };
  const Named named[] = {
      {"vit_tiny_patch16", 192, 12, 3, 768, 16, 14, 0},
      {"vit_small_patch14", 384, 12, 6, 1536, 14, 16, 0},
      {"vit_base_patch16_224.augreg_in21k", 768, 12, 12, 3072, 16, 14, 0},
      {"vit_base_patch32_384", 768, 12, 12, 3072, 32, 12, 0},
      {"vit_large_patch16", 1024, 24, 16, 4096, 16, 14, 0},
      {"vit_huge_patch14", 1280, 32, 16, 5120, 14, 16, 0},
      {"vit_small_patch14_dinov2", 384, 12, 6, 1536, 14, 37, 0},
      {"vit_base_patch14_reg4_dinov2", 768, 12, 12, 3072, 14, 37, 4},
      {"vit_giant_patch14_dinov2", 1536, 40, 24, 4096, 14, 37, 0},
      {"vit_large_patch14_clip_336", 1024, 24, 16, 4096, 14, 24, 0},
      {"deit_base_distilled_patch16_384", 768, 12, 12, 3072, 16, 24, 0},
  };
  for (const Named& each : named) {
    const VitConfig c = vit_variant(each.name);
    EXPECT_EQ(c.width, each.width) << each.name;
    EXPECT_EQ(c.depth, each.depth) << each.name;
    EXPECT_EQ(c.heads, each.heads) << each.name;
    EXPECT_EQ(c.hidden, each.hidden) << each.name;
    EXPECT_EQ(c.patch, each.patch) << each.name;
    EXPECT_EQ(c.grid_height, each.grid) << each.name;
    EXPECT_EQ(c.registers, each.registers) << each.name;
  }
  EXPECT_EQ(vit_variant("vit_base_patch16_clip_quickgelu_224").activation, Activation::quick_gelu);
  EXPECT_EQ(vit_variant("vit_giant_patch14_reg4_dinov2").activation, Activation::swiglu);
  EXPECT_TRUE(vit_variant("deit_base_distilled_patch16_224").distillation_token);
  EXPECT_FALSE(vit_variant("deit3_base_patch16_224").prefix_positions);
}

TEST(VitVariant, NameIsTheInverse) {
  for (const char* name :
       {"vit_tiny_patch16", "vit_small_patch14", "vit_base_patch8", "vit_huge_patch14",
        "vit_small_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_large_patch14_clip",
        "vit_base_patch16_clip_quickgelu", "deit3_large_patch16", "deit_tiny_distilled_patch16"})
    EXPECT_EQ(vit_name(vit_variant(name)), name);
  EXPECT_EQ(vit_name(tiny_vit([](VitConfig&) {})), "vit width 32 depth 2 heads 2 patch 4");
}

TEST(VitVariant, UnknownNamesAreAnsweredWithTheNearest) {
  const std::pair<const char*, const char*> wrong[] = {
      {"vit_smal_patch14", "vit_small_patch14"},
      {"vit_base_patch14_dinv2", "vit_base_patch14_dinov2"},
      {"deit_base_distiled_patch16", "deit_base_distilled_patch16"}};
  for (const auto& [name, nearest] : wrong) try {
      vit_variant(name);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(nearest), std::string::npos) << error.what();
    }
  for (const char* name : {"", "resnet50", "vit_base_patch0", "vit_base_patch16_15",
                           "vit_base_patch99999999999999999999"})
    EXPECT_THROW(vit_variant(name), Error) << name;
}

}  // namespace
}  // namespace convpass
