#include "adapters/fused_bypass.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "adapters/bypass_kernels.h"

namespace convpass {
namespace {

using kernels::BypassGradients;
using kernels::BypassPlan;
using kernels::BypassScratch;
using kernels::BypassShape;
using kernels::BypassState;
using kernels::BypassWeights;
using kernels::Instructions;
using kernels::Projection;
using kernels::ResidualSum;

Instructions instructions_for(at::ScalarType type) {
  return type == at::kFloat ? kernels::best_instructions<float>()
                            : kernels::best_instructions<uint16_t>();
}

const float* data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

/// A projection `[h, D]` as the kernels read it for one direction.
class Prepared {
 public:
  enum class To { hidden, tokens };
  Prepared(const at::Tensor& rows, const at::Tensor& bias, To to, Instructions instructions)
      : rows_(rows.contiguous()), bias_(bias.defined() ? bias.contiguous() : bias) {
    if (instructions == Instructions::any) return;
    if (to == To::hidden) {
      halves_ = rows_.to(at::kBFloat16);
      return;
    }
    const at::Tensor even =
        rows.size(0) % 2 == 0 ? rows_ : at::constant_pad_nd(rows_, {0, 0, 0, 1});
    pairs_ = even.view({-1, 2, rows.size(1)}).to(at::kBFloat16).transpose(1, 2).contiguous();
  }
  Projection view() const {
    Projection projection{.rows = data(rows_), .bias = data(bias_)};
    if (halves_.defined())
      projection.halves = static_cast<const uint16_t*>(halves_.const_data_ptr());
    if (pairs_.defined()) projection.pairs = static_cast<const uint32_t*>(pairs_.const_data_ptr());
    return projection;
  }

 private:
  at::Tensor rows_, bias_, halves_, pairs_;
};

/// Tokens whose rows are dense within an image; images may lie anywhere.
at::Tensor dense_rows(const at::Tensor& tokens) {
  return tokens.stride(2) == 1 && tokens.stride(1) == tokens.size(2) ? tokens : tokens.contiguous();
}

template <class Element>
Element* image_of(const at::Tensor& tokens, int64_t image) {
  if (!tokens.defined()) return nullptr;
  return static_cast<Element*>(const_cast<void*>(tokens.const_data_ptr())) +
         image * tokens.stride(0);
}

/// Calls `work(image, scratch, Element{})` for each image of `tokens`, on all threads.
template <class Work>
void each_image(const at::Tensor& tokens, const Work& work) {
  at::parallel_for(0, tokens.size(0), 1, [&](int64_t begin, int64_t end) {
    BypassScratch scratch;
    for (int64_t image = begin; image < end; ++image)
      if (tokens.scalar_type() == at::kFloat)
        work(image, scratch, float{});
      else
        work(image, scratch, uint16_t{});
  });
}

/// The gradient of a parameter, each image's share by itself: their sum is the same for any number
/// of threads.
struct Shares {
  Shares(int64_t images, std::vector<int64_t> sizes) {
    sizes.insert(sizes.begin(), images);
    all = at::empty(sizes, at::kFloat);
  }
  float* of(int64_t image) const { return all.mutable_data_ptr<float>() + image * all.stride(0); }
  at::Tensor sum() const { return all.sum(0); }
  at::Tensor all;
};

BypassShape shape_of(const TokenLayout& layout, int64_t dim, int64_t hidden) {
  return {.prefix = layout.prefix,
          .height = layout.height,
          .width = layout.width,
          .dim = dim,
          .hidden = hidden};
}

void keep_layout(torch::autograd::AutogradContext* context, const TokenLayout& layout) {
  context->saved_data["layout"] = std::vector<int64_t>{layout.prefix, layout.height, layout.width};
}
TokenLayout kept_layout(const torch::autograd::AutogradContext* context) {
  const std::vector<int64_t> kept = context->saved_data.at("layout").toIntVector();
  return {.prefix = kept[0], .height = kept[1], .width = kept[2]};
}

/// Itself where nothing else holds it, which is when autograd adds gradients up in place, too; else
/// a copy.
at::Tensor writable(at::Tensor grad) {
  const bool sole = !at::GradMode::is_enabled() && grad.use_count() == 1 && grad.has_storage() &&
                    grad.storage().use_count() == 1;
  return sole && grad.is_contiguous() ? grad : grad.clone(at::MemoryFormat::Contiguous);
}

/// What goes into the first activation, `[B, h, plane]`.
at::Tensor begin(const at::Tensor& normed, const BypassBegin& parameters,
                 const TokenLayout& layout) {
  const Instructions instructions = instructions_for(normed.scalar_type());
  const Prepared down(parameters.down_weight, parameters.down_bias, Prepared::To::hidden,
                      instructions);
  const BypassPlan plan(shape_of(layout, normed.size(2), parameters.down_weight.size(0)),
                        BypassWeights{.down = down.view()}, instructions);
  at::Tensor before =
      at::empty({normed.size(0), plan.shape.hidden, plan.shape.plane()}, at::kFloat);
  each_image(normed, [&](int64_t image, BypassScratch&, auto element) {
    kernels::bypass_down(plan, image_of<decltype(element)>(normed, image),
                         image_of<float>(before, image));
  });
  return before;
}

struct BeginBypass : torch::autograd::Function<BeginBypass> {
  /// {before, normed}, the latter where a gradient goes through it.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& normed,
                                                const at::Tensor& down_weight,
                                                const at::Tensor& down_bias,
                                                const TokenLayout& layout) {
    const at::Tensor dense = dense_rows(normed);
    context->save_for_backward({dense, down_weight});
    context->set_materialize_grads(false);
    keep_layout(context, layout);
    const at::Tensor before = begin(dense, {down_weight, down_bias}, layout);
    if (!normed.requires_grad()) return {before};
    return {before, normed};
  }

  /// The list is not a copy, so that `writable` counts no holder too many.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list& grads) {
    at::Tensor grad_normed = grads.size() > 1 ? std::move(grads[1]) : at::Tensor();
    if (!grads[0].defined()) return {grad_normed, {}, {}, {}};
    const auto saved = context->get_saved_variables();
    const at::Tensor &normed = saved[0], &down_weight = saved[1];
    if (grads.size() > 1)
      grad_normed = grad_normed.defined() ? writable(std::move(grad_normed))
                                          : at::zeros(normed.sizes(), normed.options());
    const Instructions instructions = instructions_for(normed.scalar_type());
    const Prepared down(down_weight, {}, Prepared::To::tokens, instructions);
    const int64_t images = normed.size(0), dim = normed.size(2), h = down_weight.size(0);
    const BypassPlan plan(shape_of(kept_layout(context), dim, h),
                          BypassWeights{.down = down.view()}, instructions);
    const at::Tensor before = grads[0].contiguous();
    const Shares weight(images, {h, dim}), bias(images, {h});
    each_image(normed, [&](int64_t image, BypassScratch& scratch, auto element) {
      using Element = decltype(element);
      kernels::bypass_down_back(plan, image_of<Element>(normed, image),
                                image_of<Element>(grad_normed, image),
                                BypassGradients{.down = weight.of(image),
                                                .down_bias = bias.of(image),
                                                .before_conv = image_of<float>(before, image)},
                                scratch);
    });
    return {grad_normed, weight.sum(), bias.sum(), {}};
  }
};

/// The weights of the rest as the kernels read them: forward to tokens, backward to hidden values.
class PreparedEnd {
 public:
  PreparedEnd(const BypassEnd& p, Prepared::To to, Instructions instructions)
      : taps_(p.conv_weight.permute({2, 3, 1, 0}).contiguous()),  // [3, 3, h in, h out]
        taps_bias_(p.conv_bias.contiguous()),
        up_((p.up_weight * p.scale).t(), p.up_bias * p.scale, to, instructions) {
    if (to == Prepared::To::hidden) taps_back_ = taps_.flip({0, 1}).transpose(2, 3).contiguous();
  }
  BypassWeights view() const {
    return {.up = up_.view(),
            .taps = data(taps_),
            .taps_bias = data(taps_bias_),
            .taps_back = data(taps_back_)};
  }

 private:
  at::Tensor taps_, taps_bias_, taps_back_;
  Prepared up_;
};

/// What else the rest reads and keeps, of all images.
struct EndState {
  at::Tensor before, after;  ///< [B, h, plane]
  BypassDraws draws;

  BypassState of(int64_t image) const {
    return {.before_conv = image_of<float>(before, image),
            .after_conv = image_of<float>(after, image),
            .dropout = image_of<float>(draws.dropout, image)};
  }
  float factor(int64_t image) const {
    return draws.depth.defined() ? data(draws.depth)[image] : 1.0f;
  }
};

/// The sum; fills state.after.
at::Tensor end(const at::Tensor& stream, const at::Tensor& branch, const BypassEnd& parameters,
               const TokenLayout& layout, const EndState& state) {
  const Instructions instructions = instructions_for(stream.scalar_type());
  const PreparedEnd weights(parameters, Prepared::To::tokens, instructions);
  const BypassPlan plan(shape_of(layout, stream.size(2), state.before.size(1)), weights.view(),
                        instructions);
  const at::Tensor dense = branch.defined() ? dense_rows(branch) : branch;
  at::Tensor sum = branch.defined() ? at::empty_like(stream) : stream;
  each_image(stream, [&](int64_t image, BypassScratch& scratch, auto element) {
    using Element = decltype(element);
    kernels::bypass_up(plan, state.of(image), state.factor(image),
                       ResidualSum<Element>{.stream = image_of<Element>(stream, image),
                                            .branch = image_of<Element>(dense, image),
                                            .sum = image_of<Element>(sum, image)},
                       scratch);
  });
  return sum;
}

struct EndBypass : torch::autograd::Function<EndBypass> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& stream,
                            const std::optional<at::Tensor>& branch, const at::Tensor& before,
                            const at::Tensor& conv_weight, const at::Tensor& conv_bias,
                            const at::Tensor& up_weight, const at::Tensor& up_bias, double scale,
                            const TokenLayout& layout, const BypassDraws& draws) {
    const EndState state{before, at::empty_like(before), draws};
    const at::Tensor sum = end(stream, branch.value_or(at::Tensor()),
                               {conv_weight, conv_bias, up_weight, up_bias, scale}, layout, state);
    context->save_for_backward({before, state.after, conv_weight, conv_bias, up_weight, up_bias,
                                draws.dropout, draws.depth});
    context->saved_data["scale"] = scale;
    context->saved_data["branch"] = branch.has_value();
    keep_layout(context, layout);
    if (!branch.has_value()) context->mark_dirty({stream});
    return sum;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const double scale = context->saved_data.at("scale").toDouble();
    const EndState state{saved[0], saved[1], {saved[6], saved[7]}};
    const at::Tensor grad_sum = dense_rows(grads[0]);
    const Instructions instructions = instructions_for(grad_sum.scalar_type());
    const PreparedEnd weights({saved[2], saved[3], saved[4], saved[5], scale}, Prepared::To::hidden,
                              instructions);
    const int64_t images = grad_sum.size(0), dim = grad_sum.size(2), h = state.before.size(1);
    const BypassPlan plan(shape_of(kept_layout(context), dim, h), weights.view(), instructions);
    const at::Tensor before = at::empty_like(state.before);
    const Shares taps(images, {3, 3, h, h}), taps_bias(images, {h}), up(images, {h, dim}),
        up_bias(images, {dim});
    each_image(grad_sum, [&](int64_t image, BypassScratch& scratch, auto element) {
      kernels::bypass_up_back(plan, state.of(image), state.factor(image),
                              image_of<decltype(element)>(grad_sum, image),
                              BypassGradients{.taps = taps.of(image),
                                              .taps_bias = taps_bias.of(image),
                                              .up = up.of(image),
                                              .up_bias = up_bias.of(image),
                                              .before_conv = image_of<float>(before, image)},
                              scratch);
    });
    const bool branch = context->saved_data.at("branch").toBool();
    return {grads[0],
            branch ? grads[0] : at::Tensor(),
            before,
            taps.sum().permute({3, 2, 0, 1}).contiguous(),
            taps_bias.sum(),
            up.sum().t().mul(scale).contiguous(),
            up_bias.sum().mul(scale),
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

at::Tensor begin_fused_bypass(at::Tensor& normed, const BypassBegin& p, const TokenLayout& layout) {
  TORCH_CHECK(normed.size(1) >= layout.tokens(), "tokens ", normed.sizes(),
              " do not fit the layout");
  if (!at::GradMode::is_enabled() || !(normed.requires_grad() || p.down_weight.requires_grad()))
    return begin(dense_rows(normed), p, layout);
  const torch::autograd::variable_list outputs =
      BeginBypass::apply(normed, p.down_weight, p.down_bias, layout);
  if (outputs.size() > 1) normed = outputs[1];
  return outputs[0];
}

at::Tensor end_fused_bypass(const Adapter::Residual& residual, const BypassEnd& p,
                            const TokenLayout& layout, const BypassDraws& draws) {
  const at::Tensor &stream = residual.stream, &branch = residual.branch, &before = residual.begun;
  TORCH_CHECK(stream.is_contiguous() && stream.size(1) == layout.tokens(), "a stream ",
              stream.sizes(), " that is not dense or does not fit the layout");
  if (at::GradMode::is_enabled() && before.requires_grad()) {
    const auto added = branch.defined() ? std::make_optional(branch) : std::nullopt;
    return EndBypass::apply(stream, added, before, p.conv_weight, p.conv_bias, p.up_weight,
                            p.up_bias, p.scale, layout, draws);
  }
  return end(stream, branch, p, layout, {before, at::empty_like(before), draws});
}

}  // namespace convpass
