#include "models/vit_block.h"

#include <ATen/ATen.h>

#include "models/packed_attention.h"

namespace convpass {
namespace {

at::Tensor activate(const at::Tensor& hidden, Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return at::gelu(hidden);
    case Activation::gelu_tanh:
      return at::gelu(hidden, "tanh");
    case Activation::quick_gelu:
      return quick_gelu(hidden);
    case Activation::swiglu: {
      auto halves = hidden.chunk(2, -1);
      return at::silu(halves[0]) * halves[1];
    }
  }
  TORCH_CHECK(false, "unknown activation");
}

}  // namespace

at::Tensor VitBlock::forward(at::Tensor x, int64_t rows, const Adapter* adapter,
                             const TokenLayout& layout, const Pass& pass) const {
  at::Tensor normed = norm1.forward(x);  // [B, N, D]
  at::Tensor branch = proj.forward(attend(normed, rows));
  if (rows < x.size(1)) {
    x = x.narrow(1, 0, rows);
    normed = normed.narrow(1, 0, rows);
  }
  x = add(x, branch, scale1, Site::attn, normed, adapter, layout, pass);
  normed = norm2.forward(x);
  return add(x, mlp(normed), scale2, Site::mlp, normed, adapter, layout, pass);
}

at::Tensor VitBlock::mlp(const at::Tensor& normed) const {
  if (fc1.packed && fc2.packed && activation != Activation::swiglu)
    return packed_mlp(normed, fc1.packed, fc2.packed, activation);
  return fc2.forward(activate(fc1.forward(normed), activation));
}

at::Tensor VitBlock::attend(const at::Tensor& normed, int64_t rows) const {
  const int64_t batch = normed.size(0), tokens = normed.size(1), dim = normed.size(2);
  if (can_pack_attention(normed, dim / heads)) {
    if (rows == tokens) return packed_attention(qkv.forward(normed), heads);
    return packed_attention(qkv.forward_rows(normed.narrow(1, 0, rows), 0, dim),
                            qkv.forward_rows(normed, dim, 2 * dim), heads);
  }
  if (rows == tokens) {
    at::Tensor packed = qkv.forward(normed)
                            .view({batch, tokens, 3, heads, dim / heads})
                            .permute({2, 0, 3, 1, 4});  // [3, B, H, N, d]
    const auto parts =
        packed.unbind(0);  // one node in the graph, where three selects would be three
    return attention(parts[0], parts[1], parts[2]);
  }
  at::Tensor q = qkv.forward_rows(normed.narrow(1, 0, rows), 0, dim)
                     .view({batch, rows, heads, dim / heads})
                     .transpose(1, 2);  // [B, H, M, d]
  at::Tensor packed = qkv.forward_rows(normed, dim, 2 * dim)
                          .view({batch, tokens, 2, heads, dim / heads})
                          .permute({2, 0, 3, 1, 4});  // [2, B, H, N, d]
  const auto parts = packed.unbind(0);
  return attention(q, parts[0], parts[1]);
}

/// x + dp(scale * branch) + dp(adapter beside the branch), one pass over the tokens for each
/// summand.
at::Tensor VitBlock::add(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& scale,
                         Site site, const at::Tensor& normed, const Adapter* adapter,
                         const TokenLayout& layout, const Pass& pass) const {
  at::Tensor factor = drop_path_factor(x, drop_rate, pass);  // [B, 1, 1] or undefined
  if (scale.defined()) factor = factor.defined() ? factor * scale : scale;
  at::Tensor sum = factor.defined() ? at::addcmul(x, branch, factor) : x + branch;
  if (adapter == nullptr || !adapter->acts(index, site)) return sum;
  // In place: nothing has saved the sum yet.
  at::Tensor beside = adapter->beside(index, site, normed, layout, pass);
  factor = drop_path_factor(x, drop_rate, pass);
  return factor.defined() ? sum.addcmul_(beside, factor) : sum.add_(beside);
}

void VitBlock::pack(Precision precision) {
  for (Linear* layer : {&qkv, &proj, &fc1, &fc2}) layer->pack(precision);
}

void VitBlock::visit(const std::string& prefix,
                     const std::function<void(const std::string&, at::Tensor&)>& each) {
  each(prefix + "norm1.weight", norm1.weight);
  each(prefix + "norm1.bias", norm1.bias);
  each(prefix + "attn.qkv.weight", qkv.weight);
  each(prefix + "attn.qkv.bias", qkv.bias);
  each(prefix + "attn.proj.weight", proj.weight);
  each(prefix + "attn.proj.bias", proj.bias);
  each(prefix + "ls1.gamma", scale1);
  each(prefix + "norm2.weight", norm2.weight);
  each(prefix + "norm2.bias", norm2.bias);
  each(prefix + "mlp.fc1.weight", fc1.weight);
  each(prefix + "mlp.fc1.bias", fc1.bias);
  each(prefix + "mlp.fc2.weight", fc2.weight);
  each(prefix + "mlp.fc2.bias", fc2.bias);
  each(prefix + "ls2.gamma", scale2);
}

}  // namespace convpass
