#pragma once

#include <cstdint>
#include <vector>

/// Attention of one head in bfloat16 on one thread, for the CPUs of gemm_kernels.h: scores stay in
/// the cache, and the backward pass needs nothing but query, key and value.
namespace convpass::kernels {

/// Rows of bfloat16, `stride` values apart.
struct Rows {
  uint16_t* data = nullptr;
  int64_t stride = 0;
};

/// softmax(scale q k^T) v, q and out `[queries, dim]`, k and v `[keys, dim]`, dim even.
struct AttentionHead {
  int64_t queries = 0, keys = 0, dim = 0;
  float scale = 1;
  Rows q, k, v;
};

/// Memory that a thread reuses from head to head.
using Scratch = std::vector<uint32_t>;

void attend(const AttentionHead& head, Rows out, Scratch& scratch);

/// Given the gradient of out: those of q, k and v.
struct AttentionGradient {
  Rows out, q, k, v;
};
void attend_back(const AttentionHead& head, const AttentionGradient& grad, Scratch& scratch);

}  // namespace convpass::kernels
