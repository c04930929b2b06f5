#include "convpass/adapters/peft.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "convpass/core/json.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kStart = "base_model.model.";
constexpr const char* kWeights = "adapter_model.safetensors";
constexpr const char* kConfig = "adapter_config.json";
constexpr int64_t kMaxRank = 4096;
constexpr int kMaxDepth = 32;  // of the configuration's JSON

/// A module of a block under PEFT's name, and ours.
struct Module {
  const char* theirs;
  const char* word;  // in LoraConfig::layers
  const char* ours;
};
constexpr Module kTimm[] = {{"attn.qkv", "qkv", "attn.qkv"},
                            {"attn.proj", "proj", "attn.proj"},
                            {"mlp.fc1", "fc1", "mlp.fc1"},
                            {"mlp.fc2", "fc2", "mlp.fc2"}};
constexpr Module kHuggingFace[] = {
    {"attention.attention.query", "q", "attn.q"}, {"attention.attention.key", "k", "attn.k"},
    {"attention.attention.value", "v", "attn.v"}, {"attention.output.dense", "proj", "attn.proj"},
    {"intermediate.dense", "fc1", "mlp.fc1"},     {"output.dense", "fc2", "mlp.fc2"}};
/// DINOv2's MLP has these names in all versions.
constexpr Module kHuggingFace5[] = {
    {"attention.q_proj", "q", "attn.q"}, {"attention.k_proj", "k", "attn.k"},
    {"attention.v_proj", "v", "attn.v"}, {"attention.o_proj", "proj", "attn.proj"},
    {"mlp.fc1", "fc1", "mlp.fc1"},       {"mlp.fc2", "fc2", "mlp.fc2"}};

std::vector<Module> modules_of(PeftNaming naming) {
  switch (naming) {
    case PeftNaming::timm:
      return {std::begin(kTimm), std::end(kTimm)};
    case PeftNaming::huggingface:
      return {std::begin(kHuggingFace), std::end(kHuggingFace)};
    case PeftNaming::huggingface5:
      return {std::begin(kHuggingFace5), std::end(kHuggingFace5)};
  }
  TORCH_CHECK(false, "unknown naming");
}

std::string shown(std::string_view name) { return json_quote(name, 160); }

// --- adapter_config.json

/// Fields that do not change what the trained adapter computes, or that the tensors tell as well.
const std::set<std::string> kHarmless = {
    "arrow_config",        "auto_mapping",      "base_model_name_or_path",
    "corda_config",        "eva_config",        "ensure_weight_tying",
    "exclude_modules",     "inference_mode",    "layers_pattern",
    "layers_to_transform", "loftq_config",      "lora_ga_config",
    "megatron_core",       "monteclora_config", "peft_version",
    "qalora_group_size",   "revision",          "runtime_config",
    "target_modules",      "task_type"};
/// Fields that are read.
const std::set<std::string> kRead = {
    "bias", "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type",
    "r",    "use_rslora"};

bool is_nothing(const Json& value) {
  return value.is_null() || value == false ||
         ((value.is_structured() || value.is_string()) && value.empty()) ||
         (value.is_string() && value.get<std::string>().empty());
}

class ConfigFile {
 public:
  explicit ConfigFile(const fs::path& file) : file_(file) {
    const std::vector<uint8_t> bytes = read_file(file);
    const auto not_deep = [&](int depth, Json::parse_event_t, Json&) {
      if (depth > kMaxDepth)
        throw FileError(file, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
      return true;
    };
    json_ = Json::parse(bytes.begin(), bytes.end(), not_deep, /*allow_exceptions=*/false);
    if (!json_.is_object())
      throw FileError(file, "got no JSON object, wanted PEFT's configuration");
  }

  LoraConfig read() const {
    expect_word("peft_type", "LORA");
    expect_word("bias", "none");
    for (const auto& [key, value] : json_.items())
      if (kRead.count(key) + kHarmless.count(key) == 0 && !is_nothing(value))
        refuse(key, "its absence: LoRA with it is not known here");
    // Some ways to begin write the backbone's weights anew, so that it is another backbone.
    if (const Json* init = find("init_lora_weights"))
      if (!init->is_boolean() && *init != "gaussian" && *init != "orthogonal" && *init != "eva")
        refuse("init_lora_weights",
               "true, false, \"gaussian\", \"orthogonal\" or \"eva\": others change the backbone");
    if (const Json* saved = find("modules_to_save")) {
      const Json list = saved->is_array() ? *saved : Json::array({*saved});
      for (const Json& name : list)
        if (name != "classifier" && name != "head")
          refuse("modules_to_save", "\"classifier\" or \"head\" alone");
    }
    LoraConfig config;
    const Json* rank = find("r");
    if (rank == nullptr || !rank->is_number_integer() || *rank < 1 || *rank > kMaxRank)
      refuse("r", "a whole number from 1 to " + std::to_string(kMaxRank));
    config.rank = rank->get<int64_t>();
    config.alpha = number("lora_alpha", 8);
    config.dropout = number("lora_dropout", 0);
    if (config.dropout < 0 || config.dropout > 0.99)
      refuse("lora_dropout", "a number from 0 to 0.99");
    if (const Json* stabilized = find("use_rslora")) {
      if (!stabilized->is_boolean()) refuse("use_rslora", "true or false");
      config.rank_stabilized = stabilized->get<bool>();
    }
    return config;
  }

 private:
  /// The value of a key; null is as good as absent.
  const Json* find(const std::string& key) const {
    auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& wanted) const {
    auto found = json_.find(key);
    const std::string got =
        found == json_.end()
            ? "nothing"
            : found->dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60);
    throw FileError(file_, shown(key) + ": got " + got + ", wanted " + wanted);
  }
  void expect_word(const std::string& key, const std::string& word) const {
    const Json* value = find(key);
    if (value == nullptr ? key == "peft_type" : *value != word) refuse(key, "\"" + word + "\"");
  }
  double number(const std::string& key, double otherwise) const {
    const Json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_number() || !std::isfinite(value->get<double>())) refuse(key, "a number");
    return value->get<double>();
  }

  fs::path file_;
  Json json_;
};

// --- adapter_model.safetensors

struct Place {
  PeftNaming naming;
  int64_t block;
  Module module;
};

/// Block and module of "vit.encoder.layer.3.attention.attention.query".
std::optional<Place> parse_module(std::string_view name) {
  for (const char* prefix : {"vit.", "deit.", "dinov2.", "dinov2_with_registers."})
    if (name.starts_with(prefix)) {
      name.remove_prefix(std::string_view(prefix).size());
      break;
    }
  struct Start {
    const char* text;
    std::vector<PeftNaming> namings;
  };
  // DINOv2 has the old names of blocks with the new ones of their layers.
  const Start starts[] = {{"blocks.", {PeftNaming::timm}},
                          {"encoder.layer.", {PeftNaming::huggingface, PeftNaming::huggingface5}},
                          {"layers.", {PeftNaming::huggingface5}}};
  for (const Start& start : starts) {
    if (!name.starts_with(start.text)) continue;
    name.remove_prefix(std::string_view(start.text).size());
    const size_t dot = name.find('.');
    if (dot == 0 || dot > 4 || dot == std::string_view::npos) return std::nullopt;
    int64_t block = 0;
    for (char digit : name.substr(0, dot)) {
      if (digit < '0' || digit > '9') return std::nullopt;
      block = 10 * block + (digit - '0');
    }
    name.remove_prefix(dot + 1);
    for (PeftNaming naming : start.namings)
      for (const Module& module : modules_of(naming))
        if (name == module.theirs) return Place{naming, block, module};
    return std::nullopt;
  }
  return std::nullopt;
}

/// The weights of PEFT's names under ours, and which layers of which blocks they are.
struct Reader {
  const fs::path& file;
  PeftLora& lora;
  std::map<int64_t, std::set<std::string>> layers{};  // words of each block

  void take(const std::string& full, const at::Tensor& tensor) {
    std::string_view name = full;
    if (!name.starts_with(kStart)) unknown(full);
    name.remove_prefix(kStart.size());
    if (!tensor.is_floating_point())
      throw FileError(file, shown(full) + ": got type " + c10::toString(tensor.scalar_type()) +
                                ", wanted a floating point type");
    for (const char* part : {"weight", "bias"})
      for (const char* head : {"classifier.", "head."})
        if (name == head + std::string(part)) {
          put("head." + std::string(part), full, tensor);
          return;
        }
    for (const char* half : {".lora_A.weight", ".lora_B.weight"}) {
      if (!name.ends_with(half)) continue;
      name.remove_suffix(std::string_view(half).size());
      const std::optional<Place> place = parse_module(name);
      if (!place) unknown(full);
      if (!layers.empty() &&
          (place->naming == PeftNaming::timm) != (lora.naming == PeftNaming::timm))
        throw FileError(file, shown(full) + ": the names are timm's and Hugging Face's at once");
      lora.naming = place->naming;
      layers[place->block].insert(place->module.word);
      const bool is_a = half[6] == 'A';
      if (tensor.dim() != 2 || tensor.size(is_a ? 0 : 1) != lora.config.rank)
        throw FileError(file, shown(full) + ": wanted a matrix of rank " +
                                  std::to_string(lora.config.rank) + ", the configuration's r");
      put("blocks." + std::to_string(place->block) + "." + place->module.ours + half, full, tensor);
      return;
    }
    unknown(full);
  }

  /// Says in the config which layers and blocks there are; they must be the same in all blocks.
  void finish() {
    if (layers.empty()) throw FileError(file, "holds no LoRA on a block of a ViT");
    lora.config.layers.clear();
    for (const char* word : {"q", "k", "v", "qkv", "proj", "fc1", "fc2"})
      if (layers.begin()->second.count(word)) lora.config.layers.emplace_back(word);
    for (const auto& [block, here] : layers) {
      if (here != layers.begin()->second)
        throw FileError(file, "block " + std::to_string(block) +
                                  " has LoRA on other layers than block " +
                                  std::to_string(layers.begin()->first));
      lora.config.blocks.push_back(block);
    }
    for (const auto& [name, tensor] : lora.weights.tensors) {
      const size_t half = name.find("lora_");
      if (half == std::string::npos) continue;
      std::string other = name;
      other[half + 5] = name[half + 5] == 'A' ? 'B' : 'A';
      if (!lora.weights.has(other))
        throw FileError(file, "there is a " + name + " but no " + other);
    }
    if (!lora.weights.has("head.weight") || lora.weights.at("head.weight").dim() != 2)
      throw FileError(
          file,
          "has no classifier, wanted one saved with it: modules_to_save [\"classifier\"] "
          "or, with timm, [\"head\"]");
    if (!lora.weights.has("head.bias"))  // a head without one
      lora.weights.tensors["head.bias"] = at::zeros({lora.weights.at("head.weight").size(0)});
  }

 private:
  [[noreturn]] void unknown(const std::string& name) const {
    throw FileError(file, "tensor " + shown(name) +
                              " is no LoRA of a layer that is known here, and no classifier's");
  }
  void put(const std::string& ours, const std::string& theirs, const at::Tensor& tensor) {
    if (!lora.weights.tensors.emplace(ours, tensor.to(at::kFloat)).second)
      throw FileError(file, shown(theirs) + " stands for " + ours + ", which another does too");
  }
};

// --- Writing

void refuse_backbone(const VitConfig& vit, const AdapterFile& adapter) {
  const std::pair<bool, const char*> lacks[] = {
      {vit.distillation_token, "distillation token"},
      {!vit.class_token || adapter.pool == "mean" ||
           (adapter.pool == "auto" && vit.pool == Pool::mean),
       "head on the mean of the patches"},
      {vit.registers > 0, "register tokens"},
      {vit.layer_scale, "LayerScale"},
      {vit.pre_norm, "norm before the blocks"},
      {vit.activation == Activation::swiglu, "SwiGLU"}};
  for (const auto& [present, what] : lacks)
    if (present)
      throw Error(std::string("ViTForImageClassification of Hugging Face has no ") + what +
                  " as this model has, wanted --to peft-timm");
}

Json config_json(const LoraConfig& config, const std::vector<std::string>& modules,
                 const char* head) {
  Json alpha = config.alpha;
  if (config.alpha == std::floor(config.alpha) && std::abs(config.alpha) < 1e15)
    alpha = static_cast<int64_t>(config.alpha);
  return {{"peft_type", "LORA"},
          {"task_type", nullptr},
          {"base_model_name_or_path", nullptr},
          {"inference_mode", true},
          {"r", config.rank},
          {"lora_alpha", alpha},
          {"lora_dropout", config.dropout},
          {"use_rslora", config.rank_stabilized},
          {"use_dora", false},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"init_lora_weights", true},
          {"target_modules", modules},
          {"modules_to_save", {head}}};
}

}  // namespace

bool is_peft(const TensorMap& map) {
  return std::any_of(map.tensors.begin(), map.tensors.end(),
                     [](const auto& entry) { return entry.first.starts_with(kStart); });
}

PeftLora load_peft(const fs::path& given) {
  const bool folder = fs::is_directory(given);
  const fs::path weights = folder ? given / kWeights : given;
  const fs::path config = folder ? given / kConfig : given.parent_path() / kConfig;
  if (!fs::exists(config))
    throw FileError(config, "no such file, wanted PEFT's configuration beside its weights");
  PeftLora lora;
  lora.config = ConfigFile(config).read();
  const TensorMap map = load_tensors(weights);
  Reader reader{weights, lora};
  for (const auto& [name, tensor] : map.tensors) reader.take(name, tensor);
  reader.finish();
  return lora;
}

void save_peft(const fs::path& folder, const AdapterFile& adapter, const VitConfig& backbone,
               PeftNaming naming) {
  const auto* config = std::get_if<LoraConfig>(&adapter.adapter);
  if (config == nullptr)
    throw Error(std::string("PEFT's LoRA: got an adapter of the type \"") +
                adapter_type(adapter.adapter) + "\", wanted \"lora\"");
  if (adapter.head != HeadType::linear)
    throw Error("PEFT's LoRA: got another head than a linear one, which is not written");
  const bool timm = naming == PeftNaming::timm;
  if (!timm) refuse_backbone(backbone, adapter);
  const std::string block_start = timm                                ? "blocks."
                                  : naming == PeftNaming::huggingface ? "vit.encoder.layer."
                                                                      : "vit.layers.";
  const char* head = timm ? "head" : "classifier";
  TensorMap out;
  out.metadata["format"] = "pt";
  std::set<std::string> modules;
  size_t written = 0;
  auto has = [&](const std::string& name) { return adapter.weights.has(name); };
  for (int64_t block = 0; block < backbone.depth; ++block) {
    const std::string ours = "blocks." + std::to_string(block) + ".";
    for (const Module& module : modules_of(naming)) {
      const std::string theirs = block_start + std::to_string(block) + "." + module.theirs;
      for (const char* half : {".lora_A.weight", ".lora_B.weight"}) {
        const std::string fused = ours + "attn.qkv" + half;
        const std::string third = module.word;  // "q", "k", "v" where it is one
        if (has(ours + module.ours + half)) {
          out.tensors[std::string(kStart) + theirs + half] =
              adapter.weights.at(ours + module.ours + half);
          ++written;
        } else if (third.size() == 1 && has(fused)) {
          at::Tensor value = adapter.weights.at(fused);
          if (half[6] == 'B') value = value.chunk(3, 0)[std::string("qkv").find(third)];
          out.tensors[std::string(kStart) + theirs + half] = value;
          if (third == "q") ++written;
        } else {
          continue;
        }
        modules.insert(theirs);
      }
    }
  }
  for (const char* part : {"weight", "bias"})
    if (has(std::string("head.") + part)) {
      out.tensors[std::string(kStart) + head + "." + part] =
          adapter.weights.at(std::string("head.") + part);
      ++written;
    }
  if (written != adapter.weights.tensors.size())
    throw Error(
        timm && std::any_of(config->layers.begin(), config->layers.end(),
                            [](const std::string& word) { return word.size() == 1; })
            ? "PEFT's LoRA: timm's attn.qkv is one layer with one A and B, got LoRA on q, k "
              "or v apart, wanted --to peft-hf"
            : "PEFT's LoRA: the adapter holds other tensors than LoRA and a head");
  fs::create_directories(folder);
  save_safetensors(folder / kWeights, out);
  write_atomically(folder / kConfig,
                   config_json(*config, {modules.begin(), modules.end()}, head).dump(2) + "\n");
}

}  // namespace convpass
