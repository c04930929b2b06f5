#include "models/recompute.h"

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

namespace convpass {
namespace {

/// What the backward pass needs to run the work again.
struct Again : torch::CustomClassHolder {
  Again(BlockWork what, const Pass& with) : work(std::move(what)) {
    if (with.random) pass.random = with.random->clone();
  }
  BlockWork work;
  Pass pass;  ///< its generator where it stood before the work
};

struct Recomputed : torch::autograd::Function<Recomputed> {
  /// `anchor` requires a gradient, so that the result does though x may not: what `work` trains
  /// gets its gradient on the way.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& /*anchor*/, const c10::intrusive_ptr<Again>& again,
                            const Pass& pass) {
    context->save_for_backward({x});
    context->saved_data["again"] = c10::IValue::make_capsule(again);
    context->saved_data["through"] = x.requires_grad();
    return again->work(x, pass);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto again =
        c10::static_intrusive_pointer_cast<Again>(context->saved_data.at("again").toCapsule());
    const bool through = context->saved_data.at("through").toBool();
    const at::Tensor x = context->get_saved_variables()[0].detach().set_requires_grad(through);
    {
      at::AutoGradMode enable(true);
      Pass pass;
      if (again->pass.random) pass.random = again->pass.random->clone();
      const at::Tensor out = again->work(x, pass);
      if (out.requires_grad()) torch::autograd::backward({out}, {grads[0]});
    }
    return {through ? x.grad() : at::Tensor(), {}, {}, {}};
  }
};

}  // namespace

at::Tensor recomputed(const at::Tensor& x, const Pass& pass, BlockWork work) {
  if (!at::GradMode::is_enabled()) return work(x, pass);
  const at::Tensor anchor = at::zeros({1}, at::kFloat).set_requires_grad(true);
  return Recomputed::apply(x, anchor, c10::make_intrusive<Again>(std::move(work), pass), pass);
}

}  // namespace convpass
