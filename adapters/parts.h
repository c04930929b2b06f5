#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "convpass/models/backbone.h"

// What the adapters have in common.
namespace convpass {

using Weights = std::map<std::string, at::Tensor>;

/// An adapter whose tensors are listed in one place.
class ListedAdapter : public Adapter {
 public:
  NamedTensors parameters() const final;
  void to(c10::Device device) override;

 protected:
  using Each = std::function<void(const std::string& name, at::Tensor& tensor)>;
  /// Every trainable tensor, in the order of the file's names.
  virtual void visit(const Each& each) = 0;
};

/// The blocks of a config in rising order, all where the list is empty. Errors: Error for a
/// backbone without blocks, an unknown block or one that stands twice.
std::vector<int64_t> chosen_blocks(const std::string& type, const std::vector<int64_t>& blocks,
                                   const Backbone& backbone);
/// Throws the Error for a backbone without blocks.
void require_blocks(const std::string& type, const Backbone& backbone);
/// The same, and the Error for one whose blocks stand in stages; `why` ends its sentence.
void require_one_stage(const std::string& type, const Backbone& backbone, const std::string& why);

/// Which of attention and MLP the config names. Errors: Error for an empty list, an unknown name or
/// one that stands twice.
std::array<bool, 2> chosen_sites(const std::vector<std::string>& sites);
/// "attn" or "mlp".
const char* site_name(Site site);

/// The layers of a block, in order.
inline constexpr Layer kBlockLayers[] = {Layer::norm1, Layer::qkv, Layer::proj,
                                         Layer::norm2, Layer::fc1, Layer::fc2};
/// timm's name of a layer without ".weight": "blocks.3.attn.qkv", "patch_embed.proj". The last norm
/// is "norm" here, also where it is "fc_norm" in the backbone.
std::string layer_name(int64_t block, Layer layer);

/// The backbone's weights by name. The last norm is "norm" and never "fc_norm", and blocks are
/// numbered through as "blocks.0.", also where they stand in stages.
Weights weights_of(const Backbone& backbone);
/// The same weights under the backbone's own names.
Weights weights_for(const Backbone& backbone, const Weights& weights);
/// The shape `[out, in]` of a block's dense layer.
std::array<int64_t, 2> dense_shape(const Weights& weights, int64_t block, Layer layer);

at::Tensor xavier_uniform(std::vector<int64_t> shape, int64_t fan_in, int64_t fan_out,
                          at::Generator& generator);
/// Uniform in +-1/sqrt(fan_in): Kaiming-uniform with a = sqrt(5), the default of torch's layers.
at::Tensor torch_uniform(std::vector<int64_t> shape, int64_t fan_in, at::Generator& generator);

/// What dropout multiplies with in training, drawn on the CPU in float32; undefined where it does
/// nothing.
at::Tensor dropout_mask(at::IntArrayRef shape, double rate, const Pass& pass);
at::Tensor dropout(const at::Tensor& input, double rate, const Pass& pass);

/// sum + weight z over the last dimension, in one pass over the sum: weight `[out, in]`, z `[.., N,
/// in]`.
at::Tensor add_product(const at::Tensor& sum, const at::Tensor& z, const at::Tensor& weight);

/// down and up around an activation, the residual connection aside.
struct Bottleneck {
  at::Tensor down_weight, down_bias, up_weight, up_bias;

  /// `down` as torch_uniform, all else zero.
  static Bottleneck fresh(int64_t dim, int64_t width, at::Generator& generator);
  /// scale * up(dropout(activation(down(x)))).
  at::Tensor forward(const at::Tensor& x, at::Tensor (*activation)(const at::Tensor&), double scale,
                     double dropout_rate, const Pass& pass) const;
  void visit(const std::string& prefix,
             const std::function<void(const std::string&, at::Tensor&)>& each);
};

}  // namespace convpass
