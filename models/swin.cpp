#include "convpass/models/swin.h"

#include <ATen/ATen.h>

#include <numeric>

#include "convpass/core/error.h"
#include "models/recompute.h"
#include "models/swin_block.h"
#include "models/swin_shapes.h"
#include "models/taker.h"

namespace convpass {
namespace {

/// The windows of one block: every other one has them moved by half, along the sides that hold more
/// than one.
WindowLayout window_layout(const TokenLayout& grid, int64_t side, int64_t block_of_stage) {
  WindowLayout windows{.height = grid.height, .width = grid.width, .side = side};
  if (block_of_stage % 2 == 0) return windows;
  if (grid.height > side) windows.shift[0] = side / 2;
  if (grid.width > side) windows.shift[1] = side / 2;
  return windows;
}

}  // namespace

Swin::Swin(const SwinConfig& config, const TensorMap& weights, const Options& options)
    : config_(config), options_(options) {
  check(config);
  try {
    check_image_size(config, options.image_size);
  } catch (const Error& error) {
    throw Error(std::string("backbone: image size: ") + error.what());
  }
  const int64_t blocks = depth();
  int64_t index = 0;
  for (size_t i = 0; i < config.stages(); ++i) {
    auto stage = std::make_unique<SwinStage>();
    stage->name = swin_stage_name(i);
    stage->layout = {.prefix = 0,
                     .height = options.image_size[0] / config.stride(i),
                     .width = options.image_size[1] / config.stride(i)};
    stage->merge_norm.eps = kSwinEps;
    for (int64_t j = 0; j < config.depths[i]; ++j, ++index) {
      auto block = std::make_unique<SwinBlock>();
      block->norm1.eps = block->norm2.eps = kSwinEps;
      block->index = index;
      block->heads = config.heads[i];
      block->drop_rate = blocks > 1 ? options.drop_path * static_cast<double>(index) /
                                          static_cast<double>(blocks - 1)
                                    : 0.0;
      block->windows = window_layout(stage->layout, config.windows[i], j);
      block->lay_out();
      stage->blocks.push_back(std::move(block));
    }
    stages_.push_back(std::move(stage));
  }
  patch_norm_.eps = norm_.eps = kSwinEps;
  const auto shapes = swin_shapes(config);
  Taker taker(weights);
  visit([&](const std::string& name, at::Tensor& tensor) {
    if (auto shape = shapes.find(name); shape != shapes.end())
      tensor = taker.take(name, shape->second);
  });
  taker.expect_all_taken();
}

Swin::~Swin() = default;

int64_t Swin::depth() const {
  return std::accumulate(config_.depths.begin(), config_.depths.end(), int64_t{0});
}

const SwinStage& Swin::stage_of(int64_t block) const {
  for (const auto& stage : stages_)
    if (block <= stage->blocks.back()->index) return *stage;
  TORCH_CHECK(false, "no block ", block);
}

int64_t Swin::token_dim(int64_t block) const {
  return stage_of(block).blocks[0]->norm1.weight.size(0);
}

std::string Swin::block_name(int64_t block) const {
  const SwinStage& stage = stage_of(block);
  return stage.name + "blocks." + std::to_string(block - stage.blocks.front()->index) + ".";
}

int64_t Swin::step_values(const Adapter* adapter, bool trainable) const {
  // As for a Vit, what a block holds of each token in multiples of its width, and besides the
  // tokens window by window, normed and mixed, and of each pair in a window a shifted block's bias
  // or, where all trains, scores, their softmax and the bias.
  int64_t kept = 0, again = 0, working = 0, deepest = 0, left = recomputed_;
  bool holds = trainable;
  for (const auto& stage : stages_)
    for (const auto& block : stage->blocks) {
      const bool packed = block->fc1.packed && block->fc2.packed;
      const int64_t values = stage->layout.tokens() * token_dim(block->index);
      const int64_t pairs = stage->layout.tokens() * block->windows.side * block->windows.side;
      const int64_t widths = trainable ? 20 : packed ? 12 : 14;
      const int64_t scores = trainable ? 3 : block->windows.shifted() ? 1 : 0;
      const int64_t held = widths * values + scores * pairs * block->heads;
      working = std::max(working, (packed ? 14 : 22) * values);
      holds |= adapter && adapter->touches(block->index);
      if (!holds) continue;
      if (left-- > 0) {
        again += values;
        deepest = std::max(deepest, held);
      } else {
        kept += held;
      }
    }
  // Those that compute twice do so when the ones above them hold nothing any more.
  return std::max(kept, deepest) + again + working;
}

at::Tensor Swin::embed(const at::Tensor& images, const Adapter* adapter, const Pass& pass) const {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 &&
                  images.size(2) == options_.image_size[0] &&
                  images.size(3) == options_.image_size[1],
              "images ", images.sizes(), ", wanted [B, 3, ", options_.image_size[0], ", ",
              options_.image_size[1], "]");
  at::Tensor x =
      at::conv2d(images.to(dtype_of(precision_)), patch_weight_, patch_bias_, config_.patch)
          .flatten(2)
          .transpose(1, 2);  // [B, H W, D]
  if (adapter) x = adapter->after(Adapter::kOutside, Layer::patch_embed, {}, x, pass);
  at::Tensor normed = patch_norm_.forward(x);
  return adapter ? adapter->after(Adapter::kOutside, Layer::norm_pre, x, normed, pass) : normed;
}

at::Tensor Swin::forward_tokens(const at::Tensor& images, const Adapter* adapter,
                                const Pass& pass) const {
  at::Tensor x = embed(images, adapter, pass);
  int64_t again = recomputed_;
  bool trains = false;  // something, in this block or one below
  for (const auto& stage : stages_) {
    if (stage->merge_norm.weight.defined()) x = stage->merge(x);
    for (const auto& block : stage->blocks) {
      auto work = [&block = *block, adapter, &layout = stage->layout](const at::Tensor& in,
                                                                      const Pass& with) {
        return block.forward(in, layout.tokens(), adapter, layout, with);
      };
      trains = trains || (adapter && adapter->touches(block->index)) ||
               block->norm1.weight.requires_grad();
      const Pass with = trains ? pass : Pass{};
      x = trains && again-- > 0 ? recomputed(x, with, work) : work(x, with);
    }
  }
  at::Tensor normed = norm_.forward(x);
  return adapter ? adapter->after(Adapter::kOutside, Layer::norm, x, normed, pass) : normed;
}

at::Tensor Swin::forward(const at::Tensor& images, const Adapter* adapter, const Pass& pass) const {
  return forward_tokens(images, adapter, pass).mean(1);  // [B, D]
}

void Swin::visit(const std::function<void(const std::string&, at::Tensor&)>& each) {
  each("patch_embed.proj.weight", patch_weight_);
  each("patch_embed.proj.bias", patch_bias_);
  each("patch_embed.norm.weight", patch_norm_.weight);
  each("patch_embed.norm.bias", patch_norm_.bias);
  for (const auto& stage : stages_) {
    each(stage->name + "downsample.norm.weight", stage->merge_norm.weight);
    each(stage->name + "downsample.norm.bias", stage->merge_norm.bias);
    each(stage->name + "downsample.reduction.weight", stage->reduction.weight);
    for (size_t i = 0; i < stage->blocks.size(); ++i)
      stage->blocks[i]->visit(stage->name + "blocks." + std::to_string(i) + ".", each);
  }
  each("norm.weight", norm_.weight);
  each("norm.bias", norm_.bias);
}

NamedTensors Swin::parameters() const {
  NamedTensors all;
  const_cast<Swin*>(this)->visit([&](const std::string& name, at::Tensor& tensor) {
    if (tensor.defined()) all.emplace_back(name, tensor);
  });
  return all;
}

Backbone::Size Swin::size() const {
  Size total = Backbone::size();
  auto add = [&](const Linear& layer) {
    if (!layer.packed) return;
    total.values += layer.packed->values();
    total.bytes += layer.packed->bytes();
  };
  for (const auto& stage : stages_) {
    add(stage->reduction);
    for (const auto& block : stage->blocks)
      for (const Linear* layer : {&block->qkv, &block->proj, &block->fc1, &block->fc2}) add(*layer);
  }
  return total;
}

bool Swin::replace_parameters(const std::map<std::string, at::Tensor>& weights) {
  visit([&](const std::string& name, at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const at::Tensor& value = weights.at(name);
    TORCH_CHECK(value.sizes() == tensor.sizes(), name, ": ", value.sizes(), ", wanted ",
                tensor.sizes());
    tensor = value.detach();
  });
  return true;
}

void Swin::to(c10::Device device, Precision precision) {
  TORCH_CHECK(size().values == Backbone::size().values, "packed weights stay where they are");
  require_kernels(device, precision);
  precision_ = precision;
  if (precision == Precision::int8)  // quantised from float32
    for (const auto& stage : stages_) stage->pack(precision);
  visit([&](const std::string&, at::Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.to(device, dtype_of(precision));
  });
  for (const auto& stage : stages_)
    for (const auto& block : stage->blocks) block->move_layout(device);
}

void Swin::set_trainable(bool trainable) {
  TORCH_CHECK(!trainable || precision_ == Precision::f32, "a trainable backbone stays in float32");
  visit([&](const std::string&, at::Tensor& tensor) {
    if (!tensor.defined()) return;
    // A copy of our own: the checkpoint's memory may be a mapping that others share.
    if (trainable) tensor = tensor.detach().clone();
    tensor.set_requires_grad(trainable);
  });
  if (!trainable && precision_ != Precision::f32)
    for (const auto& stage : stages_) stage->pack(precision_);
}

std::string Swin::describe() const {
  return swin_name(config_) + ", " + std::to_string(options_.image_size[0]) + "x" +
         std::to_string(options_.image_size[1]);
}

TensorMap Swin::random_weights(const SwinConfig& config, uint64_t seed) {
  check(config);
  TensorMap map;
  map.format = "random";
  at::Generator generator = seeded_generator(seed);
  for (const auto& [name, shape] : swin_shapes(config)) {
    at::Tensor tensor = at::empty(shape, at::kFloat);
    if (shape.size() > 1)
      tensor.normal_(0, 0.02, generator).clamp_(-0.04, 0.04);
    else
      tensor.fill_(name.ends_with("weight") ? 1 : 0);
    map.tensors[name] = tensor;
  }
  return map;
}

}  // namespace convpass
