#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "convpass/models/tresnet_checkpoint.h"

// The folders of tests/data/tresnet (made by tests/reference/tresnet_features.py) and what is known
// of them.
namespace convpass {

inline std::filesystem::path tresnet_file(const std::string& name) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "tresnet" / name;
}

inline TResnetConfig tiny_tresnet(bool v2) {
  if (v2) return {.layers = {2, 1, 1, 1}, .width = 8, .v2 = true};
  return {.layers = {2, 1, 2, 1}, .width = 4};
}

}  // namespace convpass
