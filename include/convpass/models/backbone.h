#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "convpass/core/device.h"

namespace convpass {

/// Mean and standard deviation of each channel (RGB) that the weights were trained with, for pixels
/// in [0, 1].
struct Normalization {
  std::array<double, 3> mean{0.485, 0.456, 0.406};
  std::array<double, 3> std{0.229, 0.224, 0.225};
  bool assumed = false;  ///< nothing in the file or beside it tells; the usual values of its kind
};

/// How the N tokens of a sequence `[B, N, D]` lie: `prefix` tokens (class, distillation,
/// registers), then height x width patches, row-major.
struct TokenLayout {
  int64_t prefix = 1;
  int64_t height = 14;
  int64_t width = 14;
  int64_t tokens() const { return prefix + height * width; }
};

/// The two places of a transformer block beside which an adapter can stand.
enum class Site { attn, mlp };

/// What a forward pass may do besides computing. Without a generator it is an evaluation: no
/// dropout, no stochastic depth. With one, both draw from it, on the CPU, in the order of the
/// blocks.
struct Pass {
  std::optional<at::Generator> random;
  bool training() const { return random.has_value(); }
};

/// A generator on the CPU that starts at `key` (see random_key).
at::Generator seeded_generator(uint64_t key);

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// What a transformer computes one after the other, where an adapter can change the result. Those
/// of a block are norm1 to fc2; the others stand outside of all blocks.
enum class Layer { patch_embed, norm_pre, norm1, qkv, proj, norm2, fc1, fc2, norm };

/// What trains beside a frozen backbone, as an argument of its forward pass; nothing is patched.
///
/// Each hook does nothing unless the adapter says otherwise, and each question (`acts`, `adds`,
/// `changes_layers`, `prompts`) is cheap: a backbone asks before it leaves its fast path.
class Adapter {
 public:
  static constexpr int64_t kOutside = -1;  ///< the block number of a layer outside of all blocks

  virtual ~Adapter() = default;

  /// Whether `beside` adds something at this site of this block.
  virtual bool acts(int64_t /*block*/, Site /*site*/) const { return false; }
  /// What is added to the residual stream beside attention or MLP, stochastic depth aside, already
  /// scaled. `normed` is the LayerNorm output that also feeds the branch, `[B, N, D]`; so is the
  /// result.
  virtual at::Tensor beside(int64_t block, Site site, const at::Tensor& normed,
                            const TokenLayout& layout, const Pass& pass) const;

  /// Called where `acts`, before the branch reads `normed` (all tokens, of which the layout's are
  /// the first), for an adapter that can begin its work there: what it returns comes back in
  /// Residual::begun. It may put in the place of `normed` a tensor of the same values through which
  /// the branch's gradient comes.
  virtual at::Tensor begin_beside(int64_t /*block*/, Site /*site*/, at::Tensor& /*normed*/,
                                  const TokenLayout& /*layout*/) const {
    return {};
  }

  /// The residual stream and what `add_beside` adds to it.
  struct Residual {
    at::Tensor stream;     ///< `[B, N, D]`, dense
    at::Tensor branch;     ///< to be added as it is; undefined: `stream` may be changed in place
    at::Tensor normed;     ///< as for `beside`
    at::Tensor begun;      ///< what `begin_beside` returned
    double drop_rate = 0;  ///< stochastic depth of what is added, drawn after what `beside` draws
  };
  /// residual.stream + residual.branch + stochastic depth of `beside`: an adapter that can add more
  /// cheaply overrides it.
  virtual at::Tensor add_beside(int64_t block, Site site, const Residual& residual,
                                const TokenLayout& layout, const Pass& pass) const;

  /// Whether `added` adds something at this site of this block.
  virtual bool adds(int64_t /*block*/, Site /*site*/) const { return false; }
  /// What is added to the residual stream after the branch, with no stochastic depth of its own:
  /// `stream` is what the branch's norm saw, `branch` what was added to it (LayerScale and
  /// stochastic depth done). All three are `[B, N, D]`.
  virtual at::Tensor added(int64_t block, Site site, const at::Tensor& stream,
                           const at::Tensor& branch, const Pass& pass) const;

  /// Whether `after` changes any layer of this block.
  virtual bool changes_layers(int64_t /*block*/) const { return false; }
  /// What the output of a layer becomes, given its input (undefined for patch_embed): both
  /// `[.., N, D]` of that layer, patch_embed's output `[B, H W, D]`. The N tokens of a Swin's qkv
  /// are those of one window, zeros where it reaches beyond the grid. For the layers outside of the
  /// blocks, with block = kOutside, it is always asked.
  virtual at::Tensor after(int64_t /*block*/, Layer /*layer*/, const at::Tensor& /*input*/,
                           at::Tensor output, const Pass& /*pass*/) const {
    return output;
  }

  /// Number of tokens P that stand between the prefix tokens and the patches in all blocks.
  virtual int64_t prompts() const { return 0; }
  /// Those of them that enter this block, `[B, P, D]` of any strides; undefined above block 0: the
  /// output of the block below.
  virtual at::Tensor prompt(int64_t /*block*/, int64_t /*batch*/, const Pass& /*pass*/) const {
    return {};
  }

  /// Whether anything of this block is other than the backbone's. What changes the layers before
  /// the blocks touches block 0, too.
  bool touches(int64_t block) const;
  /// Roughly how many values of one token it keeps for the backward pass of this block, those of
  /// the block and the `normed` that `beside` reads aside.
  virtual int64_t kept_values(int64_t /*block*/) const { return 0; }

  /// Trainable tensors (float32) under their names in the adapter file.
  virtual NamedTensors parameters() const = 0;
  /// Moves the parameters, which require gradients from then on.
  virtual void to(c10::Device device) = 0;
  /// Puts into `weights`, those of a whole backbone in float32 under timm's names (its last norm
  /// always as "norm", its blocks numbered through as "blocks.0."), what gives without the adapter
  /// the features that they give with it. False, and nothing is changed, where that cannot be.
  virtual bool merge_into(std::map<std::string, at::Tensor>& /*weights*/) const { return false; }
};

/// A pre-trained network without its classification head: images to one feature vector each.
class Backbone {
 public:
  virtual ~Backbone() = default;
  /// images `[B, 3, H, W]`, normalised, of exactly the size the backbone was built for, any float
  /// type. The adapter may be null, and must be where depth() is 0. Returns features `[B,
  /// feature_dim]` in the backbone's precision. Stochastic depth acts where something trains: the
  /// blocks of a frozen backbone below the lowest that the adapter touches run as in evaluation.
  virtual at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                             const Pass& pass) const = 0;
  /// forward() of a frozen backbone in two parts: `stem`, which no part of the adapter touches, so
  /// that an image has the same one in every pass, and what is computed from it. Bit for bit
  /// after_stem(stem(images, adapter), adapter, pass) is forward(images, adapter, pass). Where
  /// has_stem() is false the adapter reaches down to the images.
  virtual bool has_stem(const Adapter* adapter) const { return adapter == nullptr; }
  /// `[B, ...]` in the backbone's precision: without an adapter the features, else tokens.
  virtual at::Tensor stem(const at::Tensor& images, const Adapter* adapter) const;
  virtual at::Tensor after_stem(const at::Tensor& stem, const Adapter* adapter,
                                const Pass& pass) const;
  virtual int64_t feature_dim() const = 0;
  /// Width of the tokens of a block, beside which an adapter stands.
  virtual int64_t token_dim(int64_t /*block*/) const { return feature_dim(); }
  /// Whether the tokens change in number and width on their way through the blocks (Swin): no token
  /// goes all the way, and layers between the blocks are out of an adapter's reach.
  virtual bool has_stages() const { return false; }
  /// What timm's names of a block's weights begin with.
  virtual std::string block_name(int64_t block) const {
    return "blocks." + std::to_string(block) + ".";
  }
  /// Number of blocks beside which an adapter can stand; 0 for a network without tokens.
  virtual int64_t depth() const = 0;
  /// Roughly how many values of one image a training step holds at its fullest: all that the
  /// backward pass reads where something trains within, else those of the widest layer.
  virtual int64_t step_values(const Adapter* adapter, bool trainable) const = 0;
  /// The lowest `blocks` of those that keep anything for the backward pass keep their input alone
  /// and compute the rest again there: the same gradients for less memory and more time.
  virtual void set_recomputed(int64_t /*blocks*/) {}
  virtual std::array<int64_t, 2> image_size() const = 0;  ///< height, width
  /// As held now, under timm's names; without those that the CPU's kernels hold in their own form.
  virtual NamedTensors parameters() const = 0;
  /// Number of all weights, and the bytes that they take now.
  struct Size {
    int64_t values = 0, bytes = 0;
  };
  virtual Size size() const;
  /// Running statistics (float32) that forward() updates in training and reads in evaluation, under
  /// timm's names; part of the weights though no gradient moves them. Empty without batch norm.
  virtual NamedTensors buffers() const { return {}; }
  /// Puts other values, of the same shapes, in the place of all parameters() (others in the map are
  /// passed over); before to(). False for a network that no adapter can be merged into.
  virtual bool replace_parameters(const std::map<std::string, at::Tensor>& /*weights*/) {
    return false;
  }
  /// Moves weights; with f32 -> bf16 the frozen weights are held once, in bf16.
  virtual void to(c10::Device device, Precision precision) = 0;
  /// Makes every weight trainable (full fine-tuning), in the float32 that to() left it in. Or
  /// freezes it, after which a network may hold its weights in another form, for good.
  virtual void set_trainable(bool trainable) = 0;
  /// In what a trainable backbone computes, f32 until this is called. Its weights stay float32 and
  /// are cast where they are used, so that their gradients arrive in float32. Errors: Error for
  /// int8, and for a network that trains in f32 alone.
  virtual void compute_in(Precision precision);
  /// One line for people: "vit_small_patch14, 98x98, positions resized by ...".
  virtual std::string describe() const = 0;

 protected:
  /// Errors: Error for int8, in which only vision transformers compute.
  void refuse_int8(Precision precision) const;
  /// Errors: Error for int8, in which nothing trains.
  static void refuse_trainable_int8(Precision precision);
};

}  // namespace convpass
