#include "convpass/models/vit.h"

#include <ATen/ATen.h>

#include <sstream>

#include "convpass/core/error.h"
#include "convpass/models/layers.h"
#include "models/recompute.h"
#include "models/taker.h"
#include "models/vit_block.h"

namespace convpass {
Vit::Vit(const VitConfig& config, const TensorMap& weights, const Options& options)
    : config_(config), options_(options) {
  const int64_t dim = config.width;
  for (int64_t side : options.image_size)
    if (side <= 0 || side % config.patch != 0)
      throw Error("backbone: image size " + std::to_string(options.image_size[0]) + "x" +
                  std::to_string(options.image_size[1]) +
                  ": wanted positive multiples of the patch " + std::to_string(config.patch));
  if (config.heads <= 0 || dim % config.heads != 0)
    throw Error("backbone: width " + std::to_string(dim) + " does not divide by " +
                std::to_string(config.heads) + " heads");
  if (options_.pool == Pool::automatic) options_.pool = config.pool;
  if (options_.pool == Pool::cls && !config.class_token)
    throw Error("backbone: pool \"cls\": this checkpoint has no class token, wanted \"mean\"");
  if (options_.pool == Pool::cls_and_distillation && !config.distillation_token)
    throw Error("backbone: this checkpoint has no distillation token beside its class token");

  Taker taker(weights);
  patch_weight_ = taker.take("patch_embed.proj.weight", {dim, 3, config.patch, config.patch});
  if (config.patch_bias) patch_bias_ = taker.take("patch_embed.proj.bias", {dim});
  if (config.class_token) cls_token_ = taker.take("cls_token", {1, 1, dim});
  if (config.distillation_token) dist_token_ = taker.take("dist_token", {1, 1, dim});
  if (config.registers > 0) reg_token_ = taker.take("reg_token", {1, config.registers, dim});
  const int64_t prefix = config.position_prefix();
  at::Tensor positions =
      taker.take("pos_embed", {1, prefix + config.grid_height * config.grid_width, dim});
  const TokenLayout to = layout();
  pos_embed_ = at::cat(
      {positions.narrow(1, 0, prefix),
       resize_positions(positions.narrow(1, prefix, positions.size(1) - prefix), config.grid_height,
                        config.grid_width, to.height, to.width, config.position_resize)},
      1);
  auto norm = [&](const std::string& name) {
    return LayerNorm{taker.take(name + ".weight", {dim}), taker.take(name + ".bias", {dim}),
                     config.eps};
  };
  auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    return Linear{taker.take(name + ".weight", {out, in}),
                  bias ? taker.take(name + ".bias", {out}) : at::Tensor()};
  };
  if (config.pre_norm) norm_pre_ = norm("norm_pre");
  norm_ = norm(config.pooled_norm ? "fc_norm" : "norm");
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    auto block = std::make_unique<VitBlock>();
    block->norm1 = norm(name + "norm1");
    block->qkv = linear(name + "attn.qkv", 3 * dim, dim, config.qkv_bias);
    block->proj = linear(name + "attn.proj", dim, dim, true);
    block->norm2 = norm(name + "norm2");
    const bool gated = config.activation == Activation::swiglu;
    block->fc1 = linear(name + "mlp.fc1", (gated ? 2 : 1) * config.hidden, dim, true);
    block->fc2 = linear(name + "mlp.fc2", dim, config.hidden, true);
    if (config.layer_scale) {
      block->scale1 = taker.take(name + "ls1.gamma", {dim});
      block->scale2 = taker.take(name + "ls2.gamma", {dim});
    }
    block->index = i;
    block->heads = config.heads;
    block->activation = config.activation;
    block->drop_rate = config.depth > 1 ? options.drop_path * static_cast<double>(i) /
                                              static_cast<double>(config.depth - 1)
                                        : 0.0;
    blocks_.push_back(std::move(block));
  }
  taker.expect_all_taken();
}

Vit::~Vit() = default;

TokenLayout Vit::layout() const {
  return {config_.prefix(), options_.image_size[0] / config_.patch,
          options_.image_size[1] / config_.patch};
}

int64_t Vit::step_values(const Adapter* adapter, bool trainable) const {
  // What a block holds of each token, in multiples of its width. Packed: the inputs of both norms
  // 2, query, key and value 3, the activation's slope 2. Plain: the attention's output 1 and, in
  // the place of the slope, the activation's input 4; with trainable weights the inputs of the four
  // dense layers 7 less that output, and the branches that LayerScale scales. While a block runs it
  // holds more for a moment.
  const bool packed = blocks_.front()->fc1.packed && blocks_.front()->fc2.packed;
  const int64_t tokens = layout().tokens() + (adapter ? adapter->prompts() : 0);
  const int64_t working = (packed ? 12 : 20) * config_.width;
  if (!trainable && adapter == nullptr) return working * tokens;
  auto held = [&](int64_t block) {
    // For the prefix tokens alone the last block needs keys and values, and what they are made of.
    if (block + 1 == config_.depth && options_.pool != Pool::mean) return 4 * config_.width;
    const bool within = adapter && adapter->changes_layers(block);
    int64_t own = trainable ? (config_.layer_scale ? 18 : 16) : !packed ? 10 : within ? 9 : 7;
    for (Site site : {Site::attn, Site::mlp}) own += adapter && adapter->acts(block, site);
    return own * config_.width + (adapter ? adapter->kept_values(block) : 0);
  };
  const int64_t lowest = trainable ? 0 : lowest_touched(adapter);
  // The lowest blocks compute twice, when those above them hold nothing any more.
  const int64_t again = std::min(recomputed_, config_.depth - lowest);
  int64_t kept = 0, twice = 0;
  for (int64_t block = lowest; block < lowest + again; ++block)
    twice = std::max(twice, held(block));
  for (int64_t block = lowest + again; block < config_.depth; ++block) kept += held(block);
  return (std::max(kept, twice) + again * config_.width + working) * tokens;
}

at::Tensor Vit::embed(const at::Tensor& images, const Adapter* adapter, const Pass& pass) const {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 &&
                  images.size(2) == options_.image_size[0] &&
                  images.size(3) == options_.image_size[1],
              "images ", images.sizes(), ", wanted [B, 3, ", options_.image_size[0], ", ",
              options_.image_size[1], "]");
  const int64_t batch = images.size(0);
  const at::Tensor pixels = images.to(dtype_of(precision_));
  at::Tensor x = at::conv2d(pixels, weight_for(pixels, patch_weight_),
                            weight_for(pixels, patch_bias_), config_.patch)
                     .flatten(2)
                     .transpose(1, 2);  // [B, H W, D]
  if (adapter) x = adapter->after(Adapter::kOutside, Layer::patch_embed, {}, x, pass);
  auto expand = [&](const at::Tensor& token) {
    return weight_for(pixels, token).expand({batch, -1, -1});
  };
  std::vector<at::Tensor> positioned, unpositioned;
  for (const at::Tensor* token : {&cls_token_, &dist_token_})
    if (token->defined())
      (config_.prefix_positions ? positioned : unpositioned).push_back(expand(*token));
  positioned.push_back(x);
  // Dense either way: what comes from the convolution is transposed.
  x = positioned.size() > 1 ? at::cat(positioned, 1) : x.contiguous();
  x = x + weight_for(pixels, pos_embed_);
  if (reg_token_.defined()) unpositioned.push_back(expand(reg_token_));
  if (!unpositioned.empty()) {
    // Tokens without positions go before the patches but after those that have them.
    const int64_t first = config_.position_prefix();
    std::vector<at::Tensor> parts;
    if (first > 0) parts.push_back(x.narrow(1, 0, first));
    parts.insert(parts.end(), unpositioned.begin(), unpositioned.end());
    parts.push_back(x.narrow(1, first, x.size(1) - first));
    x = at::cat(parts, 1);
  }
  if (!norm_pre_.weight.defined()) return x;  // [B, prefix + H W, D]
  at::Tensor normed = norm_pre_.forward(x);
  return adapter ? adapter->after(Adapter::kOutside, Layer::norm_pre, x, normed, pass) : normed;
}

at::Tensor Vit::normed(const at::Tensor& x, const Adapter* adapter, const Pass& pass) const {
  at::Tensor normed = norm_.forward(x);
  return adapter ? adapter->after(Adapter::kOutside, Layer::norm, x, normed, pass) : normed;
}

int64_t Vit::lowest_touched(const Adapter* adapter) const {
  int64_t block = 0;
  while (block < config_.depth && !(adapter && adapter->touches(block))) ++block;
  return block;
}

at::Tensor Vit::run_blocks(at::Tensor x, const Blocks& blocks, const Adapter* adapter,
                           const Pass& pass) const {
  TokenLayout layout = this->layout();
  const int64_t prefix = layout.prefix, patches = layout.height * layout.width;
  const TokenLayout prefix_only{prefix, 0, 0};
  const int64_t trained =
      blocks_.front()->norm1.weight.requires_grad() ? 0 : lowest_touched(adapter);
  int64_t again = recomputed_;
  if (adapter) layout.prefix += adapter->prompts();
  for (int64_t i = blocks.begin; i < blocks.end; ++i) {
    at::Tensor prompt;
    if (layout.prefix > prefix) prompt = adapter->prompt(i, x.size(0), pass);
    if (prompt.defined())
      x = at::cat({x.narrow(1, 0, prefix), prompt.to(x.options()),
                   x.narrow(1, x.size(1) - patches, patches)},
                  1);
    const bool cut = i + 1 == config_.depth && blocks.prefix_only;
    const VitBlock& block = *blocks_[static_cast<size_t>(i)];
    auto work = [&block, rows = cut ? prefix : layout.tokens(), adapter,
                 of = cut ? prefix_only : layout](const at::Tensor& in, const Pass& with) {
      return block.forward(in, rows, adapter, of, with);
    };
    const bool keeps = x.requires_grad() || i >= trained;
    const Pass with = i < trained ? Pass{} : pass;
    x = keeps && again-- > 0 ? recomputed(x, with, work) : work(x, with);
  }
  if (blocks.prefix_only || layout.prefix == prefix) return x;  // [B, N, D]
  return at::cat({x.narrow(1, 0, prefix), x.narrow(1, layout.prefix, patches)}, 1);
}

at::Tensor Vit::forward_tokens(const at::Tensor& images, const Adapter* adapter,
                               const Pass& pass) const {
  const Blocks all{.end = config_.depth, .prefix_only = false};
  at::Tensor x = run_blocks(embed(images, adapter, pass), all, adapter, pass);
  return config_.pooled_norm ? x : normed(x, adapter, pass);
}

at::Tensor Vit::forward(const at::Tensor& images, const Adapter* adapter, const Pass& pass) const {
  return forward_from(0, embed(images, adapter, pass), adapter, pass);
}

bool Vit::has_stem(const Adapter* adapter) const { return lowest_touched(adapter) > 0; }

at::Tensor Vit::stem(const at::Tensor& images, const Adapter* adapter) const {
  if (adapter == nullptr) return forward(images, nullptr, Pass{});
  const Blocks below{.end = lowest_touched(adapter), .prefix_only = false};
  return run_blocks(embed(images, nullptr, Pass{}), below, nullptr, Pass{});
}

at::Tensor Vit::after_stem(const at::Tensor& stem, const Adapter* adapter, const Pass& pass) const {
  return adapter ? forward_from(lowest_touched(adapter), stem, adapter, pass) : stem;
}

at::Tensor Vit::forward_from(int64_t block, const at::Tensor& tokens, const Adapter* adapter,
                             const Pass& pass) const {
  const int64_t prefix = config_.prefix();
  // Where only prefix tokens are looked at, the last block computes no other: exact, since no token
  // there depends on another token's output, and the bypass of a prefix token on no patch.
  const bool mean = options_.pool == Pool::mean;
  const Blocks above{.begin = block, .end = config_.depth, .prefix_only = !mean};
  at::Tensor x = run_blocks(tokens, above, adapter, pass);
  if (mean) {
    if (!config_.pooled_norm) x = normed(x, adapter, pass);
    at::Tensor pooled = x.narrow(1, prefix, x.size(1) - prefix).mean(1);  // [B, D]
    return config_.pooled_norm ? normed(pooled, adapter, pass) : pooled;
  }
  if (!config_.distillation_token) return normed(x.select(1, 0), adapter, pass);
  const at::Tensor both = normed(x.narrow(1, 0, 2), adapter, pass);                     // [B, 2, D]
  return options_.pool == Pool::cls_and_distillation ? both.flatten(1) : both.mean(1);  // timm's
}

void Vit::visit(const std::function<void(const std::string&, at::Tensor&)>& each) {
  auto defined = [&](const std::string& name, at::Tensor& tensor) {
    if (tensor.defined()) each(name, tensor);
  };
  defined("patch_embed.proj.weight", patch_weight_);
  defined("patch_embed.proj.bias", patch_bias_);
  defined("cls_token", cls_token_);
  defined("dist_token", dist_token_);
  defined("reg_token", reg_token_);
  defined("pos_embed", pos_embed_);
  defined("norm_pre.weight", norm_pre_.weight);
  defined("norm_pre.bias", norm_pre_.bias);
  for (size_t i = 0; i < blocks_.size(); ++i)
    blocks_[i]->visit("blocks." + std::to_string(i) + ".", defined);
  const std::string norm = config_.pooled_norm ? "fc_norm" : "norm";
  defined(norm + ".weight", norm_.weight);
  defined(norm + ".bias", norm_.bias);
}

NamedTensors Vit::parameters() const {
  NamedTensors all;
  const_cast<Vit*>(this)->visit(
      [&](const std::string& name, at::Tensor& tensor) { all.emplace_back(name, tensor); });
  return all;
}

Backbone::Size Vit::size() const {
  Size total = Backbone::size();
  for (const auto& block : blocks_)
    for (const Linear* layer : {&block->qkv, &block->proj, &block->fc1, &block->fc2})
      if (layer->packed) {
        total.values += layer->packed->values();
        total.bytes += layer->packed->bytes();
      }
  return total;
}

bool Vit::replace_parameters(const std::map<std::string, at::Tensor>& weights) {
  visit([&](const std::string& name, at::Tensor& tensor) {
    const at::Tensor& value = weights.at(name);
    TORCH_CHECK(value.sizes() == tensor.sizes(), name, ": ", value.sizes(), ", wanted ",
                tensor.sizes());
    tensor = value.detach();
  });
  return true;
}

void Vit::to(c10::Device device, Precision precision) {
  TORCH_CHECK(size().values == Backbone::size().values, "packed weights stay where they are");
  require_kernels(device, precision);
  precision_ = precision;
  if (precision == Precision::int8)  // quantised from float32
    for (auto& block : blocks_) block->pack(precision);
  visit([&](const std::string&, at::Tensor& tensor) {
    tensor = tensor.to(device, dtype_of(precision));
  });
}

void Vit::set_trainable(bool trainable) {
  TORCH_CHECK(!trainable || precision_ == Precision::f32, "weights that train are float32");
  visit([&](const std::string&, at::Tensor& tensor) {
    // A copy of our own: the checkpoint's memory may be a mapping that others share.
    if (trainable) tensor = tensor.detach().clone();
    tensor.set_requires_grad(trainable);
  });
  if (!trainable && precision_ != Precision::f32)
    for (auto& block : blocks_) block->pack(precision_);
}

void Vit::compute_in(Precision precision) {
  refuse_trainable_int8(precision);
  precision_ = precision;
}

std::string Vit::describe() const {
  const TokenLayout to = layout();
  std::ostringstream out;
  out << vit_name(config_) << ", " << options_.image_size[0] << "x" << options_.image_size[1];
  if (to.height != config_.grid_height || to.width != config_.grid_width)
    out << ", positions " << config_.grid_height << "x" << config_.grid_width << " -> " << to.height
        << "x" << to.width << " (" << position_resize_name(config_.position_resize) << ")";
  return out.str();
}

TensorMap Vit::random_weights(const VitConfig& config, uint64_t seed) {
  TensorMap map;
  map.format = "random";
  at::Generator generator = seeded_generator(seed);
  const int64_t dim = config.width;
  auto normal = [&](const std::string& name, std::vector<int64_t> shape) {
    map.tensors[name] =
        at::empty(shape, at::kFloat).normal_(0, 0.02, generator).clamp_(-0.04, 0.04);
  };
  auto constant = [&](const std::string& name, std::vector<int64_t> shape, double value) {
    map.tensors[name] = at::full(shape, value, at::kFloat);
  };
  auto norm = [&](const std::string& name) {
    constant(name + ".weight", {dim}, 1);
    constant(name + ".bias", {dim}, 0);
  };
  auto linear = [&](const std::string& name, int64_t out, int64_t in, bool bias) {
    normal(name + ".weight", {out, in});
    if (bias) constant(name + ".bias", {out}, 0);
  };
  normal("patch_embed.proj.weight", {dim, 3, config.patch, config.patch});
  if (config.patch_bias) constant("patch_embed.proj.bias", {dim}, 0);
  if (config.class_token) normal("cls_token", {1, 1, dim});
  if (config.distillation_token) normal("dist_token", {1, 1, dim});
  if (config.registers > 0) normal("reg_token", {1, config.registers, dim});
  normal("pos_embed", {1, config.position_prefix() + config.grid_height * config.grid_width, dim});
  if (config.pre_norm) norm("norm_pre");
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string name = "blocks." + std::to_string(i) + ".";
    norm(name + "norm1");
    linear(name + "attn.qkv", 3 * dim, dim, config.qkv_bias);
    linear(name + "attn.proj", dim, dim, true);
    norm(name + "norm2");
    const bool gated = config.activation == Activation::swiglu;
    linear(name + "mlp.fc1", (gated ? 2 : 1) * config.hidden, dim, true);
    linear(name + "mlp.fc2", dim, config.hidden, true);
    if (config.layer_scale) {
      constant(name + "ls1.gamma", {dim}, 1e-5);
      constant(name + "ls2.gamma", {dim}, 1e-5);
    }
  }
  norm(config.pooled_norm ? "fc_norm" : "norm");
  return map;
}

}  // namespace convpass
