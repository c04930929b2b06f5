#pragma once

#include <memory>
#include <string>

#include "convpass/adapters/adapter.h"
#include "convpass/adapters/head.h"
#include "convpass/models/backbone.h"

namespace convpass {

/// Which weights a backbone holds, so that an adapter is never used on another one.
struct BackboneIdentity {
  /// The format of a backbone that began from random weights: no checkpoint goes with it.
  static constexpr const char* kRandom = "random";

  std::string name;             ///< "vit_small_patch14"
  std::string format;           ///< "hf-dinov2", "timm", ..., "random"
  std::string hash;             ///< weights_hash of the checkpoint as stored, before any resizing
  std::string position_resize;  ///< method that resized the positions
  Normalization normalization;
  std::string
      architecture;  ///< its config as JSON text: what weights alone do not tell (heads, eps, ...)
};

/// Backbone, adapter and head. What is trainable is what is saved, and is whole parts: the head
/// always, with its constants, the adapter if there is one, the backbone, its buffers too, when it
/// was set trainable.
struct TunedModel {
  std::unique_ptr<Backbone> backbone;
  BackboneIdentity identity;
  std::unique_ptr<Adapter> adapter;  ///< may be null: a linear probe
  Head head;
  bool backbone_trainable = false;
  bool adapter_merged = false;  ///< the backbone's weights hold what the adapter does

  /// images `[B, 3, H, W]` float32 on the model's device -> features `[B, D]` in the backbone's
  /// precision.
  at::Tensor features(const at::Tensor& images, const Pass& pass) const;
  /// Whether a part of the backbone below all that trains makes the same of an image in every pass.
  bool has_stem() const { return !backbone_trainable && backbone->has_stem(acting_adapter()); }
  /// features() in two parts, where has_stem(): bit for bit the same (see Backbone::stem).
  at::Tensor stem(const at::Tensor& images) const;
  at::Tensor after_stem(const at::Tensor& stem, const Pass& pass) const;
  /// images `[B, 3, H, W]` float32 on the model's device -> logits `[B, K]` float32.
  at::Tensor logits(const at::Tensor& images, const Pass& pass) const;
  /// Adapter, head ("head.weight", "head.bias"), backbone ("backbone." + timm name) in this order.
  NamedTensors trainable() const;
  /// Running statistics of a trainable backbone ("backbone." + timm name).
  NamedTensors buffers() const;
  /// What the head was given and nothing changes.
  NamedTensors constants() const;
  /// What a file keeps: what is trainable, then the buffers, then the constants.
  NamedTensors state() const;
  int64_t trainable_parameters() const;
  int64_t total_parameters() const;
  int64_t classes() const;
  c10::Device device() const;
  /// For inference, before to(): what was trained whole is frozen from here on.
  void freeze_backbone();
  /// For inference: folds the adapter into the weights of a frozen backbone, in float32, where that
  /// can be; else nothing changes. Before to(), since the backbone may change its precision there.
  void merge_adapter();
  /// Moves every part; trainable ones stay in float32 and require gradients from then on. A
  /// trainable backbone computes in `precision` all the same.
  void to(c10::Device device, Precision precision);

 private:
  const Adapter* acting_adapter() const { return adapter_merged ? nullptr : adapter.get(); }
};

}  // namespace convpass
