#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "convpass/data/batch_stream.h"
#include "convpass/data/dataset.h"
#include "convpass/data/image.h"
#include "convpass/data/pipeline.h"

namespace convpass {
namespace {

// 500x375 pixels, JPEG quality 85.
std::filesystem::path photo() {
  return std::filesystem::path(CONVPASS_SOURCE) / "tests/data/images/photo.jpg";
}

void decode_jpeg(benchmark::State& state) {
  std::ifstream in(photo(), std::ios::binary);
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(in), {}};
  for (auto _ : state) benchmark::DoNotOptimize(decode_image(bytes));
}
BENCHMARK(decode_jpeg)->Unit(benchmark::kMillisecond);

void resize_to_224(benchmark::State& state) {
  const Image image = read_image(photo());
  const auto interpolation = static_cast<Interpolation>(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(resize(image, 224, 224, interpolation));
}
BENCHMARK(resize_to_224)->ArgName("bilinear")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

InputConfig input_224() {
  InputConfig input;
  input.size = {224, 224};
  input.mean = input.std = {0.5, 0.5, 0.5};
  return input;
}

void normalise_224(benchmark::State& state) {
  const ImagePipeline pipeline(input_224(), {});
  const Image image = pipeline.evaluation_view(read_image(photo()));
  std::vector<float> out(3 * 224 * 224);
  for (auto _ : state) {
    pipeline.normalise(image, out.data());
    benchmark::ClobberMemory();
  }
}
BENCHMARK(normalise_224)->Unit(benchmark::kMillisecond);

// Each iteration another draw for an image that has the input size.
void rand_augment_224(benchmark::State& state) {
  AugmentConfig augment;
  augment.rand_augment = "rand-m7-mstd0.5-inc1";
  if (state.range(0) != 0) augment.rand_augment += "-p1";
  const ImagePipeline pipeline(input_224(), augment);
  const Image image = pipeline.evaluation_view(read_image(photo()));
  uint64_t key = 0;
  for (auto _ : state) benchmark::DoNotOptimize(pipeline.training_view(image, Rng(key++)));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(rand_augment_224)->ArgName("always")->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

// Sixty-four names of one photo: batches of 16 with random_resized crops and flips.
void batch_stream(benchmark::State& state) {
  std::string folder = (std::filesystem::temp_directory_path() / "convpass-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return state.SkipWithError("no temporary folder");
  const std::filesystem::path root = folder;
  std::filesystem::create_directory(root / "class");
  for (int i = 0; i < 64; ++i) {
    std::filesystem::create_symlink(photo(), root / "class" / (std::to_string(i) + ".jpg"));
  }
  AugmentConfig augment;
  augment.crop = CropMode::random_resized;
  augment.flip = 0.5;
  const ImagePipeline pipeline(input_224(), augment);
  const auto dataset = open_dataset({FolderSource{root}}, {}, 0, "bench");
  {
    const auto budget = std::make_shared<CacheBudget>(state.range(1) << 20);
    BatchStream stream(*dataset, pipeline,
                       {.batch_size = 16,
                        .workers = static_cast<int>(state.range(0)),
                        .images = std::make_shared<ImageCache>(dataset->size(), budget)});
    Batch batch;
    for (int i = 0; i < 8; ++i) stream.next(batch);
    for (auto _ : state) stream.next(batch);
  }
  state.SetItemsProcessed(state.iterations() * 16);
  std::filesystem::remove_all(root);
}
BENCHMARK(batch_stream)
    ->ArgNames({"workers", "cache_mb"})
    ->Args({1, 0})
    ->Args({2, 0})
    ->Args({1, 256})
    ->Args({2, 256})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace convpass
