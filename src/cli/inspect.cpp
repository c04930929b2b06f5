#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>

#include "convpass/adapters/adapter_file.h"
#include "convpass/adapters/text_embeddings.h"
#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/backbone_checkpoint.h"
#include "src/cli/commands.h"
#include "src/cli/official_convpass.h"
#include "src/cli/output.h"
#include "src/cli/peft.h"

namespace convpass::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// The text of a metadata entry, or the JSON that it holds.
Json metadata_value(const std::string& text) {
  constexpr int kMaxDepth = 32;
  bool deep = false;
  const auto look = [&](int depth, Json::parse_event_t, Json&) {
    deep |= depth > kMaxDepth;
    return !deep;  // to write it or to copy it would recurse
  };
  Json json = Json::parse(text, look, /*allow_exceptions=*/false);
  return json.is_structured() && !deep ? json : Json(text);
}

void describe_adapter(const fs::path& file, Json& out) {
  AdapterFile adapter = load_adapter(file);
  out["what"] = "convpass adapter";
  out["architecture"] = adapter.backbone.name;
  out["backbone_hash"] = adapter.backbone.hash;
  out["adapter"] = Json::parse(write_json_fields(adapter.adapter));
  out["classes"] = adapter.classes.size();
}

/// "vit checkpoint", "bit checkpoint": the kind that the configuration begins with.
void describe_backbone(const BackboneCheckpoint& checkpoint, Json& out) {
  Json config = Json::parse(write_json_fields(checkpoint.architecture));
  out["what"] = config["kind"].get<std::string>() + " checkpoint";
  config.erase("kind");
  out["naming"] = checkpoint.format;
  out["architecture"] = backbone_name(checkpoint.architecture);
  out["config"] = std::move(config);
  out["backbone_hash"] = checkpoint.hash;
  out["normalization"] = {{"mean", checkpoint.normalization.mean},
                          {"std", checkpoint.normalization.std},
                          {"assumed", checkpoint.normalization.assumed}};
  out["head_tensors"] = checkpoint.head.tensors.size();
}

void describe_content(const fs::path& file, const TensorMap& map, Json& out) {
  auto format = map.metadata.find("format");
  if (format != map.metadata.end() && format->second == "convpass-adapter") {
    describe_adapter(file, out);
    return;
  }
  if (format != map.metadata.end() && format->second == "convpass-text-embeddings") {
    out["what"] = "class-text embeddings";
    out["classes"] = load_text_embeddings(file).classes.size();
    return;
  }
  if (is_official_convpass(map)) {
    out["what"] = "convpass adapter (official naming)";
    out["adapter"] = Json::parse(write_json_fields(official_config(map, file)));
    return;
  }
  if (is_peft(map)) {
    const PeftLora lora = load_peft(file);
    out["what"] = "PEFT LoRA";
    out["naming"] = peft_naming_name(lora.naming);
    out["adapter"] = Json::parse(write_json_fields(AdapterConfig(lora.config)));
    return;
  }
  try {
    describe_backbone(backbone_checkpoint_from(map, file), out);
  } catch (const Error& error) {
    out["what"] = map.format == "torchscript" ? "TorchScript module" : "tensors";
    out["why_no_backbone"] = error.what();
  }
}

int run_inspect(const Arguments& arguments) {
  fs::path file = arguments.positional()[0];
  for (const char* name : {"adapter.safetensors", "adapter_model.safetensors"})
    if (fs::is_regular_file(file / name)) file /= name;
  TensorMap map = load_tensors(file);
  Json out{{"file", file.string()}, {"format", map.format}};
  describe_content(file, map, out);
  out["tensors"] = map.tensors.size();
  out["parameters"] = map.parameters();
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : map.tensors) bytes += tensor.nbytes();
  out["bytes"] = bytes;
  out["metadata"] = Json::object();
  for (const auto& [key, text] : map.metadata) out["metadata"][key] = metadata_value(text);
  if (arguments.has("--tensors")) {
    Json list = Json::array();
    for (const auto& [name, tensor] : map.tensors) {
      list.push_back({{"name", name},
                      {"shape", tensor.sizes().vec()},
                      {"type", c10::toString(tensor.scalar_type())}});
    }
    out["tensor_list"] = list;
  }
  print_line(out.dump(2, ' ', false, Json::error_handler_t::replace));
  return 0;
}

}  // namespace

const Command& inspect_command() {
  static const Command command{
      .name = "inspect",
      .synopsis = "FILE|RUN [--tensors]",
      .summary = "Says what a checkpoint or adapter file holds.",
      .details =
          "Prints one JSON object: format, what it is, architecture, parameters, bytes, metadata.",
      .options = {{"--tensors", "", "lists every tensor with its shape and type"}},
      .min_positional = 1,
      .max_positional = 1,
      .run = run_inspect};
  return command;
}

}  // namespace convpass::cli
