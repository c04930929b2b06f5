#include "models/vit_block.h"

#include <ATen/ATen.h>

#include <utility>

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

at::Tensor VitBlock::Hook::operator()(Layer layer, const at::Tensor& input,
                                      at::Tensor output) const {
  if (adapter == nullptr) return output;
  return adapter->after(block, layer, input, std::move(output), pass);
}

struct VitBlock::Beside {
  const Adapter* adapter;  // null: nothing is added
  int64_t block;
  Site site;
  const TokenLayout& layout;
  const Pass& pass;
  at::Tensor normed{}, begun{};

  bool acts() const { return adapter != nullptr && adapter->acts(block, site); }
  bool adds() const { return adapter != nullptr && adapter->adds(block, site); }
  /// Returns what the branch reads.
  at::Tensor begin(at::Tensor input) {
    if (acts()) begun = adapter->begin_beside(block, site, input, layout);
    return normed = std::move(input);
  }
};

at::Tensor VitBlock::forward(at::Tensor x, int64_t rows, const Adapter* adapter,
                             const TokenLayout& layout, const Pass& pass) const {
  const Hook hook{adapter && adapter->changes_layers(index) ? adapter : nullptr, index, pass};
  Beside beside_attn{adapter, index, Site::attn, layout, pass};
  at::Tensor normed = beside_attn.begin(norm1.forward(x));  // [B, N, D]
  at::Tensor mixed = attend(hook(Layer::norm1, x, normed), rows, hook);
  at::Tensor branch = hook(Layer::proj, mixed, proj.forward(mixed));
  if (rows < x.size(1)) {
    x = x.narrow(1, 0, rows);
    beside_attn.normed = normed.narrow(1, 0, rows);
  }
  x = add(x, branch, scale1, beside_attn);
  Beside beside_mlp{adapter, index, Site::mlp, layout, pass};
  normed = beside_mlp.begin(norm2.forward(x));
  return add(x, mlp(hook(Layer::norm2, x, normed), hook), scale2, beside_mlp);
}

at::Tensor VitBlock::mlp(const at::Tensor& in, const Hook& hook) const {
  if (fc1.packed && fc2.packed && hook.adapter == nullptr && activation != Activation::swiglu)
    return packed_mlp(in, fc1.packed, fc2.packed, activation);
  const at::Tensor hidden = activate(hook(Layer::fc1, in, fc1.forward(in)), activation);
  return hook(Layer::fc2, hidden, fc2.forward(hidden));
}

at::Tensor VitBlock::attend(const at::Tensor& normed, int64_t rows, const Hook& hook) const {
  const int64_t batch = normed.size(0), tokens = normed.size(1), dim = normed.size(2);
  const bool pack = can_pack_attention(normed, dim / heads);
  if (rows == tokens) {
    const at::Tensor joined = hook(Layer::qkv, normed, qkv.forward(normed));  // [B, N, 3 D]
    if (pack) return packed_attention(joined, heads);
    const auto parts =
        joined.view({batch, tokens, 3, heads, dim / heads})
            .permute({2, 0, 3, 1, 4})
            .unbind(0);  // [B, H, N, d]; one node in the graph, where three selects would be three
    return attention(parts[0], parts[1], parts[2]);
  }
  at::Tensor q = qkv.forward_rows(normed.narrow(1, 0, rows), 0, dim);  // [B, M, D]
  at::Tensor kv = qkv.forward_rows(normed, dim, 2 * dim);              // [B, N, 2 D]
  if (hook.adapter != nullptr) {
    // It takes the whole output; the queries that are not asked for are zero.
    const at::Tensor joined = hook(
        Layer::qkv, normed, at::cat({at::constant_pad_nd(q, {0, 0, 0, tokens - rows}), kv}, 2));
    q = joined.narrow(1, 0, rows).narrow(2, 0, dim);
    kv = joined.narrow(2, dim, 2 * dim);
  }
  if (pack) return packed_attention(q, kv, heads);
  const auto parts = kv.view({batch, tokens, 2, heads, dim / heads})
                         .permute({2, 0, 3, 1, 4})
                         .unbind(0);  // [B, H, N, d]
  return attention(q.view({batch, rows, heads, dim / heads}).transpose(1, 2), parts[0], parts[1]);
}

/// x + dp(scale * branch) + what an adapter adds after and beside the branch, one pass over the
/// tokens for each summand.
at::Tensor VitBlock::add(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& scale,
                         const Beside& beside) const {
  at::Tensor factor = drop_path_factor(x, drop_rate, beside.pass);  // [B, 1, 1] or undefined
  if (const at::Tensor own = weight_for(x, scale); own.defined())
    factor = factor.defined() ? factor * own : own;
  Adapter::Residual residual{x, branch, beside.normed, beside.begun, drop_rate};
  if (!beside.acts() || beside.adds() || factor.defined() || !x.is_contiguous()) {
    residual.stream = factor.defined() ? at::addcmul(x, branch, factor) : x + branch;
    residual.branch = at::Tensor();
  }
  // In place: nothing has saved the sum yet.
  if (beside.adds())
    residual.stream.add_(beside.adapter->added(
        index, beside.site, x, factor.defined() ? branch * factor : branch, beside.pass));
  if (!beside.acts()) return residual.stream;
  return beside.adapter->add_beside(index, beside.site, residual, beside.layout, beside.pass);
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
