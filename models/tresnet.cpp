#include "convpass/models/tresnet.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numeric>

#include "convpass/core/error.h"
#include "convpass/models/layers.h"
#include "models/taker.h"
#include "models/tresnet_shapes.h"

namespace convpass {
namespace {

constexpr double kEps = 1e-5, kMomentum = 0.1;  // of every BatchNorm
constexpr double kStemSlope = 1e-2, kSlope = 1e-3;

/// The `[kSideUnit, kSideUnit]` squares of images `[B, 3, H, W]` as channels: row of the square,
/// column, colour, which is the order of the stem's kernel.
at::Tensor space_to_depth(const at::Tensor& images) {
  constexpr int64_t kUnit = TResnet::kSideUnit;
  const int64_t batch = images.size(0), height = images.size(2) / kUnit,
                width = images.size(3) / kUnit;
  return images.reshape({batch, 3, height, kUnit, width, kUnit})
      .permute({0, 3, 5, 1, 2, 4})
      .reshape({batch, 3 * kUnit * kUnit, height, width});  // [B, 48, H / 4, W / 4]
}

/// In place: a BatchNorm saves its input alone.
at::Tensor activate(at::Tensor normed, double slope) { return at::leaky_relu_(normed, slope); }

int64_t halved(int64_t side) { return (side + 1) / 2; }

/// Height times width of the features of a stage.
int64_t area(const std::array<int64_t, 2>& image_size, size_t stage) {
  int64_t product = 1;
  for (int64_t side : image_size) {
    side /= TResnet::kSideUnit;
    for (size_t i = 0; i < stage; ++i) side = halved(side);
    product *= side;
  }
  return product;
}

void check_image_size(const std::array<int64_t, 2>& size) {
  for (int64_t side : size)
    if (side < TResnet::kLeastSide || side % TResnet::kSideUnit != 0)
      throw Error("backbone: image size " + std::to_string(size[0]) + "x" +
                  std::to_string(size[1]) + ": wanted multiples of " +
                  std::to_string(TResnet::kSideUnit) + ", at least " +
                  std::to_string(TResnet::kLeastSide));
}

}  // namespace

TResnet::TResnet(const TResnetConfig& config, const TensorMap& weights, const Options& options)
    : config_(config), options_(options) {
  check(config);
  check_image_size(options.image_size);
  const int64_t blocks = std::accumulate(config.layers.begin(), config.layers.end(), int64_t{0});
  for (size_t stage = 0; stage < config.layers.size(); ++stage)
    for (int64_t i = 0; i < config.layers[stage]; ++i) {
      const double place = static_cast<double>(blocks_.size()) / static_cast<double>(blocks - 1);
      Block& block = blocks_.emplace_back();
      block.name = tresnet_block(stage, i);
      block.bottleneck = config.bottleneck(stage);
      block.stride = stage > 0 && i == 0 ? 2 : 1;
      block.drop_rate = options.drop_path * place;
    }
  const auto shapes = tresnet_shapes(config);
  Taker taker(weights);
  visit([&](const std::string& name, at::Tensor& tensor, Role) {
    if (auto shape = shapes.find(name); shape != shapes.end())
      tensor = taker.take(name, shape->second);
  });
  taker.expect_all_taken();
  const at::Tensor binomial = at::tensor({0.25F, 0.5F, 0.25F});
  blur_ = at::outer(binomial, binomial).view({1, 1, 3, 3});
}

at::Tensor TResnet::convolve(const at::Tensor& input, const ConvNorm& layer,
                             const Pass& pass) const {
  const int64_t padding = layer.kernel.size(2) / 2;
  if (folded_) return at::conv2d(input, layer.kernel, layer.shift, /*stride=*/1, padding);
  const bool by_batch = trainable_ && pass.training();
  return at::batch_norm(at::conv2d(input, layer.kernel, {}, /*stride=*/1, padding), layer.scale,
                        layer.shift, layer.mean, layer.variance, by_batch, kMomentum, kEps,
                        /*cudnn_enabled=*/true);
}

at::Tensor TResnet::excite(const at::Tensor& input, const Excitation& excitation) const {
  if (!excitation.weight1.defined()) return input;
  at::Tensor gate = input.mean({2, 3}, /*keepdim=*/true);  // [B, C, 1, 1]
  gate = at::conv2d(gate, excitation.weight1, excitation.bias1).relu_();
  gate = at::conv2d(gate, excitation.weight2, excitation.bias2);
  return input * gate.sigmoid();
}

at::Tensor TResnet::blur(const at::Tensor& input) const {
  const int64_t channels = input.size(1);
  return at::conv2d(at::reflection_pad2d(input, {1, 1, 1, 1}), blur_.expand({channels, 1, 3, 3}),
                    /*bias=*/{}, /*stride=*/2, /*padding=*/at::IntArrayRef{0}, /*dilation=*/1,
                    channels);
}

at::Tensor TResnet::forward_branch(const at::Tensor& input, const Block& block,
                                   const Pass& pass) const {
  at::Tensor x = activate(convolve(input, block.conv1, pass), kSlope);
  if (!block.bottleneck) {
    if (block.stride == 2) x = blur(x);
    return excite(convolve(x, block.conv2, pass), block.excitation);
  }
  x = activate(convolve(x, block.conv2, pass), kSlope);
  if (block.stride == 2) x = blur(x);
  return convolve(excite(x, block.excitation), block.conv3, pass);
}

at::Tensor TResnet::forward_block(const at::Tensor& input, const Block& block,
                                  const Pass& pass) const {
  at::Tensor shortcut = input;
  if (block.stride == 2)
    shortcut = at::avg_pool2d(shortcut, /*kernel_size=*/2, /*stride=*/2, /*padding=*/0,
                              /*ceil_mode=*/true, /*count_include_pad=*/false);
  if (block.downsample.kernel.defined()) shortcut = convolve(shortcut, block.downsample, pass);
  at::Tensor x = forward_branch(input, block, pass);
  const at::Tensor factor = drop_path_factor(x, block.drop_rate, pass);  // [B, 1, 1] or undefined
  if (factor.defined()) x = x * factor.unsqueeze(-1);
  return x.add_(shortcut).relu_();
}

at::Tensor TResnet::forward(const at::Tensor& images, const Adapter* adapter,
                            const Pass& pass) const {
  TORCH_CHECK(adapter == nullptr, "no adapter can stand beside a TResNet");
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 &&
                  images.size(2) == options_.image_size[0] &&
                  images.size(3) == options_.image_size[1],
              "images ", images.sizes(), ", wanted [B, 3, ", options_.image_size[0], ", ",
              options_.image_size[1], "]");
  if (trainable_ && pass.training() && images.size(0) * area(options_.image_size, 3) == 1)
    throw Error("backbone: got a training batch of one image of " +
                std::to_string(options_.image_size[0]) + "x" +
                std::to_string(options_.image_size[1]) +
                ", of which no BatchNorm can tell a variance: wanted more images or larger ones");
  // Channels last: the CPU's convolutions are faster in it.
  at::Tensor x = space_to_depth(images.to(folded_ ? dtype_ : at::kFloat))
                     .contiguous(at::MemoryFormat::ChannelsLast);
  x = activate(convolve(x, stem_, pass), kStemSlope);
  for (const Block& block : blocks_) x = forward_block(x, block, pass);
  return x.mean({2, 3}).to(dtype_);  // [B, D]
}

int64_t TResnet::step_values(const Adapter*, bool trainable) const {
  const int64_t first = area(options_.image_size, 0);
  // The stem: squares, convolved, normalised.
  int64_t all = (3 * kSideUnit * kSideUnit + 2 * config_.width) * first;
  int64_t largest = all, in = config_.width;
  for (size_t stage = 0; stage < config_.layers.size(); ++stage) {
    const int64_t mid = config_.inside(stage), out = config_.outside(stage);
    const int64_t after = area(options_.image_size, stage);
    for (int64_t i = 0; i < config_.layers[stage]; ++i) {
      const bool shrinks = stage > 0 && i == 0;
      const int64_t before = shrinks ? area(options_.image_size, stage - 1) : after;
      // Each convolution's output and what becomes of it: normalised and activated, or in place the
      // block's sum; of the shortcut's nothing more.
      int64_t block = 2 * mid * before;
      block += config_.bottleneck(stage) ? 2 * mid * before + 2 * out * after : 3 * mid * after;
      if (config_.bottleneck(stage) && stage < 3) block += mid * after;  // excited
      if (shrinks) block += mid * (before + after) + in * after;         // padded, blurred; pooled
      if (i == 0 && (shrinks || in != out)) block += out * after;
      all += block;
      largest = std::max(largest, in * before + 2 * mid * before + 2 * out * after);
      in = out;
    }
  }
  return trainable ? all : largest;
}

void TResnet::visit(const std::function<void(const std::string&, at::Tensor&, Role)>& each) {
  auto visit_layer = [&](const std::string& name, ConvNorm& layer) {
    each(name + ".conv.weight", layer.kernel, Role::kernel);
    each(name + ".bn.weight", layer.scale, Role::norm);
    each(name + ".bn.bias", layer.shift, Role::norm);
    each(name + ".bn.running_mean", layer.mean, Role::statistic);
    each(name + ".bn.running_var", layer.variance, Role::statistic);
  };
  visit_layer("body.conv1", stem_);
  for (Block& block : blocks_) {
    visit_layer(block.name + "conv1", block.conv1);
    visit_layer(block.name + "conv2", block.conv2);
    visit_layer(block.name + "conv3", block.conv3);
    Excitation& excitation = block.excitation;
    each(block.name + "se.fc1.weight", excitation.weight1, Role::excitation);
    each(block.name + "se.fc1.bias", excitation.bias1, Role::excitation);
    each(block.name + "se.fc2.weight", excitation.weight2, Role::excitation);
    each(block.name + "se.fc2.bias", excitation.bias2, Role::excitation);
    // timm counts the pooling that comes before it.
    visit_layer(block.name + (block.stride == 2 ? "downsample.1" : "downsample.0"),
                block.downsample);
  }
}

NamedTensors TResnet::held(bool statistics) const {
  NamedTensors all;
  const_cast<TResnet*>(this)->visit([&](const std::string& name, at::Tensor& tensor, Role role) {
    if (tensor.defined() && (role == Role::statistic) == statistics) all.emplace_back(name, tensor);
  });
  return all;
}

NamedTensors TResnet::parameters() const { return held(/*statistics=*/false); }

NamedTensors TResnet::buffers() const { return held(/*statistics=*/true); }

void TResnet::to(c10::Device device, Precision precision) {
  refuse_int8(precision);
  dtype_ = dtype_of(precision);
  // What is yet to be folded stays in float32.
  const c10::ScalarType held = folded_ ? dtype_ : at::kFloat;
  visit([&](const std::string&, at::Tensor& tensor, Role) {
    if (tensor.defined()) tensor = tensor.to(device, held);
  });
  blur_ = blur_.to(device, held);
}

void TResnet::fold(ConvNorm& layer) const {
  if (!layer.kernel.defined()) return;
  const at::Tensor scale =
      layer.scale.to(at::kDouble) / (layer.variance.to(at::kDouble) + kEps).sqrt();
  layer.kernel = (layer.kernel * scale.view({-1, 1, 1, 1})).to(at::kFloat);
  layer.shift = (layer.shift - layer.mean * scale).to(at::kFloat);
  for (at::Tensor* gone : {&layer.scale, &layer.mean, &layer.variance}) *gone = at::Tensor();
}

void TResnet::set_trainable(bool trainable) {
  TORCH_CHECK(!trainable || dtype_ == at::kFloat, "weights that train are float32");
  TORCH_CHECK(!trainable || !folded_, "a frozen TResNet stays frozen");
  at::NoGradGuard no_grad;
  visit([&](const std::string&, at::Tensor& tensor, Role role) {
    if (!tensor.defined()) return;
    tensor = tensor.detach();
    // A copy of our own: the checkpoint's memory may be a mapping that others share.
    if (trainable) tensor = tensor.clone().set_requires_grad(role != Role::statistic);
  });
  trainable_ = trainable;
  if (trainable || folded_) return;
  fold(stem_);
  for (Block& block : blocks_)
    for (ConvNorm* layer : {&block.conv1, &block.conv2, &block.conv3, &block.downsample})
      fold(*layer);
  visit([&](const std::string&, at::Tensor& tensor, Role role) {
    if (tensor.defined()) tensor = tensor.to(dtype_);
    if (role == Role::kernel && tensor.defined())
      tensor = tensor.contiguous(at::MemoryFormat::ChannelsLast);
  });
  blur_ = blur_.to(dtype_);
  folded_ = true;
}

std::string TResnet::describe() const {
  return tresnet_name(config_) + ", " + std::to_string(options_.image_size[0]) + "x" +
         std::to_string(options_.image_size[1]);
}

TensorMap TResnet::random_weights(const TResnetConfig& config, uint64_t seed) {
  check(config);
  TensorMap map;
  map.format = "random";
  at::Generator generator = seeded_generator(seed);
  const auto shapes = tresnet_shapes(config);
  for (const auto& [name, shape] : shapes) {
    at::Tensor tensor = at::empty(shape, at::kFloat);
    if (shape.size() == 4) {
      const int64_t fan_out = shape[0] * shape[2] * shape[3];
      tensor.normal_(0, std::sqrt(2.0 / static_cast<double>(fan_out)), generator);
    } else if (name.find(".se.") != std::string::npos) {
      const int64_t fan_in = shapes.at(name.substr(0, name.size() - 4) + "weight")[1];
      const double bound = 1.0 / std::sqrt(static_cast<double>(fan_in));
      tensor.uniform_(-bound, bound, generator);
    } else {
      tensor.fill_(name.ends_with("weight") || name.ends_with("running_var") ? 1 : 0);
    }
    map.tensors[name] = tensor;
  }
  // Each block begins as its shortcut.
  for (size_t stage = 0; stage < config.layers.size(); ++stage)
    for (int64_t i = 0; i < config.layers[stage]; ++i)
      map.tensors[tresnet_block(stage, i) +
                  (config.bottleneck(stage) ? "conv3.bn.weight" : "conv2.bn.weight")]
          .zero_();
  return map;
}

}  // namespace convpass
