#include "models/packed_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>

#include "convpass/core/error.h"

namespace convpass {
namespace {

using kernels::Element;
using kernels::Finish;
using kernels::kPanel;
using PackedPtr = c10::intrusive_ptr<PackedLinear>;

/// Rows of `row_bytes` that a thread computes of a panel before it goes to the next: as many as
/// stay in its cache, but enough to make the panel worth loading, and few enough for all threads.
int64_t block_rows(int64_t rows, int64_t row_bytes, int64_t panels) {
  constexpr int64_t kCacheBytes = 1 << 20, kFewest = 192;
  const int64_t at_once = kernels::rows_at_once();
  const int64_t tasks = 4 * at::get_num_threads();
  const int64_t shared = rows * panels / tasks;
  const int64_t count = std::min(std::max(kFewest, kCacheBytes / row_bytes), shared);
  return std::max<int64_t>(1, count / at_once) * at_once;
}

int64_t value_bytes(Element element) { return element == Element::s8 ? 1 : 2; }
int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
int64_t panel_bytes(int64_t depth, Element element) {
  return depth * kPanel * value_bytes(element);
}

/// Where weight[k, n] lies among packed values.
int64_t place(int64_t k, int64_t n, int64_t depth, int64_t group) {
  return (n / kPanel) * depth * kPanel + (k / group) * kPanel * group + (n % kPanel) * group +
         k % group;
}

template <class Value>
at::Tensor pack(const std::function<Value(int64_t k, int64_t n)>& weight, int64_t depth,
                int64_t columns, Element element) {
  at::Tensor packed = at::zeros({panels_of(columns) * panel_bytes(depth, element)}, at::kByte);
  auto* to = static_cast<Value*>(packed.data_ptr());
  const int64_t group = group_of(element);
  at::parallel_for(0, panels_of(columns), 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin * kPanel; n < std::min(end * kPanel, columns); ++n)
      for (int64_t k = 0; k < depth; ++k) to[place(k, n, depth, group)] = weight(k, n);
  });
  return packed;
}

template <class Value>
at::Tensor transposed(const PackedLinear::Side& side, Element element) {
  const auto* from = static_cast<const Value*>(side.panels.const_data_ptr());
  return pack<Value>(
      [&](int64_t k, int64_t n) { return from[place(n, k, side.depth, group_of(element))]; },
      side.columns, side.depth, element);
}

}  // namespace

std::optional<std::string> PackedLinear::unsupported(Precision precision) {
  if (precision == Precision::f32) return "float32 is not packed";
  if (!kernels::supported()) return "this CPU has no AVX512_VNNI and AVX512_BF16";
  return std::nullopt;
}

bool PackedLinear::fits(const at::Tensor& weight) {
  return weight.is_cpu() && weight.size(0) % 4 == 0 && weight.size(1) % 4 == 0;
}

PackedLinear::PackedLinear(const at::Tensor& weight, const at::Tensor& bias, Precision precision)
    : element_(precision == Precision::int8 ? Element::s8 : Element::bf16),
      out_(weight.size(0)),
      in_(weight.size(1)) {
  if (bias.defined()) bias_ = bias.to(at::kFloat).contiguous();
  forward_.depth = in_;
  forward_.columns = out_;
  if (element_ == Element::bf16) {
    const at::Tensor plain = weight.to(at::kBFloat16).contiguous();
    const auto* from = plain.const_data_ptr<at::BFloat16>();
    forward_.panels = pack<at::BFloat16>([&](int64_t k, int64_t n) { return from[n * in_ + k]; },
                                         in_, out_, element_);
    return;
  }
  const at::Tensor plain = weight.to(at::kFloat);
  forward_.column_scale = plain.abs().amax(1).clamp_min(1e-30).div(127).contiguous();
  const at::Tensor whole =
      plain.div(forward_.column_scale.unsqueeze(1)).round_().clamp_(-127, 127).to(at::kChar);
  const auto* from = whole.const_data_ptr<int8_t>();
  forward_.panels =
      pack<int8_t>([&](int64_t k, int64_t n) { return from[n * in_ + k]; }, in_, out_, element_);
}

PackedLinear::Side& PackedLinear::backward() const {
  std::call_once(backward_made_, [&] {
    backward_.depth = out_;
    backward_.columns = in_;
    if (element_ == Element::bf16) {
      backward_.panels = transposed<at::BFloat16>(forward_, element_);
      return;
    }
    backward_.panels = transposed<int8_t>(forward_, element_);
    backward_.input_factor = forward_.column_scale;
  });
  return backward_;
}

at::Tensor PackedLinear::column_offset(Side& side, int64_t first, int64_t count) const {
  const std::lock_guard lock(offsets_mutex_);
  at::Tensor& sums = side.column_offsets[{first, count}];
  if (sums.defined()) return sums;
  sums = at::zeros({side.columns}, at::kInt);
  const auto* from = static_cast<const int8_t*>(side.panels.const_data_ptr());
  auto* to = sums.mutable_data_ptr<int32_t>();
  const int64_t group = group_of(Element::s8);
  at::parallel_for(0, side.columns, kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t k = first; k < first + count; k += group) {
        const int8_t* four = from + place(k, n, side.depth, group);
        to[n] += 128 * (four[0] + four[1] + four[2] + four[3]);
      }
  });
  return sums;
}

at::Tensor PackedLinear::run(Side& side, const at::Tensor& input, int64_t first_group,
                             int64_t first_panel, int64_t columns, bool with_bias,
                             const Finishing& finishing) const {
  const int64_t rows = input.size(0), depth = input.size(1);
  TORCH_CHECK(input.scalar_type() == at::kBFloat16 && input.stride(1) == 1, "input ",
              input.sizes());
  at::Tensor out = at::empty({rows, columns}, at::kBFloat16);
  if (rows == 0) return out;
  kernels::Product product;
  product.element = element_;
  product.rows = rows;
  product.columns = columns;
  product.depth = depth;
  const auto* values = reinterpret_cast<const uint16_t*>(input.const_data_ptr());
  product.input = values;
  product.input_stride = input.stride(0) * 2;
  product.weight_stride = panel_bytes(side.depth, element_);
  product.weight = side.panels.const_data_ptr<uint8_t>() + first_panel * product.weight_stride +
                   first_group * kPanel * 4;
  if (with_bias && bias_.defined())
    product.bias = bias_.const_data_ptr<float>() + first_panel * kPanel;
  product.out = reinterpret_cast<uint16_t*>(out.mutable_data_ptr());
  product.out_stride = columns;
  product.finish = finishing.finish;
  if (finishing.slope.defined()) product.slope = finishing.slope.mutable_data_ptr<uint8_t>();

  at::Tensor quantised, scales, offset;
  if (element_ == Element::s8) {
    quantised = at::empty({rows, depth}, at::kByte);
    scales = at::empty({rows}, at::kFloat);
    const float* factor = side.input_factor.defined()
                              ? side.input_factor.const_data_ptr<float>() + first_group * 4
                              : nullptr;
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      kernels::quantise_rows(values + begin * input.stride(0), end - begin, depth, input.stride(0),
                             factor, quantised.mutable_data_ptr<uint8_t>() + begin * depth,
                             scales.mutable_data_ptr<float>() + begin);
    });
    product.input = quantised.const_data_ptr();
    product.input_stride = depth;
    product.row_scale = scales.const_data_ptr<float>();
    if (side.column_scale.defined())
      product.column_scale = side.column_scale.const_data_ptr<float>() + first_panel * kPanel;
    offset = column_offset(side, first_group * 4, depth);
    product.column_offset = offset.const_data_ptr<int32_t>() + first_panel * kPanel;
  }

  // Block by block, so that its inputs are read from the cache for each panel of weights. Threads
  // take what is next instead of equal shares: they are not equally fast.
  const int64_t panels = panels_of(columns),
                block = block_rows(rows, depth * value_bytes(element_), panels);
  const int64_t tasks = (rows + block - 1) / block * panels;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), tasks), 1, [&](int64_t, int64_t) {
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      const int64_t first = task / panels * block;
      kernels::multiply(product, task % panels, first, std::min(first + block, rows));
    }
  });
  return out;
}

at::Tensor PackedLinear::multiply(const at::Tensor& input, const Finishing& finishing) const {
  return run(forward_, input, 0, 0, out_, true, finishing);
}

at::Tensor PackedLinear::multiply_back(const at::Tensor& grad, const Finishing& finishing) const {
  return run(backward(), grad, 0, 0, in_, false, finishing);
}

at::Tensor PackedLinear::multiply_rows(const at::Tensor& input, int64_t first,
                                       int64_t count) const {
  const int64_t panel = first / kPanel, extra = first - panel * kPanel;
  const at::Tensor out = run(forward_, input, 0, panel, extra + count, true, {});
  return extra == 0 ? out : out.narrow(1, extra, count);
}

at::Tensor PackedLinear::multiply_back_rows(const at::Tensor& grad, int64_t first,
                                            int64_t count) const {
  const int64_t group = group_of(element_);
  TORCH_CHECK(first % group == 0 && count % group == 0, "channels ", first, " and ", count,
              " are no whole groups");
  return run(backward(), grad, first / group, 0, in_, false, {});
}

namespace {

at::Tensor rows_of(const at::Tensor& tensor) {
  const at::Tensor rows = tensor.reshape({-1, tensor.size(-1)});
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

std::vector<int64_t> with_last(const at::Tensor& tensor, int64_t last) {
  std::vector<int64_t> sizes = tensor.sizes().vec();
  sizes.back() = last;
  return sizes;
}

bool tracks(const at::Tensor& input) { return at::GradMode::is_enabled() && input.requires_grad(); }

PackedPtr layer_of(const torch::autograd::AutogradContext* context, const char* name) {
  return c10::static_intrusive_pointer_cast<PackedLinear>(context->saved_data.at(name).toCapsule());
}

struct Dense : torch::autograd::Function<Dense> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const PackedPtr& layer, int64_t first, int64_t count) {
    context->saved_data["layer"] = c10::IValue::make_capsule(layer);
    context->saved_data["first"] = first;
    context->saved_data["count"] = count;
    return layer->multiply_rows(rows_of(input), first, count).reshape(with_last(input, count));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor& grad = grads[0];
    const PackedPtr layer = layer_of(context, "layer");
    const at::Tensor input_grad =
        layer->multiply_back_rows(rows_of(grad), context->saved_data.at("first").toInt(),
                                  context->saved_data.at("count").toInt());
    return {input_grad.reshape(with_last(grad, layer->in())), {}, {}, {}};
  }
};

Finish finish_of(Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return Finish::gelu;
    case Activation::gelu_tanh:
      return Finish::gelu_tanh;
    case Activation::quick_gelu:
      return Finish::quick_gelu;
    case Activation::swiglu:
      break;
  }
  TORCH_CHECK(false, "not an activation of one input");
}

struct Mlp : torch::autograd::Function<Mlp> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const PackedPtr& fc1, const PackedPtr& fc2, Activation activation) {
    const at::Tensor rows = rows_of(x);
    const at::Tensor slope = at::empty({rows.size(0), fc1->out()}, at::kByte);
    context->save_for_backward({slope});
    context->saved_data["fc1"] = c10::IValue::make_capsule(fc1);
    context->saved_data["fc2"] = c10::IValue::make_capsule(fc2);
    return fc2->multiply(fc1->multiply(rows, {finish_of(activation), slope}), {})
        .view(with_last(x, fc2->out()));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const at::Tensor slope = context->get_saved_variables()[0];
    const PackedPtr fc1 = layer_of(context, "fc1"), fc2 = layer_of(context, "fc2");
    const at::Tensor hidden = fc2->multiply_back(rows_of(grads[0]), {Finish::slope, slope});
    return {fc1->multiply_back(hidden, {}).view(with_last(grads[0], fc1->in())), {}, {}, {}};
  }
};

}  // namespace

at::Tensor PackedLinear::forward(const at::Tensor& input, int64_t first, int64_t count) const {
  if (!tracks(input))
    return multiply_rows(rows_of(input), first, count).reshape(with_last(input, count));
  const auto self = c10::intrusive_ptr<PackedLinear>::reclaim_copy(const_cast<PackedLinear*>(this));
  return Dense::apply(input, self, first, count);
}

at::Tensor packed_mlp(const at::Tensor& x, const PackedPtr& fc1, const PackedPtr& fc2,
                      Activation activation) {
  if (tracks(x)) return Mlp::apply(x, fc1, fc2, activation);
  const at::Tensor hidden = fc1->multiply(rows_of(x), {finish_of(activation), {}});
  return fc2->multiply(hidden, {}).view(with_last(x, fc2->out()));
}

int64_t PackedLinear::values() const { return out_ * in_ + (bias_.defined() ? out_ : 0); }

int64_t PackedLinear::bytes() const {
  int64_t total = 0;
  for (const Side& side : {forward_, backward_})
    for (const at::Tensor& tensor : {side.panels, side.column_scale, side.input_factor})
      if (tensor.defined()) total += static_cast<int64_t>(tensor.nbytes());
  return total;
}

}  // namespace convpass
