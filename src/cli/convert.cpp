#include <ATen/core/Tensor.h>

#include <fstream>

#include "convpass/adapters/adapter_file.h"
#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/backbone_checkpoint.h"
#include "convpass/models/bit_checkpoint.h"
#include "convpass/models/swin_checkpoint.h"
#include "convpass/models/tresnet_checkpoint.h"
#include "convpass/models/vit_checkpoint.h"
#include "convpass/train/build.h"
#include "src/cli/commands.h"
#include "src/cli/official_convpass.h"
#include "src/cli/output.h"
#include "src/cli/peft.h"

namespace convpass::cli {
namespace {

namespace fs = std::filesystem;

constexpr VitFormat kVitFormats[] = {VitFormat::timm,    VitFormat::google_npz, VitFormat::hf_vit,
                                     VitFormat::hf_deit, VitFormat::hf_dinov2,  VitFormat::dinov2,
                                     VitFormat::clip,    VitFormat::hf_clip};
constexpr BitFormat kBitFormats[] = {BitFormat::timm, BitFormat::big_transfer_npz,
                                     BitFormat::big_vision_npz, BitFormat::big_transfer,
                                     BitFormat::hf_bit};

bool is_pytorch_name(const fs::path& file) {
  return file.extension() == ".pt" || file.extension() == ".pth" || file.extension() == ".bin";
}

void save(const fs::path& out, const TensorMap& map) {
  if (out.extension() == ".safetensors") {
    save_safetensors(out, map);
  } else if (is_pytorch_name(out)) {
    save_pytorch(out, map);
  } else {
    throw UsageError("convert: got output " + json_quote(out.string()) +
                     ", wanted a name ending in .safetensors, .pt, .pth or .bin");
  }
}

std::vector<std::string> lines_of(const fs::path& file) {
  std::ifstream in(file);
  if (!in) throw FileError(file, "cannot be read, wanted one class name a line");
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

std::vector<std::string> class_names(const Arguments& arguments, int64_t classes) {
  std::vector<std::string> names;
  if (std::optional<std::string> file = arguments.value("--classes")) {
    names = lines_of(*file);
    if (static_cast<int64_t>(names.size()) != classes) {
      throw FileError(*file, "got " + std::to_string(names.size()) + " class names, wanted " +
                                 std::to_string(classes) + ", the rows of head.weight");
    }
  } else {
    for (int64_t i = 0; i < classes; ++i) names.push_back(std::to_string(i));
  }
  return names;
}

/// A recipe that builds what the official tensors belong to.
Recipe official_recipe(const Arguments& arguments, const TensorMap& map, const fs::path& in) {
  std::optional<std::string> backbone = arguments.value("--backbone");
  std::optional<std::string> scale = arguments.value("--scale");
  if (!backbone || !scale) {
    throw UsageError(
        "convert: " + in.string() +
        " holds official bypasses, which tell neither their backbone nor their scale; wanted "
        "--backbone FILE and --scale S");
  }
  Recipe recipe = recipe_from_sets({"adapter.scale=" + *scale});
  ConvpassConfig config = official_config(map, in);
  config.scale = std::get<ConvpassConfig>(recipe.adapter).scale;
  recipe.file = in;
  recipe.backbone.weights = *backbone;
  recipe.backbone.image_size = {arguments.integer("--size", 224, 1)};
  const Normalization imagenet;
  recipe.input.mean.assign(imagenet.mean.begin(), imagenet.mean.end());
  recipe.input.std.assign(imagenet.std.begin(), imagenet.std.end());
  recipe.adapter = config;
  recipe.train.device = DeviceChoice::cpu;
  return recipe;
}

void require_adapter_name(const fs::path& out) {
  if (out.extension() != ".safetensors") {
    throw UsageError("convert: got output " + json_quote(out.string()) +
                     ", wanted a name ending in .safetensors for an adapter");
  }
}

/// What another's tensors are as an adapter file of the recipe's model.
void write_adapter(const Arguments& arguments, Recipe& recipe, const TensorMap& weights,
                   const fs::path& out) {
  if (!weights.has("head.weight") || weights.at("head.weight").dim() != 2) {
    throw FileError(recipe.file, "tensor head.weight is missing or no matrix");
  }
  if (weights.at("head.weight").numel() == 0)
    throw FileError(recipe.file, "head.weight holds nothing, wanted a row for each class");
  int64_t classes = weights.at("head.weight").size(0);
  TunedModel model = build_model(recipe, classes);
  // Where every block has one, the short form is the same.
  std::visit(
      [&](auto& config) {
        if constexpr (requires { config.blocks; }) {
          if (static_cast<int64_t>(config.blocks.size()) == model.backbone->depth()) {
            config.blocks.clear();
          }
        }
      },
      recipe.adapter);
  AdapterFile file = adapter_file_of(recipe, model, resolve_input(recipe.input, model),
                                     class_names(arguments, classes));
  file.weights.tensors = weights.tensors;
  try {
    apply_adapter(file, model);  // checks names and shapes
  } catch (const Error& error) {
    throw FileError(recipe.file, error.what());
  }
  for (auto& [name, tensor] : file.weights.tensors) tensor = tensor.to(at::kFloat);
  save_adapter(out, file);
}

void from_official(const Arguments& arguments, const TensorMap& map, const fs::path& in,
                   const fs::path& out) {
  require_adapter_name(out);
  Recipe recipe = official_recipe(arguments, map, in);
  write_adapter(arguments, recipe, map, out);
}

void from_peft(const Arguments& arguments, const fs::path& in, const fs::path& out) {
  require_adapter_name(out);
  PeftLora lora = load_peft(in);
  std::optional<std::string> backbone = arguments.value("--backbone");
  if (!backbone) {
    throw UsageError(
        "convert: " + in.string() +
        " holds PEFT's LoRA, which does not hold its backbone; wanted --backbone FILE");
  }
  Recipe recipe;
  recipe.file = in;
  recipe.backbone.weights = *backbone;
  if (arguments.value("--size")) recipe.backbone.image_size = {arguments.integer("--size", 0, 1)};
  recipe.adapter = lora.config;
  recipe.train.device = DeviceChoice::cpu;
  if (lora.naming != PeftNaming::timm) {
    recipe.backbone.pool = Pool::cls;  // what ViTForImageClassification looks at
    BackboneCheckpoint checkpoint = load_backbone_checkpoint(*backbone);
    const auto* vit = std::get_if<VitConfig>(&checkpoint.architecture);
    if (vit != nullptr && vit->distillation_token) {
      throw FileError(in,
                      "Hugging Face's DeiT reads the class token alone, ours the distillation "
                      "token too: wanted a ViT without one");
    }
  }
  write_adapter(arguments, recipe, lora.weights, out);
}

void to_official(const fs::path& in, const fs::path& out) {
  AdapterFile file = load_adapter(in);
  if (!std::holds_alternative<ConvpassConfig>(file.adapter) &&
      !std::holds_alternative<NoAdapter>(file.adapter)) {
    throw FileError(in, std::string("its adapter is of the type \"") + adapter_type(file.adapter) +
                            "\", wanted \"convpass\" for the official form, or \"lora\" with --to "
                            "peft-timm, peft-hf or peft-hf5");
  }
  for (const auto& [name, tensor] : file.weights.tensors) {
    if (name.starts_with("backbone.")) {
      throw FileError(in, "it holds a whole backbone, wanted bypasses and a head alone");
    }
  }
  if (file.head == HeadType::distilled)
    throw FileError(in, "it holds DeiT's two heads, wanted one: the official form has no second");
  if (file.head == HeadType::cosine)
    throw FileError(in,
                    "its head is of the type \"cosine\", wanted \"linear\": the official form "
                    "has no projection");
  if (!is_pytorch_name(out)) {
    throw UsageError("convert: got output " + json_quote(out.string()) +
                     ", wanted a name ending in .pt for the official form of an adapter");
  }
  save_pytorch(out, file.weights);
}

/// The format that --to names, of those in `known`.
template <class Format>
Format wanted_format(const std::string& to, std::optional<Format> named,
                     const std::vector<std::string>& known) {
  if (named) return *named;
  std::string wanted;
  for (const std::string& name : known) wanted += (wanted.empty() ? "" : ", ") + name;
  throw UsageError("convert: --to: got " + json_quote(to) + ", wanted one of " + wanted +
                   did_you_mean(to, known));
}

void convert_checkpoint(const Arguments& arguments, const TensorMap& map, const fs::path& in,
                        const fs::path& out) {
  if (out.extension() == ".npz") {
    throw UsageError(
        "convert: npz files are read but not written, wanted an output ending in "
        ".safetensors, .pt, .pth or .bin");
  }
  std::string to = arguments.value("--to").value_or("timm");
  std::vector<std::string> known;
  if (is_bit_checkpoint(map)) {
    for (BitFormat each : kBitFormats) known.emplace_back(bit_format_name(each));
    BitFormat format = wanted_format(to, bit_format_named(to), known);
    const BitCheckpoint bit = bit_checkpoint_from(map, in);
    if (is_pytorch_name(out) && bit.config.groups != BitConfig{}.groups)
      throw UsageError("convert: got output " + json_quote(out.string()) +
                       ", wanted a name ending in .safetensors: nothing in a PyTorch file tells "
                       "its " +
                       std::to_string(bit.config.groups) + " groups");
    save(out, bit_checkpoint_as(bit, format));
  } else if (is_tresnet_checkpoint(map)) {
    // The authors' naming is not written: of their norms' weights no sign is left.
    wanted_format(to, to == "timm" ? std::optional(TResnetFormat::timm) : std::nullopt, {"timm"});
    save(out, tresnet_checkpoint_as_timm(tresnet_checkpoint_from(map, in)));
  } else if (is_swin_checkpoint(map)) {
    wanted_format(to, to == "timm" ? std::optional(SwinFormat::timm) : std::nullopt, {"timm"});
    save(out, swin_checkpoint_as_timm(swin_checkpoint_from(map, in)));
  } else {
    for (VitFormat each : kVitFormats) known.emplace_back(vit_format_name(each));
    VitFormat format = wanted_format(to, vit_format_named(to), known);
    save(out, vit_checkpoint_as(vit_checkpoint_from(map, in), format));
  }
}

void convert_tensors(const Arguments& arguments, const fs::path& in, const fs::path& out,
                     std::optional<PeftNaming> naming) {
  TensorMap map = load_tensors(in);
  auto format = map.metadata.find("format");
  const bool ours = format != map.metadata.end() && format->second == "convpass-adapter";
  if (ours && arguments.value("--to")) {
    const std::vector<std::string> known{"peft-timm", "peft-hf", "peft-hf5"};
    to_peft(in, out, wanted_format(*arguments.value("--to"), naming, known));
  } else if (ours) {
    to_official(in, out);
  } else if (naming) {
    throw FileError(in, "is no adapter file of ours, which alone is written as PEFT's");
  } else if (is_peft(map)) {
    from_peft(arguments, in, out);
  } else if (is_official_convpass(map)) {
    from_official(arguments, map, in, out);
  } else {
    convert_checkpoint(arguments, map, in, out);
  }
}

int run_convert(const Arguments& arguments) {
  fs::path in = arguments.positional()[0], out = arguments.positional()[1];
  if (std::error_code none; fs::equivalent(in, out, none))
    throw UsageError("convert: the output " + json_quote(out.string()) +
                     " is the input, wanted another name");
  const auto naming = peft_naming_named(arguments.value("--to").value_or(""));
  if (is_peft_folder(in)) {
    from_peft(arguments, in, out);
  } else {
    convert_tensors(arguments, in, out, naming);
  }
  print_line("{\"wrote\":" + json_quote(out.string(), 4096) + "}");
  return 0;
}

}  // namespace

const Command& convert_command() {
  static const Command command{
      .name = "convert",
      .synopsis = "IN OUT [--to FORMAT] [--backbone FILE --scale S]",
      .summary = "Converts between checkpoint and adapter formats.",
      .details =
          "A ViT, BiT, TResNet or Swin checkpoint is renamed to FORMAT. An adapter.safetensors "
          "becomes the .pt that the official\nConvpass code loads, and the other way round; that "
          "direction "
          "needs --backbone and --scale, which\nthe official file does not tell, and assumes "
          "ImageNet's mean and std. An adapter of the type \"lora\"\nbecomes a folder OUT as PEFT "
          "writes it, with --to peft-timm, peft-hf or peft-hf5, and the other way\nround: IN is "
          "PEFT's folder or the adapter_model.safetensors in it, and --backbone is needed.",
      .options = {{"--to", "FORMAT",
                   "timm (default), google-npz, hf-vit, hf-deit, hf-dinov2, dinov2, clip, hf-clip; "
                   "of a BiT: "
                   "timm, big-transfer-npz, big-vision-npz, big-transfer, hf-bit; of a TResNet: "
                   "timm; of a Swin: timm; of a "
                   "LoRA: peft-timm, peft-hf (transformers up to 4), peft-hf5"},
                  {"--backbone", "FILE",
                   "the weights that official bypasses or PEFT's LoRA belong to"},
                  {"--scale", "S", "the official bypasses' constant factor"},
                  {"--size", "N", "their image size (224; PEFT: the backbone's)"},
                  {"--classes", "FILE", "one class name a line; else the names are 0, 1, 2, ..."}},
      .min_positional = 2,
      .max_positional = 2,
      .run = run_convert};
  return command;
}

}  // namespace convpass::cli
