#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <string>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "convpass/models/backbone.h"

namespace convpass {

/// The values as they are now, on the CPU.
inline TensorMap copy_of(const NamedTensors& tensors) {
  TensorMap map;
  for (const auto& [name, tensor] : tensors) map.tensors[name] = tensor.detach().cpu().clone();
  return map;
}

/// Puts a checkpoint's values in the place of those that there are.
/// Errors: Error when a tensor is missing or does not fit.
inline void load_into(const NamedTensors& tensors, const TensorMap& map) {
  at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : tensors) {
    auto found = map.tensors.find(name);
    if (found == map.tensors.end() || found->second.sizes() != tensor.sizes())
      throw Error("checkpoint: tensor " + name + " is missing or of another shape");
    if (found->second.is_floating_point() != tensor.is_floating_point())
      throw Error("checkpoint: tensor " + name + " is of another type");
    tensor.copy_(found->second);
  }
}

}  // namespace convpass
