#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

namespace convpass {

inline std::string shape_text(at::IntArrayRef shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
}

/// "12 tensors: a, b, c, d, e, ..."
inline std::string count_and_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text =
      std::to_string(names.size()) + (names.size() == 1 ? " tensor: " : " tensors: ");
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i == 0 ? "" : ", ") + names[i];
  return text + (names.size() > kShown ? ", ..." : "");
}

}  // namespace convpass
