#include "src/cli/peft.h"

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/models/backbone_checkpoint.h"

namespace convpass::cli {

namespace fs = std::filesystem;

std::string peft_naming_name(PeftNaming naming) {
  switch (naming) {
    case PeftNaming::timm:
      return "peft-timm";
    case PeftNaming::huggingface:
      return "peft-hf";
    case PeftNaming::huggingface5:
      return "peft-hf5";
  }
  return "";
}

std::optional<PeftNaming> peft_naming_named(const std::string& name) {
  for (PeftNaming naming : {PeftNaming::timm, PeftNaming::huggingface, PeftNaming::huggingface5})
    if (name == peft_naming_name(naming)) return naming;
  return std::nullopt;
}

bool is_peft_folder(const fs::path& in) { return fs::is_regular_file(in / "adapter_config.json"); }

void to_peft(const fs::path& in, const fs::path& out, PeftNaming naming) {
  const AdapterFile file = load_adapter(in);
  if (fs::exists(out) && !fs::is_directory(out))
    throw FileError(out,
                    "is a file, wanted a folder for PEFT's adapter_model.safetensors and "
                    "adapter_config.json");
  BackboneArchitecture architecture;
  read_json_fields(file.backbone.architecture, architecture, in);
  const auto* vit = std::get_if<VitConfig>(&architecture);
  if (vit == nullptr)
    throw FileError(in, "its backbone is no ViT, which PEFT's LoRA is written for");
  try {
    save_peft(out, file, *vit, naming);
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {
    throw FileError(in, error.what());
  }
}

}  // namespace convpass::cli
