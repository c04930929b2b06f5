#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "convpass/models/backbone.h"

namespace convpass {

/// A weight as a layer uses it on this input: in its type. That is the weight itself unless it
/// trains in float32 while the tokens are bfloat16; then autograd takes the gradient back to
/// float32. Undefined for an undefined weight.
at::Tensor weight_for(const at::Tensor& input, const at::Tensor& weight);

/// LayerNorm over the last dimension.
struct LayerNorm {
  at::Tensor weight, bias;
  double eps = 1e-6;
  at::Tensor forward(const at::Tensor& input) const;
};

/// x * sigmoid(1.702 x).
at::Tensor quick_gelu(const at::Tensor& input);

/// Stochastic depth per sample (timm's DropPath): the factor `[B, 1, 1]` of a branch `[B, N, D]`, 0
/// or 1/(1 - rate), drawn from the pass; undefined in evaluation or at rate 0, which stands for 1.
at::Tensor drop_path_factor(const at::Tensor& branch, double rate, const Pass& pass);

/// Multi-head attention of q `[B, H, M, d]` over k, v `[B, H, N, d]` -> `[B, M, H d]`, scale
/// d^-0.5.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

/// How a loader resizes position embeddings to another grid (spec: checkpoints.md, the table
/// "Position embedding at another resolution").
enum class PositionResize {
  bicubic_antialias,    ///< timm now (state dicts), DINOv2 with registers, open_clip
  bicubic,              ///< Hugging Face ViT, DeiT, DINOv2, CLIP: a = -0.75, corners not aligned
  bilinear,             ///< timm now from npz, timm 0.4.12 (Convpass): no antialias
  spline_order1,        ///< vit_jax, big_vision: linear, corners aligned
  dinov2_scale_offset,  ///< official DINOv2 without registers: bicubic, scale factor (new +
                        ///< 0.1)/old
};

/// Grid part of a position embedding `[1, h w, D]` (row-major) brought to another grid, in float32,
/// by the method of the loader that the weights come from. The same grid is returned as it is.
at::Tensor resize_positions(const at::Tensor& grid, int64_t height, int64_t width,
                            int64_t new_height, int64_t new_width, PositionResize method);

/// "bicubic, antialias" and the like, for people and for the adapter file.
std::string position_resize_name(PositionResize method);

}  // namespace convpass
