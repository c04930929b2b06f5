// What the configuration files beside ViT weights say: Hugging Face, timm's hub and open_clip.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/core/json.h"
#include "models/names.h"
#include "models/names_bit.h"

namespace convpass {
namespace {

using Json = nlohmann::json;

struct ActivationName {
  const char* name;
  Activation activation;
};
constexpr ActivationName kActivations[] = {
    {"gelu", Activation::gelu},
    {"gelu_new", Activation::gelu_tanh},
    {"gelu_tanh", Activation::gelu_tanh},
    {"gelu_pytorch_tanh", Activation::gelu_tanh},
    {"quick_gelu", Activation::quick_gelu},
    {"quickgelu", Activation::quick_gelu},
    {"silu", Activation::swiglu},
    {"swish", Activation::swiglu},
};

/// timm keeps the activation of these models in their code, under the beginning of their names.
constexpr ActivationName kArchitectures[] = {
    {"vit_base_patch32_clip_quickgelu", Activation::quick_gelu},
    {"vit_base_patch16_clip_quickgelu", Activation::quick_gelu},
    {"vit_large_patch14_clip_quickgelu", Activation::quick_gelu},
    {"vit_huge_patch14_clip_quickgelu", Activation::quick_gelu},
    {"vit_gigantic_patch14_clip_quickgelu", Activation::quick_gelu},
    {"vit_base_patch32_siglip_gap_256", Activation::gelu_tanh},
    {"vit_large_patch16_siglip_gap_512", Activation::gelu_tanh},
    {"vit_so400m_patch16_siglip_gap", Activation::gelu_tanh},
    {"vit_giantopt_patch16_siglip_gap", Activation::gelu_tanh},
};

/// A JSON object of one file, read key by key with typed errors.
class Object {
 public:
  Object(const Json& json, std::filesystem::path file, std::string at)
      : json_(json), file_(std::move(file)), at_(std::move(at)) {
    if (!json_.is_object()) throw FileError(file_, "/" + at_ + ": wanted an object");
  }

  std::optional<Object> part(const char* key) const {
    if (!has(key)) return std::nullopt;
    return Object(json_.at(key), file_, at_ + (at_.empty() ? "" : "/") + key);
  }
  std::optional<int64_t> integer(const char* key) const {
    if (!has(key)) return std::nullopt;
    const Json& value = json_.at(key);
    if (!value.is_number_integer() || value.get<int64_t>() <= 0)
      fail(key, "a positive whole number");
    return value.get<int64_t>();
  }
  std::optional<double> number(const char* key) const {
    if (!has(key)) return std::nullopt;
    if (!json_.at(key).is_number() || json_.at(key).get<double>() <= 0)
      fail(key, "a positive number");
    return json_.at(key).get<double>();
  }
  std::optional<std::string> text(const char* key) const {
    if (!has(key)) return std::nullopt;
    if (!json_.at(key).is_string()) fail(key, "a string");
    return json_.at(key).get<std::string>();
  }
  bool flag(const char* key) const { return has(key) && json_.at(key) == true; }
  std::optional<std::array<double, 3>> channels(const char* key) const {
    if (!has(key)) return std::nullopt;
    const Json& value = json_.at(key);
    const bool good =
        value.is_array() && value.size() == 3 &&
        std::all_of(value.begin(), value.end(), [](const Json& each) { return each.is_number(); });
    if (!good) fail(key, "three numbers");
    return value.get<std::array<double, 3>>();
  }
  /// One number for both sides, or the last two of a list: height, width.
  std::optional<std::array<int64_t, 2>> size(const char* key) const {
    if (!has(key)) return std::nullopt;
    const Json& value = json_.at(key);
    if (!value.is_array()) {
      const int64_t side = *integer(key);
      return std::array<int64_t, 2>{side, side};
    }
    const bool good =
        value.size() >= 2 && std::all_of(value.begin(), value.end(), [](const Json& each) {
          return each.is_number_integer() && each.get<int64_t>() > 0;
        });
    if (!good) fail(key, "a whole number or a list of height and width");
    return std::array<int64_t, 2>{value[value.size() - 2].get<int64_t>(),
                                  value[value.size() - 1].get<int64_t>()};
  }
  std::optional<Normalization> normalization(const char* mean, const char* std) const {
    auto means = channels(mean), deviations = channels(std);
    if (!means || !deviations) return std::nullopt;
    for (double deviation : *deviations)
      if (!(deviation > 0)) fail(std, "positive numbers");
    return Normalization{*means, *deviations};
  }
  std::optional<Activation> activation(const char* key) const {
    auto name = text(key);
    if (!name) return std::nullopt;
    for (const ActivationName& known : kActivations)
      if (*name == known.name) return known.activation;
    fail(key, "one of gelu, gelu_new, gelu_tanh, gelu_pytorch_tanh, quick_gelu, silu");
  }

  [[noreturn]] void fail(const char* key, const std::string& wanted) const {
    throw FileError(file_, "/" + at_ + (at_.empty() ? "" : "/") + key + ": got " +
                               json_.at(key).dump().substr(0, 80) + ", wanted " + wanted);
  }

 private:
  /// null stands for absent, as transformers writes it.
  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  const Json& json_;
  std::filesystem::path file_;
  std::string at_;
};

std::optional<Json> read_object(const std::filesystem::path& file) {
  if (!std::filesystem::is_regular_file(file)) return std::nullopt;
  const std::vector<uint8_t> bytes = read_file(file);
  constexpr int kMaxDepth = 32;
  const auto not_deep = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth)
      throw FileError(file, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
    return true;
  };
  Json json = Json::parse(bytes.begin(), bytes.end(), not_deep, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw FileError(file, "is no JSON");
  return json;
}

void read_hugging_face(const std::filesystem::path& folder, ConfigFacts& facts) {
  facts.file = folder / "config.json";
  if (auto json = read_object(facts.file)) {
    Object root(*json, facts.file, "");
    const Object config = root.part("vision_config").value_or(root);
    facts.width = config.integer("hidden_size");
    facts.heads = config.integer("num_attention_heads");
    facts.depth = config.integer("num_hidden_layers");
    facts.registers = config.integer("num_register_tokens");
    facts.eps = config.number("layer_norm_eps");
    facts.activation = config.activation("hidden_act");
    facts.image_size = config.size("image_size");
  }
  const std::filesystem::path preprocessor = folder / "preprocessor_config.json";
  if (auto json = read_object(preprocessor))
    facts.normalization = Object(*json, preprocessor, "").normalization("image_mean", "image_std");
}

std::optional<Normalization> pretrained_normalization(const Object& timm_config) {
  const auto pretrained = timm_config.part("pretrained_cfg");
  return pretrained ? pretrained->normalization("mean", "std") : std::nullopt;
}

void read_timm(const std::filesystem::path& folder, ConfigFacts& facts) {
  facts.file = folder / "config.json";
  auto json = read_object(facts.file);
  if (!json) return;
  Object root(*json, facts.file, "");
  if (auto architecture = root.text("architecture")) {
    for (const ActivationName& known : kArchitectures)
      if (architecture->starts_with(known.name)) facts.activation = known.activation;
    std::smatch registers;
    if (std::regex_search(*architecture, registers, std::regex("_reg([0-9])_")))
      facts.registers = std::stoi(registers[1]);
  }
  auto pool = root.text("global_pool");
  if (auto arguments = root.part("model_args")) {
    facts.width = arguments->integer("embed_dim");
    facts.heads = arguments->integer("num_heads");
    facts.depth = arguments->integer("depth");
    if (auto registers = arguments->integer("reg_tokens")) facts.registers = registers;
    facts.image_size = arguments->size("img_size");
    if (auto activation = arguments->activation("act_layer")) facts.activation = activation;
    if (auto argument = arguments->text("global_pool")) pool = argument;
  }
  if (pool == "token") facts.pool = Pool::cls;
  if (pool == "avg") facts.pool = Pool::mean;
  if (pool && *pool != "" && !facts.pool) root.fail("global_pool", "\"token\" or \"avg\"");
  facts.normalization = pretrained_normalization(root);
}

void read_open_clip(const std::filesystem::path& folder, ConfigFacts& facts) {
  facts.file = folder / "open_clip_config.json";
  auto json = read_object(facts.file);
  if (!json) return;
  Object root(*json, facts.file, "");
  if (auto model = root.part("model_cfg")) {
    facts.activation = model->flag("quick_gelu") ? Activation::quick_gelu : Activation::gelu;
    if (auto vision = model->part("vision_cfg")) {
      facts.width = vision->integer("width");
      facts.head_width = vision->integer("head_width");
      facts.depth = vision->integer("layers");
      facts.image_size = vision->size("image_size");
    }
  }
  if (auto preprocess = root.part("preprocess_cfg"))
    facts.normalization = preprocess->normalization("mean", "std");
}

}  // namespace

ConfigFacts read_config_facts(VitFormat format, const std::filesystem::path& weights) {
  ConfigFacts facts;
  const std::filesystem::path folder = weights.parent_path();
  switch (format) {
    case VitFormat::hf_vit:
    case VitFormat::hf_deit:
    case VitFormat::hf_dinov2:
    case VitFormat::hf_clip:
      read_hugging_face(folder, facts);
      break;
    case VitFormat::timm:
    case VitFormat::dinov2:
      read_timm(folder, facts);
      break;
    case VitFormat::clip:
      read_open_clip(folder, facts);
      break;
    case VitFormat::google_npz:
      break;  // such files stand alone
  }
  return facts;
}

std::optional<Normalization> timm_normalization(const std::filesystem::path& weights) {
  const std::filesystem::path file = weights.parent_path() / "config.json";
  const auto json = read_object(file);
  return json ? pretrained_normalization(Object(*json, file, "")) : std::nullopt;
}

BitFacts read_bit_facts(BitFormat format, const std::filesystem::path& weights) {
  BitFacts facts;
  const std::filesystem::path folder = weights.parent_path();
  const std::filesystem::path file = folder / "config.json";
  const auto json = read_object(file);
  if (format != BitFormat::hf_bit) {
    if (!json) return facts;
    const Object root(*json, file, "");
    if (auto arguments = root.part("model_args")) facts.groups = arguments->integer("num_groups");
    facts.normalization = pretrained_normalization(root);
    return facts;
  }
  if (json) {
    const Object root(*json, file, "");
    facts.groups = root.integer("num_groups");
    // Other networks of the same names.
    if (root.text("layer_type").value_or("preactivation") != "preactivation")
      root.fail("layer_type", "\"preactivation\"");
    if (root.text("global_padding")) root.fail("global_padding", "null");
    if (root.flag("embedding_dynamic_padding")) root.fail("embedding_dynamic_padding", "false");
    if (root.text("hidden_act").value_or("relu") != "relu") root.fail("hidden_act", "\"relu\"");
    if (root.integer("output_stride").value_or(32) < 32) root.fail("output_stride", "32");
  }
  const std::filesystem::path preprocessor = folder / "preprocessor_config.json";
  if (const auto preprocessing = read_object(preprocessor))
    facts.normalization =
        Object(*preprocessing, preprocessor, "").normalization("image_mean", "image_std");
  return facts;
}

}  // namespace convpass
