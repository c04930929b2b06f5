#include "models/packed_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "models/attention_kernels.h"
#include "models/gemm_kernels.h"

namespace convpass {
namespace {

using kernels::Rows;

/// Where queries, keys and values lie: in one tensor `[B, N, 3 H d]`, or in two.
struct Layout {
  int64_t batch, queries, keys, heads, dim;
  int64_t key_part, value_part;  ///< which of the parts of width H d in a row of the keys' tensor

  Layout(const at::Tensor& q, const at::Tensor& kv, int64_t head_count)
      : batch(q.size(0)), queries(q.size(1)), heads(head_count) {
    const bool together = !kv.defined();
    keys = together ? queries : kv.size(1);
    dim = q.size(2) / heads / (together ? 3 : 1);
    key_part = together ? 1 : 0;
    value_part = key_part + 1;
  }
  /// Rows of one head in part `part` of a contiguous tensor `[B, N, parts H d]`.
  Rows rows(const at::Tensor& tensor, int64_t image, int64_t part, int64_t head) const {
    const int64_t stride = tensor.size(2);
    auto* data = static_cast<uint16_t*>(const_cast<void*>(tensor.const_data_ptr()));
    return {data + image * tensor.size(1) * stride + (part * heads + head) * dim, stride};
  }
  kernels::AttentionHead head(const at::Tensor& q, const at::Tensor& kv, int64_t image,
                              int64_t index) const {
    const at::Tensor& from = kv.defined() ? kv : q;
    return {.queries = queries,
            .keys = keys,
            .dim = dim,
            .scale = 1 / std::sqrt(static_cast<float>(dim)),
            .q = rows(q, image, 0, index),
            .k = rows(from, image, key_part, index),
            .v = rows(from, image, value_part, index)};
  }
  template <class Work>
  void each_head(const Work& work) const {
    at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
      kernels::Scratch scratch;
      for (int64_t i = begin; i < end; ++i) work(i / heads, i % heads, scratch);
    });
  }
};

at::Tensor attend(const at::Tensor& q, const at::Tensor& kv, int64_t heads) {
  const Layout layout(q, kv, heads);
  at::Tensor out = at::empty({layout.batch, layout.queries, heads * layout.dim}, q.options());
  layout.each_head([&](int64_t image, int64_t head, kernels::Scratch& scratch) {
    kernels::attend(layout.head(q, kv, image, head), layout.rows(out, image, 0, head), scratch);
  });
  return out;
}

struct Attention : torch::autograd::Function<Attention> {
  /// An undefined tensor may not be an argument: `kv` is the same tensor as `q` in its place.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q,
                            const at::Tensor& same_or_kv, int64_t heads) {
    const at::Tensor kv = same_or_kv.is_same(q) ? at::Tensor() : same_or_kv;
    context->save_for_backward({q, kv});
    context->saved_data["heads"] = heads;
    return attend(q, kv, heads);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &kv = saved[1];
    const Layout layout(q, kv, context->saved_data.at("heads").toInt());
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_q = at::empty_like(q), grad_kv = kv.defined() ? at::empty_like(kv) : kv;
    const at::Tensor& grad_from = kv.defined() ? grad_kv : grad_q;
    layout.each_head([&](int64_t image, int64_t head, kernels::Scratch& scratch) {
      kernels::attend_back(layout.head(q, kv, image, head),
                           {.out = layout.rows(grad, image, 0, head),
                            .q = layout.rows(grad_q, image, 0, head),
                            .k = layout.rows(grad_from, image, layout.key_part, head),
                            .v = layout.rows(grad_from, image, layout.value_part, head)},
                           scratch);
    });
    return {grad_q, grad_kv, {}};
  }
};

at::Tensor dispatch(const at::Tensor& q, const at::Tensor& kv, int64_t heads) {
  const bool tracks =
      at::GradMode::is_enabled() && (q.requires_grad() || (kv.defined() && kv.requires_grad()));
  return tracks ? Attention::apply(q, kv.defined() ? kv : q, heads) : attend(q, kv, heads);
}

}  // namespace

bool can_pack_attention(const at::Tensor& tokens, int64_t head_dim) {
  return tokens.is_cpu() && tokens.scalar_type() == at::kBFloat16 && head_dim % 2 == 0 &&
         kernels::supported();
}

at::Tensor packed_attention(const at::Tensor& qkv, int64_t heads) {
  return dispatch(qkv.contiguous(), {}, heads);
}

at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& kv, int64_t heads) {
  return dispatch(q.contiguous(), kv.contiguous(), heads);
}

}  // namespace convpass
