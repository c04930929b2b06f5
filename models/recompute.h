#pragma once

#include <functional>

#include "convpass/models/backbone.h"

namespace convpass {

using BlockWork = std::function<at::Tensor(const at::Tensor& x, const Pass& pass)>;

/// work(x, pass), of which nothing but x is kept for the backward pass (activation checkpointing,
/// Chen et al. 2016, arXiv 1604.06174): there it runs once more, with the same random draws, so
/// that gradients are the same to the last bit. What `work` refers to must outlive the graph.
at::Tensor recomputed(const at::Tensor& x, const Pass& pass, BlockWork work);

}  // namespace convpass
