#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "convpass/data/pipeline.h"

namespace convpass {

/// What stands beside a TorchScript file, in the .json of the same stem.
struct ScriptNotes {
  std::vector<std::string> classes;  ///< in the order of its logits; empty for a backbone
  InputConfig input;                 ///< size, mean and std are set
};

/// None where there is no such file. Errors: RecipeError, FileError.
std::optional<ScriptNotes> read_script_notes(const std::filesystem::path& script);

}  // namespace convpass
