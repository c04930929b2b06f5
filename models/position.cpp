#include <ATen/ATen.h>

#include "convpass/models/layers.h"

namespace convpass {

at::Tensor resize_positions(const at::Tensor& grid, int64_t height, int64_t width,
                            int64_t new_height, int64_t new_width, PositionResize method) {
  TORCH_CHECK(grid.dim() == 3 && grid.size(1) == height * width, "positions ", grid.sizes(),
              " are no grid of ", height, "x", width);
  if (height == new_height && width == new_width) return grid;
  const int64_t dim = grid.size(2);
  const std::array<int64_t, 2> size{new_height, new_width};
  at::Tensor planes =
      grid.to(at::kFloat).reshape({1, height, width, dim}).permute({0, 3, 1, 2});  // [1, D, h, w]
  switch (method) {
    case PositionResize::bicubic_antialias:
      planes = at::_upsample_bicubic2d_aa(planes, size, /*align_corners=*/false);
      break;
    case PositionResize::bicubic:
      planes = at::upsample_bicubic2d(planes, size, /*align_corners=*/false);
      break;
    case PositionResize::bilinear:
      planes = at::upsample_bilinear2d(planes, size, /*align_corners=*/false);
      break;
    case PositionResize::spline_order1:
      planes = at::upsample_bilinear2d(planes, size, /*align_corners=*/true);
      break;
    case PositionResize::dinov2_scale_offset:
      // The 0.1 guards the official code against rounding down; being part of the scale factor it
      // also moves the sampling grid, and the weights' users see it.
      planes = at::upsample_bicubic2d(
          planes, size, /*align_corners=*/false,
          (static_cast<double>(new_height) + 0.1) / static_cast<double>(height),
          (static_cast<double>(new_width) + 0.1) / static_cast<double>(width));
      break;
  }
  return planes.permute({0, 2, 3, 1}).reshape({1, new_height * new_width, dim});  // [1, h w, D]
}

std::string position_resize_name(PositionResize method) {
  switch (method) {
    case PositionResize::bicubic_antialias:
      return "bicubic, antialias";
    case PositionResize::bicubic:
      return "bicubic";
    case PositionResize::bilinear:
      return "bilinear";
    case PositionResize::spline_order1:
      return "linear, corners aligned";
    case PositionResize::dinov2_scale_offset:
      return "bicubic, scale factor (new + 0.1)/old";
  }
  return "";
}

}  // namespace convpass
