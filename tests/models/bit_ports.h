#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "convpass/models/bit_checkpoint.h"

// The folders of tests/data/bit (made by tests/reference/bit_features.py) and what is known of
// each.
namespace convpass {

struct BitPort {
  const char* name;
  const char* file;
  BitFormat format;
  double standardization_eps;
  PoolPadding pool_padding;
};

inline std::filesystem::path bit_folder(const std::string& port) {
  return std::filesystem::path(CONVPASS_TEST_DATA) / "bit" / port;
}
inline std::filesystem::path bit_file(const BitPort& port) {
  return bit_folder(port.name) / port.file;
}

inline const std::vector<BitPort>& bit_ports() {
  using F = BitFormat;
  using P = PoolPadding;
  static const std::vector<BitPort> ports{
      {"timm", "model.safetensors", F::timm, 1e-8, P::zero},
      {"hf_bit", "model.safetensors", F::hf_bit, 1e-8, P::zero},
      {"big_transfer_npz", "BiT-M-R50x1.npz", F::big_transfer_npz, 1e-10, P::zero},
      {"big_transfer", "bit.pth.tar", F::big_transfer, 1e-10, P::zero},
      {"big_vision_npz", "checkpoint.npz", F::big_vision_npz, 1e-10, P::minus_infinity},
  };
  return ports;
}

inline BitConfig tiny_bit() {
  BitConfig config;
  config.units = {2, 1};
  config.root = 16;
  config.widths = {32, 64};
  config.groups = 8;
  return config;
}

inline std::string port_name(const testing::TestParamInfo<BitPort>& info) {
  return info.param.name;
}
inline void PrintTo(const BitPort& port, std::ostream* out) { *out << port.name; }

}  // namespace convpass
