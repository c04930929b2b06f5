#include "adapters/fused_bypass.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "adapters/bypass_kernels.h"

namespace convpass {
namespace {

using kernels::BypassGradients;
using kernels::BypassShape;
using kernels::BypassState;
using kernels::BypassWeights;

/// The parameters as the kernels read them.
struct Prepared {
  at::Tensor down, down_bias, taps, taps_bias, up, up_bias;

  Prepared(const BypassParameters& p, double scale)
      : down(p.down_weight.contiguous()),
        down_bias(p.down_bias.contiguous()),
        taps(p.conv_weight.permute({2, 3, 1, 0}).contiguous()),  // [3, 3, h in, h out]
        taps_bias(p.conv_bias.contiguous()),
        up((p.up_weight * scale).t().contiguous()),  // [h, D]
        up_bias((p.up_bias * scale).contiguous()) {}
  BypassWeights view() const {
    auto data = [](const at::Tensor& tensor) { return tensor.const_data_ptr<float>(); };
    return {data(down), data(down_bias), data(taps), data(taps_bias), data(up), data(up_bias)};
  }
};

/// The tensors of one call that both directions read.
struct Call {
  BypassShape shape;
  at::Tensor normed, before_conv, after_conv, dropout, depth;

  int64_t images() const { return normed.size(0); }
  float factor(int64_t image) const {
    return depth.defined() ? depth.const_data_ptr<float>()[image] : 1.0f;
  }
  BypassState state(int64_t image) const {
    const int64_t at = image * shape.tokens() * shape.hidden;
    return {before_conv.mutable_data_ptr<float>() + at, after_conv.mutable_data_ptr<float>() + at,
            dropout.defined() ? dropout.const_data_ptr<float>() + at : nullptr};
  }
};

/// Rows of an image must be dense; images may lie anywhere.
at::Tensor dense_rows(const at::Tensor& tokens) {
  return tokens.stride(2) == 1 && tokens.stride(1) == tokens.size(2) ? tokens : tokens.contiguous();
}

template <class Element>
Element* image_of(const at::Tensor& tokens, int64_t image) {
  return static_cast<Element*>(const_cast<void*>(tokens.const_data_ptr())) +
         image * tokens.stride(0);
}

template <class Work>
void each_image(const at::Tensor& normed, const Work& work) {
  at::parallel_for(0, normed.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image)
      if (normed.scalar_type() == at::kFloat)
        work(image, float{});
      else
        work(image, uint16_t{});
  });
}

void forward(const Call& call, const Prepared& prepared, const at::Tensor& sum) {
  const BypassWeights weights = prepared.view();
  each_image(call.normed, [&](int64_t image, auto element) {
    using Element = decltype(element);
    kernels::bypass<Element>(call.shape, weights, image_of<Element>(call.normed, image),
                             call.factor(image), call.state(image), image_of<Element>(sum, image));
  });
}

Call prepare_call(const at::Tensor& normed, const BypassParameters& parameters,
                  const TokenLayout& layout, const BypassDraws& draws) {
  Call call;
  call.shape = {.prefix = layout.prefix,
                .height = layout.height,
                .width = layout.width,
                .dim = normed.size(2),
                .hidden = parameters.down_weight.size(0)};
  call.normed = dense_rows(normed);
  call.before_conv = at::empty({normed.size(0), normed.size(1), call.shape.hidden}, at::kFloat);
  call.after_conv = at::empty_like(call.before_conv);
  call.dropout = draws.dropout;
  call.depth = draws.depth;
  return call;
}

struct FusedBypass : torch::autograd::Function<FusedBypass> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& sum,
                            const at::Tensor& normed, const at::Tensor& down_weight,
                            const at::Tensor& down_bias, const at::Tensor& conv_weight,
                            const at::Tensor& conv_bias, const at::Tensor& up_weight,
                            const at::Tensor& up_bias, double scale, const TokenLayout& layout,
                            const BypassDraws& draws) {
    const BypassParameters parameters{down_weight, down_bias, conv_weight,
                                      conv_bias,   up_weight, up_bias};
    const Call call = prepare_call(normed, parameters, layout, draws);
    convpass::forward(call, Prepared(parameters, scale), sum);
    context->save_for_backward({call.normed, down_weight, down_bias, conv_weight, conv_bias,
                                up_weight, up_bias, call.before_conv, call.after_conv,
                                draws.dropout, draws.depth});
    context->saved_data["scale"] = scale;
    context->saved_data["grid"] = std::vector<int64_t>{layout.prefix, layout.height, layout.width};
    context->saved_data["through"] = normed.requires_grad();
    context->mark_dirty({sum});
    return sum;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const BypassParameters parameters{saved[1], saved[2], saved[3], saved[4], saved[5], saved[6]};
    const double scale = context->saved_data.at("scale").toDouble();
    const std::vector<int64_t> grid = context->saved_data.at("grid").toIntVector();
    Call call;
    call.shape = {.prefix = grid[0],
                  .height = grid[1],
                  .width = grid[2],
                  .dim = saved[0].size(2),
                  .hidden = parameters.down_weight.size(0)};
    call.normed = saved[0];
    call.before_conv = saved[7];
    call.after_conv = saved[8];
    call.dropout = saved[9];
    call.depth = saved[10];

    const Prepared prepared(parameters, scale);
    const BypassWeights weights = prepared.view();
    const at::Tensor grad_sum = dense_rows(grads[0]);
    at::Tensor grad_normed;
    if (context->saved_data.at("through").toBool())
      grad_normed = at::empty(call.normed.sizes(), call.normed.options());
    // Each image's share by itself, added up afterwards: the same sum for any number of threads.
    const int64_t dim = call.shape.dim, h = call.shape.hidden;
    auto shares = [&](at::IntArrayRef shape) {
      std::vector<int64_t> sizes{call.images()};
      sizes.insert(sizes.end(), shape.begin(), shape.end());
      return at::empty(sizes, at::kFloat);
    };
    const at::Tensor down = shares({h, dim}), down_bias = shares({h}), taps = shares({3, 3, h, h}),
                     taps_bias = shares({h}), up = shares({h, dim}), up_bias = shares({dim});
    each_image(call.normed, [&](int64_t image, auto element) {
      using Element = decltype(element);
      auto share = [&](const at::Tensor& all) {
        return all.mutable_data_ptr<float>() + image * all.stride(0);
      };
      kernels::bypass_back<Element>(
          call.shape, weights, image_of<Element>(call.normed, image), call.factor(image),
          call.state(image), image_of<Element>(grad_sum, image),
          grad_normed.defined() ? image_of<Element>(grad_normed, image) : nullptr,
          BypassGradients{share(down), share(down_bias), share(taps), share(taps_bias), share(up),
                          share(up_bias)});
    });
    return {grads[0],
            grad_normed,
            down.sum(0),
            down_bias.sum(0),
            taps.sum(0).permute({3, 2, 0, 1}).contiguous(),
            taps_bias.sum(0),
            up.sum(0).t().mul(scale).contiguous(),
            up_bias.sum(0).mul(scale),
            {},
            {},
            {}};
  }
};

}  // namespace

bool can_fuse_bypass(const at::Tensor& normed) {
  return normed.is_cpu() && normed.size(2) % 16 == 0 &&
         (normed.scalar_type() == at::kFloat || normed.scalar_type() == at::kBFloat16);
}

at::Tensor add_fused_bypass(const at::Tensor& sum, const at::Tensor& normed,
                            const BypassParameters& p, double scale, const TokenLayout& layout,
                            const BypassDraws& draws) {
  TORCH_CHECK(sum.is_contiguous(), "a sum that is not dense");
  if (at::GradMode::is_enabled() && (normed.requires_grad() || p.down_weight.requires_grad()))
    return FusedBypass::apply(sum, normed, p.down_weight, p.down_bias, p.conv_weight, p.conv_bias,
                              p.up_weight, p.up_bias, scale, layout, draws);
  forward(prepare_call(normed, p, layout, draws), Prepared(p, scale), sum);
  return sum;
}

}  // namespace convpass
