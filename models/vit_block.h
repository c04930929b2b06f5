#pragma once

#include <functional>
#include <string>

#include "convpass/models/layers.h"
#include "convpass/models/vit.h"
#include "models/linear.h"

namespace convpass {

/// One block of a Vit: x + attention(norm1(x)), then x + MLP(norm2(x)), each with LayerScale,
/// stochastic depth and what an adapter adds.
struct VitBlock {
  virtual ~VitBlock() = default;

  LayerNorm norm1, norm2;
  Linear qkv, proj, fc1, fc2;
  at::Tensor scale1, scale2;  // LayerScale, or undefined
  int64_t index = 0;          // counted from 0
  int64_t heads = 1;
  double drop_rate = 0;
  Activation activation = Activation::gelu;

  /// x `[B, N, D]` to the first `rows` tokens of the block's output; the others are not computed.
  /// Keys and values always come from all tokens.
  at::Tensor forward(at::Tensor x, int64_t rows, const Adapter* adapter, const TokenLayout& layout,
                     const Pass& pass) const;

  /// Hands the dense layers over to the CPU's kernels where there are such: see Linear::pack.
  void pack(Precision precision);
  /// Every weight that is not packed, under timm's name after `prefix`; undefined ones too.
  virtual void visit(const std::string& prefix,
                     const std::function<void(const std::string&, at::Tensor&)>& each);

 protected:
  /// What an adapter makes of each layer's output.
  struct Hook {
    const Adapter* adapter;  // null: nothing changes
    int64_t block;
    const Pass& pass;

    at::Tensor operator()(Layer layer, const at::Tensor& input, at::Tensor output) const;
  };
  /// Tokens `[B, N, D]` as they attend to each other, up to the projection: the first `rows`.
  virtual at::Tensor attend(const at::Tensor& normed, int64_t rows, const Hook& hook) const;

 private:
  at::Tensor mlp(const at::Tensor& in, const Hook& hook) const;
  /// What stands beside the branch of one site, and what it goes by.
  struct Beside;
  at::Tensor add(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& scale,
                 const Beside& beside) const;
};

}  // namespace convpass
