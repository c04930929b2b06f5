#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace convpass {

/// What stands in front of the data of a NumPy array file.
struct NpyHeader {
  c10::ScalarType type;
  bool big_endian = false;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

/// Parses the Python dictionary literal of an .npy header, nothing more of Python than that.
/// Errors: std::invalid_argument with what is wrong, fit for a one-line message.
NpyHeader parse_npy_header(std::string_view text);

}  // namespace convpass
