#pragma once

#include <ATen/core/Tensor.h>

namespace convpass {

/// Whether the CPU's kernels can attend over such tensors: bfloat16 on a CPU that has them, heads
/// of an even width.
bool can_pack_attention(const at::Tensor& tokens, int64_t head_dim);

/// Multi-head attention, scale d^-0.5, of what a dense layer gave: qkv `[B, N, 3 H d]` to
/// `[B, N, H d]`. Saves qkv alone for the backward pass, in which the scores are computed again.
at::Tensor packed_attention(const at::Tensor& qkv, int64_t heads);
/// The same of queries that are fewer: q `[B, M, H d]` over kv `[B, N, 2 H d]`.
at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& kv, int64_t heads);

}  // namespace convpass
