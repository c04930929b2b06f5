#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace convpass {

/// What a file was made from: settings under their names, and hashes of weights and data. Any
/// difference makes it another's.
using MadeFrom = nlohmann::json;

/// Where the two first differ: "order.seed: got 42, wanted 9"; "" where they agree.
std::string difference(const MadeFrom& got, const MadeFrom& wanted);

}  // namespace convpass
