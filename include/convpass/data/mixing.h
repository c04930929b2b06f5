#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

#include "convpass/core/rng.h"

namespace convpass {

class FieldVisitor;

enum class MixStyle {
  timm,      ///< mixup or CutMix, partner = the batch reversed, which must be even
  funmatch,  ///< mixup, lambda = max(lambda, 1 - lambda), partner = the row before (big_vision)
  bit,       ///< mixup, partner = a random permutation (Big Transfer in PyTorch)
};
enum class MixMode { batch, pair, elem };

struct MixConfig {
  double mixup = 0.0;   ///< alpha of Beta(alpha, alpha); 0 = off
  double cutmix = 0.0;  ///< the same of CutMix, timm alone
  MixStyle style = MixStyle::timm;
  MixMode mode = MixMode::batch;    ///< timm: one draw for the batch, for each pair or for each row
  double probability = 1.0;         ///< timm: of mixing at all
  double switch_probability = 0.5;  ///< timm: of CutMix where both are on
  bool on() const { return (mixup > 0 || cutmix > 0) && probability > 0; }
};
/// In the object of `augment`: mixup, cutmix, mix_style, mix_mode, mix_probability, mix_switch.
void fields(FieldVisitor& visitor, MixConfig& config);

/// Rows `top` to `bottom`, columns `left` to `right`, ends excluded.
struct MixBox {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  bool operator==(const MixBox&) const = default;
};

/// What happens to one row of a batch.
struct MixRow {
  int64_t partner = 0;  ///< row that is mixed in
  double lambda = 1;    ///< share of the row itself, in the target too; 1 = the row stays
  bool cutmix = false;  ///< `box` comes from the partner; else lambda x + (1 - lambda) partner
  MixBox box{};
};

/// One row for each of the batch; empty = nothing is mixed.
using MixDraw = std::vector<MixRow>;

/// Where the draws come from: a step of the run and a micro-batch of it. FunMatch and BiT take one
/// lambda for all micro-batches of a step.
struct MixKey {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t micro = 0;
};

/// Draws for images of `shape` [B, 3, H, W]; a pure function of its arguments (Purpose::mix).
/// Source: timm 0.5.4 `Mixup`, big_vision `mixup`, big_transfer `mixup_data`.
/// Errors: Error for an odd batch in timm's style.
MixDraw draw_mix(const MixConfig& config, at::IntArrayRef shape, const MixKey& key);

/// Mixes images [B, 3, H, W] of any float type on any device. Returns a new tensor, or `images`
/// itself when nothing is mixed.
at::Tensor mix_images(const at::Tensor& images, const MixDraw& draw);

/// Mixes targets [B, K] of any float type: lambda y + (1 - lambda) y of the partner.
at::Tensor mix_targets(const at::Tensor& targets, const MixDraw& draw);

/// labels [B] int64 -> [B, K] float32: s/K, and 1 - s + s/K at the label.
at::Tensor soft_targets(const at::Tensor& labels, int64_t classes, double smoothing);

/// timm's box of CutMix: trunc(H sqrt(1 - lambda)) rows, halved to whole numbers on both sides of
/// the centre {y, x}, cut at the border.
MixBox cutmix_box(int64_t height, int64_t width, double lambda, std::array<int64_t, 2> centre);

/// Beta(a, b), a and b above 0: exact to the last digits near 0 and 1 for small parameters too.
double sample_beta(double a, double b, Rng& rng);

}  // namespace convpass
