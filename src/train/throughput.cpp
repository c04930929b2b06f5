#include "convpass/train/throughput.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "convpass/core/rng.h"
#include "convpass/train/build.h"
#include "convpass/train/optimizer.h"
#include "src/train/memory.h"
#include "src/train/splits.h"

namespace convpass {
namespace {

constexpr int64_t kWarmup = 2;
constexpr int64_t kUsualClasses = 100;
constexpr int64_t kSingles = 20;  // the fewest of which one is the slowest 5 %

/// Of the recipe's own head where it names them, so that what is timed is what would train.
int64_t classes_of(const Recipe& recipe) {
  if (recipe.head.type == HeadType::cosine) return std::ssize(class_texts(recipe).classes);
  const auto named = static_cast<int64_t>(recipe.data.class_names.size());
  const int64_t classes = std::max(recipe.data.classes, named);
  return classes > 0 ? classes : kUsualClasses;
}

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

/// Times of `steps` runs of `work` after a warm-up.
std::vector<double> times_of(const c10::Device& device, int64_t steps,
                             const std::function<void(int64_t)>& work) {
  std::vector<double> times;
  for (int64_t i = 0; i < kWarmup + steps; ++i) {
    const double time = milliseconds(device, [&] { work(i); });
    if (i >= kWarmup) times.push_back(time);
  }
  return times;
}

double measure(const c10::Device& device, int64_t steps, const std::function<void(int64_t)>& work) {
  return median(times_of(device, steps, work));
}

/// What a measurement works on, the same for any model of the recipe, and a training step on it.
struct Synthetic {
  const Recipe& recipe;
  at::Tensor images, labels;

  Synthetic(const Recipe& of, const TunedModel& model) : recipe(of) {
    const auto size = model.backbone->image_size();
    const int64_t batch = of.train.batch_size;
    at::Generator generator = seeded_generator(0);
    images = at::empty({batch, 3, size[0], size[1]}).normal_(0, 1, generator).to(model.device());
    labels =
        at::empty({batch}, at::kLong).random_(0, model.classes(), generator).to(model.device());
  }
  at::Tensor loss(const TunedModel& model, int64_t step) const {
    const Pass pass{
        seeded_generator(random_key(0, static_cast<uint64_t>(step), 0, Purpose::model))};
    return at::cross_entropy_loss(model.logits(images, pass), labels);
  }
  void train(const TunedModel& model, Optimizer& optimizer, int64_t step) const {
    optimizer.zero_grad();
    loss(model, step).backward();
    optimizer.clip();
    optimizer.step(recipe.optimizer.lr);
  }
};

/// Stands where another adapter begins and adds one trainable zero: gradients go as far down the
/// backbone as with that adapter, and nothing else is computed. Without another, in the first
/// block.
class PassThrough final : public Adapter {
 public:
  PassThrough(const Adapter* other, const c10::Device& device)
      : zero_(at::zeros({1, 1, 1}, at::TensorOptions(device)).set_requires_grad(true)) {
    if (other == nullptr) return;
    while (!other->touches(block_)) ++block_;
    auto stands = [&](Site site) { return other->acts(block_, site) || other->adds(block_, site); };
    const bool within = other->changes_layers(block_) || other->prompts() > 0;
    if (!within && !stands(Site::attn)) site_ = Site::mlp;
  }
  bool acts(int64_t block, Site site) const override { return block == block_ && site == site_; }
  at::Tensor beside(int64_t, Site, const at::Tensor& normed, const TokenLayout&,
                    const Pass&) const override {
    return zero_.to(normed.scalar_type()).expand_as(normed);
  }
  NamedTensors parameters() const override { return {{"pass_through", zero_}}; }
  void to(c10::Device device) override {
    zero_ = zero_.detach().to(device).set_requires_grad(true);
  }

 private:
  at::Tensor zero_;
  int64_t block_ = 0;
  Site site_ = Site::attn;
};

/// What the step of `model` costs beyond the one whose adapter does nothing (PassThrough, backbone
/// frozen): `steps` pairs, one right after the other. Null for a model without an adapter or blocks
/// to put one beside.
void add_share(const TunedModel& model, const Synthetic& work, Optimizer& optimizer, int64_t steps,
               nlohmann::ordered_json& result) {
  for (const char* key : {"adapter_share", "paired_step_ms", "idle_step_ms"}) result[key] = nullptr;
  if (model.backbone->depth() == 0 || (!model.adapter && !model.backbone_trainable)) return;
  Recipe frozen = work.recipe;
  frozen.adapter = NoAdapter{};
  frozen.backbone.trainable = false;
  TunedModel idle = build_model(frozen, classes_of(work.recipe));
  idle.adapter = std::make_unique<PassThrough>(model.adapter.get(), idle.device());
  Optimizer idle_optimizer(work.recipe.optimizer, idle.trainable());
  std::vector<double> with, without, shares;
  for (int64_t step = 0; step < kWarmup + steps; ++step) {
    const double ours = milliseconds(model.device(), [&] { work.train(model, optimizer, step); });
    const double idles =
        milliseconds(model.device(), [&] { work.train(idle, idle_optimizer, step); });
    if (step < kWarmup) continue;
    with.push_back(ours);
    without.push_back(idles);
    shares.push_back(1 - idles / ours);
  }
  result["adapter_share"] = median(shares);
  result["paired_step_ms"] = median(with);
  result["idle_step_ms"] = median(without);
}

/// Milliseconds that the dense layers of a ViT's blocks take alone in a training step in which they
/// are frozen: forward and gradient to the input, for every token in every block.
double dense_ms(const Vit& vit, const Recipe& recipe, const c10::Device& device, int64_t steps) {
  at::NoGradGuard no_grad;
  const auto options = at::TensorOptions(device).dtype(dtype_of(recipe.train.precision));
  const int64_t dim = vit.config().width, hidden = vit.config().hidden;
  const int64_t rows = recipe.train.batch_size * vit.layout().tokens();
  const int64_t up = vit.config().activation == Activation::swiglu ? 2 * hidden : hidden;
  struct Layer {
    at::Tensor weight, bias, in, out;
  };
  std::vector<Layer> layers;
  for (const auto& [out, in] : {std::pair{3 * dim, dim}, {dim, dim}, {up, dim}, {dim, hidden}})
    layers.push_back({at::randn({out, in}, options), at::zeros({out}, options),
                      at::randn({rows, in}, options), at::randn({rows, out}, options)});
  const double block = measure(device, steps, [&](int64_t) {
    for (const Layer& layer : layers) at::linear(layer.in, layer.weight, layer.bias);
    for (const Layer& layer : layers) at::mm(layer.out, layer.weight);
  });
  return static_cast<double>(vit.config().depth) * block;
}

/// Bytes of the file in which a run would keep what it trained.
int64_t adapter_file_bytes(const Recipe& recipe, const TunedModel& model) {
  std::vector<std::string> classes;
  for (int64_t i = 0; i < model.classes(); ++i) classes.push_back(std::to_string(i));
  // In a folder of this process's own, gone afterwards whatever happens.
  struct Folder {
    std::filesystem::path path =
        std::filesystem::temp_directory_path() / ("convpass-bench-" + std::to_string(getpid()));
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } folder;
  std::filesystem::create_directories(folder.path);
  const std::filesystem::path file = folder.path / "adapter.safetensors";
  InputConfig input = recipe.input;
  input.size = model.backbone->image_size();
  save_adapter(file, adapter_file_of(recipe, model, input, classes));
  return static_cast<int64_t>(std::filesystem::file_size(file));
}

/// Value that a share `p` of the sorted values does not exceed (nearest rank).
double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(p * static_cast<double>(values.size()));
  return values[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

/// What a user of the trained model waits for.
struct Inference {
  double batch_ms = 0;
  std::vector<double> singles;  ///< of one image each, milliseconds
  int64_t peak = 0;             ///< bytes
  bool merged = false;
};

/// Of a model that is gone when training is measured.
Inference measure_inference(const Recipe& recipe, int64_t steps, bool one_by_one) {
  at::NoGradGuard no_grad;
  const TunedModel model = build_for_inference(recipe, classes_of(recipe));
  const Synthetic work(recipe, model);
  const c10::Device device = model.device();
  auto times = [&](const at::Tensor& images, int64_t count) {
    return times_of(device, count, [&](int64_t) { model.logits(images, Pass{}); });
  };
  Inference result;
  result.merged = model.adapter_merged;
  result.batch_ms = median(times(work.images, steps));
  if (one_by_one)
    result.singles = times(work.images.narrow(0, 0, 1).contiguous(), std::max(kSingles, steps));
  result.peak = peak_memory_bytes(device);
  return result;
}

}  // namespace

std::string measure_throughput(const Recipe& recipe, int64_t steps, bool details) {
  // The lighter work first: peak memory only ever grows.
  const Inference inference = measure_inference(recipe, steps, details);
  TunedModel model = build_for_training(recipe, classes_of(recipe));
  const c10::Device device = model.device();
  const auto size = model.backbone->image_size();
  const int64_t batch = recipe.train.batch_size;
  const Synthetic work(recipe, model);
  Optimizer optimizer(recipe.optimizer, model.trainable());

  const double step_ms =
      measure(device, steps, [&](int64_t step) { work.train(model, optimizer, step); });
  const int64_t peak = peak_memory_bytes(device);
  const double forward_ms = measure(device, steps, [&](int64_t step) { work.loss(model, step); });
  const double count = static_cast<double>(batch);
  nlohmann::ordered_json result{
      {"backbone", model.identity.name},
      {"image_size", {size[0], size[1]}},
      {"batch_size", batch},
      {"precision", kPrecisionNames[static_cast<size_t>(recipe.train.precision)]},
      {"device", device.str()},
      {"threads", at::get_num_threads()},
      {"images_per_second", 1000 * count / step_ms},
      {"step_ms", step_ms},
      {"forward_ms", forward_ms},
      {"inference_images_per_second", 1000 * count / inference.batch_ms},
      {"inference_ms", inference.batch_ms},
      {"peak_memory_bytes", peak},
      {"inference_peak_memory_bytes", inference.peak},
      {"adapter_merged", inference.merged},
      {"trainable_parameters", model.trainable_parameters()},
      {"total_parameters", model.total_parameters()}};
  if (details) {
    result["latency_ms"] = median(inference.singles);
    result["latency_p95_ms"] = percentile(inference.singles, 0.95);
    result["latency_images"] = inference.singles.size();
    add_share(model, work, optimizer, steps, result);
    if (const auto* vit = dynamic_cast<const Vit*>(model.backbone.get()))
      result["dense_ms"] = dense_ms(*vit, recipe, device, steps);
    result["adapter_file_bytes"] = adapter_file_bytes(recipe, model);
  }
  return result.dump();
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
  const auto dataset = open_split(recipe, Split::train, recipe.data.classes);
  const ImagePipeline pipeline(input, recipe.augment);
  const StreamOptions options = stream_options(recipe);  // which keep nothing of the images
  const int workers = options.workers;
  BatchStream stream(*dataset, pipeline, options);
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
