#include <ATen/core/Tensor.h>

#include "convpass/models/backbone.h"
#include "convpass/models/layers.h"

namespace convpass {

at::Tensor Adapter::beside(int64_t, Site, const at::Tensor&, const TokenLayout&,
                           const Pass&) const {
  TORCH_CHECK(false, "nothing stands beside this site");
}

at::Tensor Adapter::add_beside(int64_t block, Site site, const Residual& residual,
                               const TokenLayout& layout, const Pass& pass) const {
  const at::Tensor what = beside(block, site, residual.normed, layout, pass);
  const at::Tensor factor = drop_path_factor(residual.stream, residual.drop_rate, pass);
  at::Tensor sum = residual.branch.defined() ? residual.stream + residual.branch : residual.stream;
  return factor.defined() ? sum.addcmul_(what, factor) : sum.add_(what);
}

at::Tensor Adapter::added(int64_t, Site, const at::Tensor&, const at::Tensor&, const Pass&) const {
  TORCH_CHECK(false, "nothing is added at this site");
}

bool Adapter::touches(int64_t block) const {
  for (Site site : {Site::attn, Site::mlp})
    if (acts(block, site) || adds(block, site)) return true;
  return changes_layers(block) || prompts() > 0;
}

}  // namespace convpass
