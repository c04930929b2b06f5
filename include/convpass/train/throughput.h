#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "convpass/train/recipe.h"

namespace convpass {

/// Times training steps and inference on synthetic images and returns the JSON line of `convpass
/// bench`:
/// {"images_per_second","step_ms","forward_ms","inference_images_per_second","peak_memory_bytes",
///  "trainable_parameters",...}; times are medians over `steps` after a warm-up. Inference is that
/// of the frozen model, the adapter folded into the backbone where that can be
/// ("adapter_merged"). `details` adds
/// - "latency_ms", "latency_p95_ms": inference on one image, over "latency_images" of them;
/// - "adapter_share": what of a training step is the adapter's own. 1 - t0/t, where t is the step
/// and
///   t0 the same step on the frozen backbone with an adapter that adds one trainable zero where
///   this one begins, so that gradients go equally far down; of a backbone that trains whole, what
///   that costs beyond t0. Median over `steps` pairs that run in turn; null where nothing but a
///   head trains or nothing can stand beside the backbone;
/// - "adapter_file_bytes": the size of the file in which a run keeps what it trained.
std::string measure_throughput(const Recipe& recipe, int64_t steps, bool details = false);

/// Times decoding and augmentation alone: `steps` training batches of data.train after a warm-up of
/// one a worker, made by train.workers threads as in a run. Size, mean and std that the recipe
/// leaves to the backbone are 224 (or backbone.image_size) and ImageNet's. Returns the JSON line of
/// `convpass bench --loader`: {"loader_images_per_second","workers","batch_size","images",...}.
/// Errors: of the data and the recipe; Error for images that cannot be read.
std::string measure_loader(const Recipe& recipe, int64_t steps);

/// Peak resident memory of this process (CPU) or of the device (CUDA), bytes.
int64_t peak_memory_bytes(const c10::Device& device);

}  // namespace convpass
