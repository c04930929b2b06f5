#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "convpass/adapters/peft.h"

namespace convpass::cli {

/// "peft-timm", "peft-hf" (transformers up to 4) or "peft-hf5".
std::optional<PeftNaming> peft_naming_named(const std::string& name);

std::string peft_naming_name(PeftNaming naming);

/// Whether `in` is a folder that PEFT wrote.
bool is_peft_folder(const std::filesystem::path& in);

/// An adapter file as PEFT's two files in the folder `out`. Errors: FileError with `in`.
void to_peft(const std::filesystem::path& in, const std::filesystem::path& out, PeftNaming naming);

}  // namespace convpass::cli
