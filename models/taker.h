#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "models/tensor_text.h"

namespace convpass {

/// Hands out tensors by name with their shapes checked, and knows at the end what nobody asked for.
class Taker {
 public:
  explicit Taker(const TensorMap& map) : map_(map) {}

  at::Tensor take(const std::string& name, const std::vector<int64_t>& shape) {
    auto found = map_.tensors.find(name);
    if (found == map_.tensors.end()) throw Error("backbone: tensor " + name + " is missing");
    if (found->second.sizes() != at::IntArrayRef(shape))
      throw Error("backbone: tensor " + name + ": got shape " + shape_text(found->second.sizes()) +
                  ", wanted " + shape_text(shape));
    ++taken_;
    return found->second.to(at::kFloat).contiguous();
  }

  void expect_all_taken() const {
    if (taken_ != map_.tensors.size())
      throw Error("backbone: " + std::to_string(map_.tensors.size() - taken_) +
                  " tensors of the checkpoint have no place in this architecture");
  }

 private:
  const TensorMap& map_;
  size_t taken_ = 0;
};

}  // namespace convpass
