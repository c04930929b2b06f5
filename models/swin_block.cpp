#include "models/swin_block.h"

#include <ATen/ATen.h>

#include <cmath>

namespace convpass {
namespace {

/// What is added to the score of a pair that does not belong together (timm's).
constexpr double kApart = -100;

/// Row of the table for each pair of tokens of a window: that of their distance.
at::Tensor position_index(int64_t side) {
  const at::Tensor line = at::arange(side);
  const at::Tensor apart = line.unsqueeze(1) - line + (side - 1);  // [s, s], 0 to 2 s - 2
  return (apart.view({side, 1, side, 1}) * (2 * side - 1) + apart.view({1, side, 1, side}))
      .reshape({-1});  // row, column of the one; row, column of the other
}

/// softmax(q k^T / sqrt(d) + bias) v of `[B, H, n, d]`, bias `[1 or B, H, n, n]`. LibTorch's fused
/// form, the faster one, has no gradient of the bias. Where that trains the plain form is taken
/// always, lest blocks that compute twice do so with other last bits.
at::Tensor attend_with(const at::Tensor& bias, bool trains, const at::Tensor& q,
                       const at::Tensor& k, const at::Tensor& v) {
  if (!trains) return at::scaled_dot_product_attention(q, k, v, bias);
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  return at::matmul(at::softmax(at::matmul(q * scale, k.transpose(2, 3)) + bias, -1), v);
}

/// 1 for the positions along a side that a shift moves round to the other end.
at::Tensor moved_round(int64_t length, int64_t shift) {
  return (at::arange(length) >= length - shift).to(at::kLong);
}

}  // namespace

void SwinBlock::lay_out() {
  index_ = position_index(windows.side);
  if (!windows.shifted()) return;
  const int64_t side = windows.side, rows = windows.rows(), columns = windows.columns();
  const at::Tensor region = moved_round(rows * side, windows.shift[0]).unsqueeze(1) * 2 +
                            moved_round(columns * side, windows.shift[1]);
  const at::Tensor own = region.view({rows, side, columns, side})
                             .transpose(1, 2)
                             .reshape({windows.windows(), side * side});
  separate_ = own.unsqueeze(1).ne(own.unsqueeze(2)).unsqueeze(1);
}

void SwinBlock::move_layout(c10::Device device) {
  index_ = index_.to(device);
  if (separate_.defined()) separate_ = separate_.to(device);
}

void SwinBlock::visit(const std::string& prefix,
                      const std::function<void(const std::string&, at::Tensor&)>& each) {
  VitBlock::visit(prefix, each);
  each(prefix + "attn.relative_position_bias_table", positions);
}

at::Tensor SwinBlock::partition(const at::Tensor& tokens) const {
  const int64_t batch = tokens.size(0), dim = tokens.size(2), side = windows.side;
  if (windows.whole()) return tokens;
  at::Tensor grid = tokens.view({batch, windows.height, windows.width, dim});
  if (windows.shifted()) grid = at::roll(grid, {-windows.shift[0], -windows.shift[1]}, {1, 2});
  const int64_t below = windows.rows() * side - windows.height;
  const int64_t right = windows.columns() * side - windows.width;
  if (below > 0 || right > 0) grid = at::constant_pad_nd(grid, {0, 0, 0, right, 0, below});
  return grid.view({batch, windows.rows(), side, windows.columns(), side, dim})
      .transpose(2, 3)
      .reshape({batch * windows.windows(), side * side, dim});
}

at::Tensor SwinBlock::join(const at::Tensor& parts) const {
  const int64_t dim = parts.size(2), side = windows.side;
  if (windows.whole()) return parts;
  const int64_t batch = parts.size(0) / windows.windows();
  at::Tensor grid = parts.view({batch, windows.rows(), windows.columns(), side, side, dim})
                        .transpose(2, 3)
                        .reshape({batch, windows.rows() * side, windows.columns() * side, dim})
                        .narrow(1, 0, windows.height)
                        .narrow(2, 0, windows.width);
  if (windows.shifted()) grid = at::roll(grid, windows.shift, {1, 2});
  return grid.reshape({batch, windows.height * windows.width, dim});  // [B, H W, D]
}

at::Tensor SwinBlock::bias() const {
  const int64_t tokens = windows.side * windows.side;
  at::Tensor bias =
      positions.index_select(0, index_).t().reshape({1, heads, tokens, tokens});  // [1, H, n, n]
  if (!separate_.defined()) return bias;
  return bias + separate_.to(bias.scalar_type()) * kApart;
}

at::Tensor SwinBlock::attend(const at::Tensor& normed, int64_t rows, const Hook& hook) const {
  TORCH_CHECK(rows == normed.size(1), "a window needs all of its tokens");
  const at::Tensor own = partition(normed);  // [B W, n, D]
  const int64_t batch = own.size(0), tokens = own.size(1), dim = own.size(2);
  const auto parts = hook(Layer::qkv, own, qkv.forward(own))
                         .view({batch, tokens, 3, heads, dim / heads})
                         .permute({2, 0, 3, 1, 4})
                         .unbind(0);  // [B W, H, n, d]
  at::Tensor bias = this->bias();
  if (bias.size(0) > 1)
    bias = bias.expand({batch / bias.size(0), -1, -1, -1, -1}).flatten(0, 1);  // [B W, H, n, n]
  const at::Tensor mixed =
      attend_with(bias, positions.requires_grad(), parts[0], parts[1], parts[2]);  // [B W, H, n, d]
  return join(mixed.transpose(1, 2).reshape({batch, tokens, dim}));
}

at::Tensor SwinStage::merge(const at::Tensor& x) const {
  const int64_t batch = x.size(0), dim = x.size(2);
  const at::Tensor squares = x.view({batch, layout.height, 2, layout.width, 2, dim})
                                 .permute({0, 1, 3, 4, 2, 5})
                                 .reshape({batch, layout.tokens(), 4 * dim});
  return reduction.forward(merge_norm.forward(squares));  // [B, H W, D]
}

void SwinStage::pack(Precision precision) {
  if (reduction.weight.defined()) reduction.pack(precision);
  for (const auto& block : blocks) block->pack(precision);
}

}  // namespace convpass
