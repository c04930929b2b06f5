#include "convpass/data/batch_stream.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "data/fake_dataset.h"
#include "data/image_files.h"

namespace convpass {
namespace {

TEST(BatchStream, WorkersAndCacheDoNotChangeABit) {
  const FakeDataset dataset(23);
  for (bool random : {false, true}) {
    const ImagePipeline pipeline = pipeline_of(random);
    BatchStream one(dataset, pipeline, {.batch_size = 4, .workers = 1});
    const std::vector<Batch> wanted = take(one, 17);
    for (int64_t cache : {0, 700, 1 << 20}) {
      BatchStream three(dataset, pipeline,
                        {.batch_size = 4, .workers = 3, .images = cache_of(dataset, cache)});
      const std::vector<Batch> got = take(three, 17);
      for (size_t i = 0; i < got.size(); ++i) expect_equal(got[i], wanted[i]);
    }
  }
}

TEST(BatchStream, EpochsCoverEachSampleOnceInNewOrders) {
  const FakeDataset dataset(24);
  const ImagePipeline pipeline = pipeline_of(false);
  BatchStream stream(dataset, pipeline, {.batch_size = 4, .workers = 2});
  ASSERT_EQ(stream.steps_per_epoch(), 6);
  std::vector<std::vector<int64_t>> orders;
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> order;
    for (const Batch& batch : take(stream, 6)) {
      order.insert(order.end(), batch.indices.begin(), batch.indices.end());
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(batch.labels[static_cast<int64_t>(i)].item<int64_t>(), batch.indices[i] % 5);
      }
    }
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 24; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
}

TEST(BatchStream, SeedsGiveOtherOrders) {
  const FakeDataset dataset(24);
  const ImagePipeline pipeline = pipeline_of(false);
  BatchStream a(dataset, pipeline, {.batch_size = 24, .seed = 1});
  BatchStream b(dataset, pipeline, {.batch_size = 24, .seed = 2});
  EXPECT_NE(take(a, 1)[0].indices, take(b, 1)[0].indices);
}

TEST(BatchStream, SeekEqualsRunningThrough) {
  const FakeDataset dataset(23);
  const ImagePipeline pipeline = pipeline_of(true);
  BatchStream through(dataset, pipeline, {.batch_size = 4, .workers = 1});
  const std::vector<Batch> wanted = take(through, 30);
  BatchStream stream(dataset, pipeline, {.batch_size = 4, .workers = 3});
  for (int64_t step : {13, 0, 29, 29, 5, 4}) {
    stream.seek(step);
    Batch batch;
    ASSERT_TRUE(stream.next(batch));
    expect_equal(batch, wanted[static_cast<size_t>(step)]);
  }
}

TEST(BatchStream, TrainingDropsThePartialBatchButNotASmallSet) {
  const FakeDataset dataset(11);
  const ImagePipeline pipeline = pipeline_of(false);
  BatchStream stream(dataset, pipeline, {.batch_size = 4});
  EXPECT_EQ(stream.steps_per_epoch(), 2);
  for (const Batch& batch : take(stream, 5)) EXPECT_EQ(batch.images.size(0), 4);
  BatchStream small(dataset, pipeline, {.batch_size = 64});
  EXPECT_EQ(small.steps_per_epoch(), 1);
  for (const Batch& batch : take(small, 3)) EXPECT_EQ(batch.images.size(0), 11);
}

TEST(BatchStream, EvaluationIsOnePassInOrderOfUnaugmentedViews) {
  const FakeDataset dataset(11);
  const ImagePipeline random = pipeline_of(true), plain = pipeline_of(false);
  BatchStream stream(dataset, random, {.batch_size = 4, .workers = 3, .training = false});
  EXPECT_EQ(stream.steps_per_epoch(), 3);
  const std::vector<Batch> batches = take(stream, 3);
  EXPECT_EQ(batches[2].indices, (std::vector<int64_t>{8, 9, 10}));
  EXPECT_EQ(batches[2].images.sizes(), (std::vector<int64_t>{3, 3, 8, 8}));
  Batch batch;
  EXPECT_FALSE(stream.next(batch));
  EXPECT_FALSE(stream.next(batch));
  std::vector<float> wanted(3 * 8 * 8);
  plain.normalise(plain.evaluation_view(dataset.image(9)), wanted.data());
  const at::Tensor got = batches[2].images[1].contiguous();
  EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), got.const_data_ptr<float>()));
  stream.seek(1);
  ASSERT_TRUE(stream.next(batch));
  expect_equal(batch, batches[1]);
}

TEST(BatchStream, CacheDecodesEachImageOnce) {
  const FakeDataset dataset(24);
  for (bool random : {false, true}) {
    const ImagePipeline pipeline = pipeline_of(random);
    const int64_t before = dataset.decoded();
    BatchStream stream(dataset, pipeline,
                       {.batch_size = 4, .workers = 1, .images = cache_of(dataset, 1 << 20)});
    take(stream, 60);
    EXPECT_EQ(dataset.decoded() - before, 24);
  }
}

TEST(BatchStream, CacheStaysInItsBudget) {
  const FakeDataset dataset(24);
  const ImagePipeline pipeline = pipeline_of(true);
  // Five decoded images of 126 bytes fit: of each further epoch 19 are decoded anew.
  BatchStream stream(dataset, pipeline,
                     {.batch_size = 24, .workers = 1, .images = cache_of(dataset, 700)});
  take(stream, 3);
  EXPECT_GE(dataset.decoded(), 24 + 2 * 19);
}

TEST(BatchStream, OneCacheServesOneStreamAfterAnother) {
  const FakeDataset dataset(24);
  const ImagePipeline pipeline = pipeline_of(false);
  const auto cache = cache_of(dataset, 1 << 20);
  for (int pass = 0; pass < 3; ++pass) {
    BatchStream stream(dataset, pipeline, {.batch_size = 4, .training = false, .images = cache});
    take(stream, 6);
  }
  EXPECT_EQ(dataset.decoded(), 24);
}

TEST(BatchStream, LeavesOutThePixelsOfSamplesThatAreKnown) {
  const FakeDataset dataset(12);
  const ImagePipeline pipeline = pipeline_of(true);
  const std::vector<Batch> wanted = [&] {
    BatchStream whole(dataset, pipeline, {.batch_size = 4});
    return take(whole, 3);
  }();  // which ends its workers
  const int64_t before = dataset.decoded();
  StreamOptions options{.batch_size = 4};
  options.known = [](int64_t sample) { return sample % 3 == 0; };
  BatchStream stream(dataset, pipeline, options);
  int64_t blanks = 0;
  for (const Batch& full : wanted) {
    Batch batch;
    ASSERT_TRUE(stream.next(batch));
    EXPECT_EQ(batch.indices, full.indices);
    EXPECT_TRUE(at::equal(batch.labels, full.labels));
    for (size_t row = 0; row < batch.indices.size(); ++row) {
      EXPECT_FALSE(full.blank(row));
      EXPECT_EQ(batch.blank(row), batch.indices[row] % 3 == 0);
      blanks += batch.blank(row);
      if (batch.blank(row)) continue;
      const auto at = static_cast<int64_t>(row);
      EXPECT_TRUE(at::equal(batch.images[at], full.images[at]));
    }
  }
  EXPECT_EQ(blanks, 4);
  EXPECT_LT(dataset.decoded() - before, 12 + 8);  // batches are made ahead
}

TEST(BatchStream, RethrowsABrokenImageWhenItsBatchIsDue) {
  const FakeDataset dataset(12, /*broken=*/6);
  const ImagePipeline pipeline = pipeline_of(false);
  for (int workers : {1, 3}) {
    BatchStream stream(dataset, pipeline, {.batch_size = 4, .workers = workers, .training = false});
    Batch batch;
    ASSERT_TRUE(stream.next(batch));
    EXPECT_EQ(test::message_of([&] { stream.next(batch); }), "fake#6: broken");
    ASSERT_TRUE(stream.next(batch));
    EXPECT_EQ(batch.step, 2);
    EXPECT_FALSE(stream.next(batch));
  }
}

TEST(BatchStream, StopsCleanlyInTheMiddle) {
  const FakeDataset dataset(50);
  const ImagePipeline pipeline = pipeline_of(true);
  for (int i = 0; i < 20; ++i) {
    BatchStream stream(dataset, pipeline, {.batch_size = 8, .workers = 3});
    if (i % 2) take(stream, i / 4);
    if (i % 3) stream.seek(i);
  }
}

TEST(BatchStream, MakesOnlyAFewBatchesAhead) {
  const FakeDataset dataset(1000);
  const ImagePipeline pipeline = pipeline_of(false);
  BatchStream stream(dataset, pipeline, {.batch_size = 10, .workers = 2});
  take(stream, 4);
  stream.seek(500);
  take(stream, 1);
  // Steps 0 to 3 and 500 were asked for; at most three lay ready or were begun on each side of the
  // seek.
  EXPECT_LE(dataset.decoded(), 10 * (4 + 3 + 1 + 3));
}

TEST(BatchStream, ReplaysOrderAndViewsAfterSomeEpochs) {
  const FakeDataset dataset(10);
  const ImagePipeline pipeline = augmented(CropMode::inception, 8);
  BatchStream stream(dataset, pipeline, {.batch_size = 5, .replay_epochs = 3});
  const std::vector<Batch> batches = take(stream, 10);
  for (size_t i : {6u, 7u, 8u, 9u}) {
    EXPECT_EQ(batches[i].step, static_cast<int64_t>(i));
    EXPECT_EQ(batches[i].replayed, static_cast<int64_t>(i) - 6);
    EXPECT_EQ(batches[i].indices, batches[i - 6].indices);
    EXPECT_TRUE(at::equal(batches[i].images, batches[i - 6].images));
  }
  EXPECT_NE(batches[0].indices, batches[2].indices);
  EXPECT_FALSE(at::equal(batches[0].images, batches[2].images));
}

TEST(BatchStream, KeepsThePartialBatchWhenAsked) {
  const FakeDataset dataset(11);
  const ImagePipeline pipeline = pipeline_of(false);
  BatchStream stream(dataset, pipeline, {.batch_size = 4, .drop_last = false});
  EXPECT_EQ(stream.steps_per_epoch(), 3);
  std::vector<int64_t> order;
  for (const Batch& batch : take(stream, 3))
    order.insert(order.end(), batch.indices.begin(), batch.indices.end());
  EXPECT_EQ(order, epoch_order(42, 0, 11));
  EXPECT_EQ(take(stream, 1)[0].images.size(0), 4);
}

TEST(BatchStream, DrawsASmallSetWithReplacement) {
  const FakeDataset dataset(10);
  const ImagePipeline pipeline = augmented(CropMode::random, 8);
  const StreamOptions options{.batch_size = 64, .small_set = SmallSet::with_replacement};
  BatchStream stream(dataset, pipeline, options);
  EXPECT_EQ(stream.steps_per_epoch(), 1);
  const std::vector<Batch> batches = take(stream, 50);
  std::vector<int> counts(10);
  for (const Batch& batch : batches) {
    ASSERT_EQ(batch.images.size(0), 64);
    for (int64_t index : batch.indices) ++counts[static_cast<size_t>(index)];
  }
  for (int count : counts) EXPECT_NEAR(count, 320, 5 * std::sqrt(320 * 0.9));
  EXPECT_NE(batches[0].indices, batches[1].indices);
  // The copies of a sample are counted and see views of their own.
  const Batch& batch = batches[0];
  std::vector<at::Tensor> views;
  for (size_t i = 0; i < batch.indices.size(); ++i) {
    if (batch.indices[i] != batch.indices[0]) continue;
    EXPECT_EQ(batch.copies[i], static_cast<int64_t>(views.size()));
    views.push_back(batch.images[static_cast<int64_t>(i)]);
  }
  ASSERT_GE(views.size(), 3u);
  EXPECT_FALSE(at::equal(views[0], views[1]) && at::equal(views[1], views[2]));
  stream.seek(7);
  expect_equal(take(stream, 1)[0], batches[7]);
  // A set that fills a batch is shuffled as ever.
  BatchStream whole(dataset, pipeline, {.batch_size = 10, .small_set = SmallSet::with_replacement});
  EXPECT_EQ(take(whole, 1)[0].indices, epoch_order(42, 0, 10));
}

TEST(BatchOrder, RepeatsImagesAsTimmsSamplerInOneProcess) {
  std::ifstream file(std::filesystem::path(CONVPASS_TEST_DATA) / "timm_training.json");
  const nlohmann::json cases = nlohmann::json::parse(file);  // which the loop refers into
  for (const auto& wanted : cases.at("repeats")) {
    const auto size = wanted.at("size").get<int64_t>();
    const auto repeats = wanted.at("repeats").get<int64_t>();
    auto images = wanted.at("images").get<std::vector<int64_t>>();
    // timm's sampler rounds without repeats too; a plain shuffle here leaves no image out.
    if (repeats == 1) {
      images.resize(static_cast<size_t>(size));
      std::iota(images.begin(), images.end(), 0);
    }
    BatchOrder order(size, {.batch_size = 32, .drop_last = false, .repeats = repeats});
    EXPECT_EQ(order.epoch_size(), static_cast<int64_t>(images.size()));
    for (int64_t epoch : {0, 1}) {
      const std::vector<int64_t> shuffled = epoch_order(42, epoch, size);
      size_t place = 0;
      for (int64_t step = 0; step < order.steps_per_epoch(); ++step) {
        const BatchSamples samples = order.samples(epoch * order.steps_per_epoch() + step);
        for (size_t row = 0; row < samples.indices.size(); ++row, ++place) {
          ASSERT_LT(place, images.size());
          EXPECT_EQ(samples.indices[row], shuffled[static_cast<size_t>(images[place])]);
          EXPECT_EQ(samples.copies[row], static_cast<int64_t>(place) % repeats);
        }
      }
      EXPECT_EQ(place, images.size());
    }
  }
}

}  // namespace
}  // namespace convpass
