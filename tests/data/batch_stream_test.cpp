#include "convpass/data/batch_stream.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "data/image_files.h"

namespace convpass {
namespace {

// Images that differ by index; counts how often each is decoded; `broken` cannot be.
class FakeDataset : public Dataset {
 public:
  explicit FakeDataset(int64_t size, int64_t broken = -1) : broken_(broken), decoded_(size) {
    for (int64_t i = 0; i < size; ++i) labels_.push_back(i % 5);
    classes_ = {"0", "1", "2", "3", "4"};
  }
  std::string name(int64_t index) const override { return "fake#" + std::to_string(index); }
  Image image(int64_t index) const override {
    ++decoded_[static_cast<size_t>(index)];
    if (index == broken_) throw FileError(name(index), "broken");
    Image image{6, 7, std::vector<uint8_t>(126)};
    for (size_t i = 0; i < 126; ++i)
      image.pixels[i] = static_cast<uint8_t>(i * 3 + static_cast<size_t>(index) * 11);
    return image;
  }
  void keep(const std::vector<int64_t>&) override {}
  int64_t decoded() const {
    int64_t sum = 0;
    for (const auto& count : decoded_) sum += count;
    return sum;
  }

 private:
  int64_t broken_;
  mutable std::vector<std::atomic<int64_t>> decoded_;
};

ImagePipeline pipeline_of(bool random) {
  InputConfig input;
  input.size = {8, 8};
  input.mean = {0.5, 0.5, 0.5};
  input.std = {0.5, 0.5, 0.5};
  AugmentConfig augment;
  if (random) {
    augment.crop = CropMode::random_resized;
    augment.flip = 0.5;
  }
  return {input, augment};
}

std::vector<Batch> take(BatchStream& stream, int64_t count) {
  std::vector<Batch> batches(static_cast<size_t>(count));
  for (Batch& batch : batches) EXPECT_TRUE(stream.next(batch));
  return batches;
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.indices, b.indices);
  EXPECT_TRUE(at::equal(a.images, b.images)) << a.step;
  EXPECT_TRUE(at::equal(a.labels, b.labels));
}

TEST(BatchStream, WorkersAndCacheDoNotChangeABit) {
  const FakeDataset dataset(23);
  for (bool random : {false, true}) {
    const ImagePipeline pipeline = pipeline_of(random);
    BatchStream one(dataset, pipeline, {.batch_size = 4, .workers = 1});
    const std::vector<Batch> wanted = take(one, 17);
    for (int64_t cache : {0, 700, 1 << 20}) {
      BatchStream three(dataset, pipeline, {.batch_size = 4, .workers = 3, .cache_bytes = cache});
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
                       {.batch_size = 4, .workers = 1, .cache_bytes = int64_t{1} << 20});
    take(stream, 60);
    EXPECT_EQ(dataset.decoded() - before, 24);
  }
}

TEST(BatchStream, CacheStaysInItsBudget) {
  const FakeDataset dataset(24);
  const ImagePipeline pipeline = pipeline_of(true);
  // Five decoded images of 126 bytes fit: of each further epoch 19 are decoded anew.
  BatchStream stream(dataset, pipeline, {.batch_size = 24, .workers = 1, .cache_bytes = 700});
  take(stream, 3);
  EXPECT_GE(dataset.decoded(), 24 + 2 * 19);
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

}  // namespace
}  // namespace convpass
