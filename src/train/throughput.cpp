#include "convpass/train/throughput.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "convpass/core/rng.h"
#include "convpass/train/build.h"
#include "convpass/train/optimizer.h"
#include "src/train/splits.h"

namespace convpass {
namespace {

constexpr int64_t kWarmup = 2;
constexpr int64_t kClasses = 100;

double milliseconds(const c10::Device& device, const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  if (device.is_cuda()) at::detail::getCUDAHooks().deviceSynchronize(device.index());
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Median time of `work` over `steps` runs after a warm-up.
double measure(const c10::Device& device, int64_t steps, const std::function<void(int64_t)>& work) {
  std::vector<double> times;
  for (int64_t i = 0; i < kWarmup + steps; ++i) {
    const double time = milliseconds(device, [&] { work(i); });
    if (i >= kWarmup) times.push_back(time);
  }
  return median(times);
}

}  // namespace

std::string measure_throughput(const Recipe& recipe, int64_t steps) {
  TunedModel model = build_model(recipe, kClasses);
  const c10::Device device = model.device();
  const auto size = model.backbone->image_size();
  const int64_t batch = recipe.train.batch_size;
  at::Generator generator = seeded_generator(0);
  at::Tensor images = at::empty({batch, 3, size[0], size[1]}).normal_(0, 1, generator).to(device);
  at::Tensor labels = at::empty({batch}, at::kLong).random_(0, kClasses, generator).to(device);
  Optimizer optimizer(recipe.optimizer, model.trainable());

  auto forward = [&](int64_t step) {
    const Pass pass{
        seeded_generator(random_key(0, static_cast<uint64_t>(step), 0, Purpose::model))};
    return at::cross_entropy_loss(model.logits(images, pass), labels);
  };
  const double step_ms = measure(device, steps, [&](int64_t step) {
    optimizer.zero_grad();
    forward(step).backward();
    optimizer.clip();
    optimizer.step(recipe.optimizer.lr);
  });
  const int64_t peak = peak_memory_bytes(device);
  const double forward_ms = measure(device, steps, [&](int64_t step) { forward(step); });
  const double inference_ms = measure(device, steps, [&](int64_t) {
    at::NoGradGuard no_grad;
    model.logits(images, Pass{});
  });
  const double count = static_cast<double>(batch);
  return nlohmann::ordered_json{
      {"backbone", model.identity.name},
      {"image_size", {size[0], size[1]}},
      {"batch_size", batch},
      {"precision", kPrecisionNames[static_cast<size_t>(recipe.train.precision)]},
      {"device", device.str()},
      {"threads", at::get_num_threads()},
      {"images_per_second", 1000 * count / step_ms},
      {"step_ms", step_ms},
      {"forward_ms", forward_ms},
      {"inference_images_per_second", 1000 * count / inference_ms},
      {"inference_ms", inference_ms},
      {"peak_memory_bytes", peak},
      {"trainable_parameters", model.trainable_parameters()},
      {"total_parameters", model.total_parameters()}}
      .dump();
}

std::string measure_loader(const Recipe& recipe, int64_t steps) {
  InputConfig input = recipe.input;
  const std::vector<int64_t>& size = recipe.backbone.image_size;
  if (input.size[0] == 0)
    input.size = size.empty() ? std::array<int64_t, 2>{224, 224}
                              : std::array<int64_t, 2>{size.front(), size.back()};
  const Normalization usual;
  if (input.mean.empty()) input.mean.assign(usual.mean.begin(), usual.mean.end());
  if (input.std.empty()) input.std.assign(usual.std.begin(), usual.std.end());
  const auto dataset =
      open_dataset(*recipe.data.train, {.exif_orientation = input.exif_orientation},
                   recipe.data.classes, "data.train");
  const ImagePipeline pipeline(input, recipe.augment);
  const int workers = worker_count(recipe.train);
  BatchStream stream(*dataset, pipeline,
                     {.batch_size = recipe.train.batch_size,
                      .seed = static_cast<uint64_t>(recipe.train.seed),
                      .workers = workers,
                      .cache_bytes = recipe.data.cache_mb << 20,
                      .drop_last = recipe.train.drop_last,
                      .small_set = recipe.train.small_set,
                      .repeats = recipe.augment.repeated});
  Batch batch;
  for (int i = 0; i < workers; ++i) stream.next(batch);
  int64_t images = 0;
  const double seconds = 1e-3 * milliseconds(at::kCPU, [&] {
                           for (int64_t i = 0; i < steps; ++i) {
                             stream.next(batch);
                             images += static_cast<int64_t>(batch.indices.size());
                           }
                         });
  return nlohmann::ordered_json{{"loader_images_per_second", static_cast<double>(images) / seconds},
                                {"workers", workers},
                                {"batch_size", recipe.train.batch_size},
                                {"images", images},
                                {"seconds", seconds},
                                {"image_size", {input.size[0], input.size[1]}},
                                {"peak_memory_bytes", peak_memory_bytes(at::kCPU)}}
      .dump();
}

int64_t peak_memory_bytes(const c10::Device& device) {
  if (device.is_cuda()) {
    const auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(device.index());
    return stats.reserved_bytes[0].peak;  // index 0 is the aggregate over all pools
  }
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace convpass
