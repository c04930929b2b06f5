#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
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

/// What trains beside a frozen backbone, as an argument of its forward pass; nothing is patched.
class Adapter {
 public:
  virtual ~Adapter() = default;
  /// Whether something stands beside this site of this block.
  virtual bool acts(int64_t block, Site site) const = 0;
  /// What is added to the residual stream beside attention or MLP, stochastic depth aside, already
  /// scaled. `normed` is the LayerNorm output that also feeds the branch, `[B, N, D]`; so is the
  /// result.
  virtual at::Tensor beside(int64_t block, Site site, const at::Tensor& normed,
                            const TokenLayout& layout, const Pass& pass) const = 0;
  /// Trainable tensors (float32) under their names in the adapter file.
  virtual NamedTensors parameters() const = 0;
  /// Moves the parameters, which require gradients from then on.
  virtual void to(c10::Device device) = 0;
};

/// A pre-trained network without its classification head: images to one feature vector each.
class Backbone {
 public:
  virtual ~Backbone() = default;
  /// images `[B, 3, H, W]`, normalised, of exactly the size the backbone was built for, any float
  /// type. The adapter may be null, and must be where depth() is 0. Returns features `[B,
  /// feature_dim]` in the backbone's precision.
  virtual at::Tensor forward(const at::Tensor& images, const Adapter* adapter,
                             const Pass& pass) const = 0;
  virtual int64_t feature_dim() const = 0;
  /// Width of the tokens beside which an adapter stands; of no meaning where depth() is 0.
  virtual int64_t token_dim() const { return feature_dim(); }
  /// Number of blocks beside which an adapter can stand; 0 for a network without tokens.
  virtual int64_t depth() const = 0;
  /// Roughly how many values of one image a training step holds at its fullest: all that the
  /// backward pass reads where something trains within, else those of the widest layer.
  virtual int64_t step_values(const Adapter* adapter, bool trainable) const = 0;
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
  /// Moves weights; with f32 -> bf16 the frozen weights are held once, in bf16.
  virtual void to(c10::Device device, Precision precision) = 0;
  /// Makes every weight trainable (full fine-tuning); such a backbone stays in f32. Or freezes it,
  /// after which a network may hold its weights in another form, for good.
  virtual void set_trainable(bool trainable) = 0;
  /// One line for people: "vit_small_patch14, 98x98, positions resized by ...".
  virtual std::string describe() const = 0;

 protected:
  /// Errors: Error for int8, in which only vision transformers compute.
  void refuse_int8(Precision precision) const;
};

}  // namespace convpass
