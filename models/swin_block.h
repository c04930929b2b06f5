#pragma once

#include <array>
#include <memory>
#include <vector>

#include "models/vit_block.h"

namespace convpass {

/// Where the windows of a block lie on a grid of tokens.
struct WindowLayout {
  int64_t height = 0, width = 0;       ///< of the grid
  int64_t side = 0;                    ///< of a window
  std::array<int64_t, 2> shift{0, 0};  ///< down and right, by which the windows are moved

  /// Windows of a column and of a row; the last ones may reach beyond the grid.
  int64_t rows() const { return (height + side - 1) / side; }
  int64_t columns() const { return (width + side - 1) / side; }
  int64_t windows() const { return rows() * columns(); }
  bool shifted() const { return shift[0] > 0 || shift[1] > 0; }
  /// Whether the whole grid is one window.
  bool whole() const { return !shifted() && height == side && width == side; }
};

/// A block whose tokens attend within windows of the grid, with a bias for each relative position.
struct SwinBlock final : VitBlock {
  at::Tensor positions;  ///< relative_position_bias_table `[(2 side - 1)^2, H]`
  WindowLayout windows;

  /// Derives what follows from the windows; after they are set.
  void lay_out();
  /// What is no weight: moves with them.
  void move_layout(c10::Device device);
  void visit(const std::string& prefix,
             const std::function<void(const std::string&, at::Tensor&)>& each) override;

 private:
  at::Tensor attend(const at::Tensor& normed, int64_t rows, const Hook& hook) const override;
  /// `[B, H W, D]` to `[B windows, side^2, D]`, zeros where a window reaches beyond the grid.
  at::Tensor partition(const at::Tensor& tokens) const;
  /// The inverse.
  at::Tensor join(const at::Tensor& windows) const;
  /// Added to the scores, `[1 or windows, heads, side^2, side^2]`.
  at::Tensor bias() const;

  at::Tensor index_;     ///< int64 [side^4], row of `positions` for each pair of tokens
  at::Tensor separate_;  ///< bool [windows, 1, side^2, side^2], pairs that only the shift brought
                         ///< together; undefined without one
};

/// The blocks of one width, and the layers before them that merge the patches of the stage below.
struct SwinStage {
  std::string name;      ///< "layers.1."
  LayerNorm merge_norm;  ///< undefined in the first stage, as is reduction
  Linear reduction;
  std::vector<std::unique_ptr<SwinBlock>> blocks;
  TokenLayout layout;

  /// Tokens of the stage below `[B, 4 H W, D / 2]` to `[B, H W, D]`.
  at::Tensor merge(const at::Tensor& x) const;
  /// See Linear::pack.
  void pack(Precision precision);
};

}  // namespace convpass
