#pragma once

#include <vector>

#include "src/cli/arguments.h"

namespace convpass::cli {

// One file each.
const Command& train_command();
const Command& suite_command();
const Command& search_command();
const Command& eval_command();
const Command& predict_command();
const Command& inspect_command();
const Command& check_command();
const Command& bench_command();
const Command& convert_command();
const Command& help_command();

/// In the order of the overview.
std::vector<const Command*> all_commands();
/// Errors: UsageError with the nearest name.
const Command& find_command(const std::string& name);

/// What `convpass` alone prints.
std::string overview();
/// What `convpass --version` prints: LibTorch, cuDNN, OpenCV, CPU features.
std::string version();

}  // namespace convpass::cli
