#include "convpass/models/bit_resnet.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <limits>

#include "convpass/core/error.h"
#include "convpass/models/layers.h"
#include "models/bit_shapes.h"
#include "models/taker.h"

namespace convpass {
namespace {

/// Zero mean and unit (biased) variance of every filter `[I, H, W]` of a kernel `[O, I, H, W]`,
/// which is what a LayerNorm over a filter computes.
at::Tensor standardize(const at::Tensor& kernel, double eps) {
  const at::Tensor rows = kernel.flatten(1);
  return at::layer_norm(rows, {rows.size(1)}, {}, {}, eps).view(kernel.sizes());
}

/// `[1, 1, H, W]`: zero where a window of the root's pooling hangs over the border of an input of
/// `height` x `width`, minus infinity elsewhere.
at::Tensor border(int64_t height, int64_t width, const at::Tensor& pooled) {
  at::Tensor out = at::full({1, 1, pooled.size(2), pooled.size(3)},
                            -std::numeric_limits<double>::infinity(), pooled.options());
  for (const auto& [axis, length] : {std::pair{2, height}, {3, width}}) {
    out.select(axis, 0).fill_(0);
    if (length % 2 == 1) out.select(axis, -1).fill_(0);
  }
  return out;
}

int64_t halved(int64_t side) { return (side + 1) / 2; }

}  // namespace

BitResnet::BitResnet(const BitConfig& config, const TensorMap& weights, const Options& options)
    : config_(config), options_(options) {
  check(config);
  for (int64_t side : options.image_size)
    if (side <= 0)
      throw Error("backbone: image size " + std::to_string(options.image_size[0]) + "x" +
                  std::to_string(options.image_size[1]) + ": wanted positive numbers");
  const auto shapes = bit_shapes(config);
  Taker taker(weights);
  for (size_t stage = 0; stage < config.units.size(); ++stage)
    for (int64_t i = 0; i < config.units[stage]; ++i)
      units_.emplace_back().stride = stage > 0 && i == 0 ? 2 : 1;
  visit([&](const std::string& name, at::Tensor& tensor, bool) {
    if (auto shape = shapes.find(name); shape != shapes.end())
      tensor = taker.take(name, shape->second);
  });
  taker.expect_all_taken();
}

at::Tensor BitResnet::kernel(const at::Tensor& weight) const {
  return standardized_ ? weight : standardize(weight, config_.standardization_eps).to(dtype_);
}

at::Tensor BitResnet::root(const at::Tensor& images) const {
  // Channels last: the CPU's convolutions and GroupNorm are faster in it.
  const at::Tensor x =
      at::conv2d(images.to(dtype_).contiguous(at::MemoryFormat::ChannelsLast), kernel(root_), {},
                 /*stride=*/2, /*padding=*/3);
  at::Tensor pooled = at::max_pool2d(x, /*kernel_size=*/3, /*stride=*/2, /*padding=*/1);
  // A zero around the input is a zero among those of which a window at the border is the maximum.
  if (config_.pool_padding == PoolPadding::zero)
    pooled = at::maximum(pooled, border(x.size(2), x.size(3), pooled));
  return pooled;  // [B, C, H / 4, W / 4]
}

at::Tensor BitResnet::normalize(const at::Tensor& input, const Norm& norm) const {
  // In place: GroupNorm saves its input alone.
  return at::group_norm(input, config_.groups, weight_for(input, norm.weight),
                        weight_for(input, norm.bias), config_.eps)
      .relu_();
}

at::Tensor BitResnet::forward_unit(const at::Tensor& input, const Unit& unit) const {
  at::Tensor x = normalize(input, unit.norm1);
  const at::Tensor shortcut =
      unit.downsample.defined() ? at::conv2d(x, kernel(unit.downsample), {}, unit.stride) : input;
  x = at::conv2d(x, kernel(unit.conv1));
  x = at::conv2d(normalize(x, unit.norm2), kernel(unit.conv2), {}, unit.stride, /*padding=*/1);
  x = at::conv2d(normalize(x, unit.norm3), kernel(unit.conv3));
  return x.add_(shortcut);
}

at::Tensor BitResnet::forward(const at::Tensor& images, const Adapter* adapter, const Pass&) const {
  TORCH_CHECK(adapter == nullptr, "no adapter can stand beside a BiT ResNet");
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 &&
                  images.size(2) == options_.image_size[0] &&
                  images.size(3) == options_.image_size[1],
              "images ", images.sizes(), ", wanted [B, 3, ", options_.image_size[0], ", ",
              options_.image_size[1], "]");
  at::Tensor x = root(images);
  for (const Unit& unit : units_) x = forward_unit(x, unit);
  return normalize(x, norm_).mean({2, 3});  // [B, C]
}

int64_t BitResnet::step_values(const Adapter*, bool trainable) const {
  int64_t height = halved(options_.image_size[0]), width = halved(options_.image_size[1]);
  const int64_t root = config_.root * height * width;
  height = halved(height), width = halved(width);
  // The root's output, the place of each maximum (twice as wide as a value) and the maxima.
  int64_t all = root + 3 * config_.root * height * width, largest = root;
  int64_t in = config_.root;
  for (size_t stage = 0; stage < config_.units.size(); ++stage) {
    const int64_t mid = config_.bottleneck(stage);
    for (int64_t i = 0; i < config_.units[stage]; ++i) {
      const int64_t before = height * width;
      if (stage > 0 && i == 0) height = halved(height), width = halved(width);
      const int64_t after = height * width;
      // Input and output of each of the three norms.
      all += 2 * (in * before + mid * before + mid * after);
      in = config_.widths[stage];
      largest = std::max(largest, 3 * in * after);
    }
  }
  return trainable ? all + 2 * in * height * width : largest;
}

void BitResnet::visit(const std::function<void(const std::string&, at::Tensor&, bool)>& each) {
  auto visit_norm = [&](const std::string& name, Norm& norm) {
    each(name + ".weight", norm.weight, false);
    each(name + ".bias", norm.bias, false);
  };
  each("stem.conv.weight", root_, true);
  auto unit = units_.begin();
  for (size_t stage = 0; stage < config_.units.size(); ++stage)
    for (int64_t i = 0; i < config_.units[stage]; ++i, ++unit) {
      const std::string name =
          "stages." + std::to_string(stage) + ".blocks." + std::to_string(i) + ".";
      visit_norm(name + "norm1", unit->norm1);
      each(name + "conv1.weight", unit->conv1, true);
      visit_norm(name + "norm2", unit->norm2);
      each(name + "conv2.weight", unit->conv2, true);
      visit_norm(name + "norm3", unit->norm3);
      each(name + "conv3.weight", unit->conv3, true);
      if (i == 0) each(name + "downsample.conv.weight", unit->downsample, true);
    }
  visit_norm("norm", norm_);
}

NamedTensors BitResnet::parameters() const {
  NamedTensors all;
  const_cast<BitResnet*>(this)->visit(
      [&](const std::string& name, at::Tensor& tensor, bool) { all.emplace_back(name, tensor); });
  return all;
}

void BitResnet::to(c10::Device device, Precision precision) {
  refuse_int8(precision);
  dtype_ = dtype_of(precision);
  visit([&](const std::string&, at::Tensor& tensor, bool is_kernel) {
    // What is yet to be standardised stays in float32.
    tensor = tensor.to(device, is_kernel && !standardized_ ? at::kFloat : dtype_);
  });
}

void BitResnet::set_trainable(bool trainable) {
  TORCH_CHECK(!trainable || dtype_ == at::kFloat, "weights that train are float32");
  TORCH_CHECK(!trainable || !standardized_, "a frozen BiT ResNet stays frozen");
  at::NoGradGuard no_grad;
  visit([&](const std::string&, at::Tensor& tensor, bool is_kernel) {
    if (trainable) {
      // A copy of our own: the checkpoint's memory may be a mapping that others share.
      tensor = tensor.detach().clone().set_requires_grad(true);
    } else {
      tensor = tensor.detach();
      if (is_kernel) tensor = kernel(tensor).contiguous(at::MemoryFormat::ChannelsLast);
    }
  });
  standardized_ = !trainable;
}

void BitResnet::compute_in(Precision precision) {
  refuse_trainable_int8(precision);
  dtype_ = dtype_of(precision);
}

std::string BitResnet::describe() const {
  return bit_name(config_) + ", " + std::to_string(options_.image_size[0]) + "x" +
         std::to_string(options_.image_size[1]);
}

TensorMap BitResnet::random_weights(const BitConfig& config, uint64_t seed) {
  check(config);
  TensorMap map;
  map.format = "random";
  at::Generator generator = seeded_generator(seed);
  for (const auto& [name, shape] : bit_shapes(config)) {
    at::Tensor tensor = at::empty(shape, at::kFloat);
    if (shape.size() == 1) {
      tensor.fill_(name.ends_with("weight") ? 1 : 0);
    } else {
      const int64_t fan_out = shape[0] * shape[2] * shape[3];
      tensor.normal_(0, std::sqrt(2.0 / static_cast<double>(fan_out)), generator);
    }
    map.tensors[name] = tensor;
  }
  return map;
}

}  // namespace convpass
