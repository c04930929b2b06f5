// Several views of an image in one batch.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "data/fake_dataset.h"
#include "data/image_files.h"

namespace convpass {
namespace {

at::Tensor pixels_of(const at::Tensor& view, double mean) { return view * 0.25 + mean; }

TEST(BatchStream, FirstViewOfManyIsTheOnlyOneOfOne) {
  const FakeDataset dataset(11);
  const ImagePipeline first = pipeline_of(true), second = augmented(CropMode::inception, 12);
  BatchStream one(dataset, first, {.batch_size = 4});
  BatchStream two(dataset, {{.pipeline = &first}, {.pipeline = &second, .draw = 1}},
                  {.batch_size = 4, .workers = 2});
  const std::vector<Batch> wanted = take(one, 5), got = take(two, 5);
  for (size_t i = 0; i < got.size(); ++i) {
    expect_equal(got[i], wanted[i]);
    ASSERT_EQ(got[i].views.size(), 2u);
    EXPECT_TRUE(got[i].images.is_same(got[i].views[0]));
    EXPECT_EQ(got[i].views[1].sizes(), (std::vector<int64_t>{4, 3, 12, 12}));
  }
}

TEST(BatchStream, KeyOfTheOnlyViewIsTheOldOne) {
  EXPECT_EQ(view_key(42, 3, 17), random_key(42, 3, 17, Purpose::augment));
  EXPECT_NE(view_key(42, 3, 17, 1), view_key(42, 3, 17));
  EXPECT_NE(view_key(42, 3, 17, 0, 1), view_key(42, 3, 17));
  EXPECT_NE(view_key(42, 3, 17, 0, 1), view_key(42, 3, 17, 1, 0));
}

// One size, two normalisations: the teacher sees exactly the student's pixels.

TEST(BatchStream, ViewsOfOneDrawSeeTheSamePixels) {
  const FakeDataset dataset(12);
  for (CropMode crop : {CropMode::random, CropMode::random_resized, CropMode::inception}) {
    const ImagePipeline student = augmented(crop, 8, 0.5), teacher = augmented(crop, 8, 0.2);
    BatchStream stream(
        dataset,
        {{.pipeline = &student}, {.pipeline = &teacher}, {.pipeline = &teacher, .draw = 1}},
        {.batch_size = 12});
    for (const Batch& batch : take(stream, 3)) {
      const at::Tensor pixels = pixels_of(batch.views[0], 0.5);
      EXPECT_LT((pixels - pixels_of(batch.views[1], 0.2)).abs().max().item<double>(), 1e-6);
      EXPECT_GT((pixels - pixels_of(batch.views[2], 0.2)).abs().max().item<double>(), 0.1);
    }
  }
}

// Two sizes: the same part of a gradient, so the same direction and the same mean colour, to one
// pixel of the smaller (240 / 30 levels) where the offset is a whole number of pixels.

TEST(BatchStream, ViewsOfOneDrawSeeTheSamePartInTwoSizes) {
  class Gradients : public Dataset {
   public:
    Gradients() {
      labels_.assign(8, 0);
      classes_ = {"0"};
    }
    std::string name(int64_t) const override { return "gradient"; }
    Image image(int64_t) const override {
      Image image{100, 120, {}};
      for (int64_t y = 0; y < 100; ++y) {
        for (int64_t x = 0; x < 120; ++x) {
          image.pixels.insert(image.pixels.end(),
                              {static_cast<uint8_t>(2 * x), static_cast<uint8_t>(2 * y), 0});
        }
      }
      return image;
    }
    void keep(const std::vector<int64_t>&) override {}
  };
  const Gradients dataset;
  for (CropMode crop : {CropMode::random, CropMode::random_resized, CropMode::inception}) {
    const ImagePipeline small = augmented(crop, 24), large = augmented(crop, 48);
    BatchStream stream(dataset, {{.pipeline = &small}, {.pipeline = &large}}, {.batch_size = 8});
    for (const Batch& batch : take(stream, 5)) {
      const at::Tensor a = pixels_of(batch.views[0], 0.5) * 255;
      const at::Tensor b = pixels_of(batch.views[1], 0.5) * 255;
      EXPECT_LT((a.mean({2, 3}) - b.mean({2, 3})).abs().max().item<double>(), 8.1);
      auto slope = [](const at::Tensor& x) {
        return (x.select(1, 0).select(2, -1) - x.select(1, 0).select(2, 0)).mean(1);
      };
      EXPECT_GT((slope(a) * slope(b)).min().item<double>(), 0);
    }
  }
}

TEST(BatchStream, FixedViewsAreTheSameInEveryEpoch) {
  const FakeDataset dataset(12);
  const ImagePipeline student = augmented(CropMode::random, 8);
  const ImagePipeline centre = augmented(CropMode::none, 8);
  for (int64_t cache : {0, 1 << 20}) {
    BatchStream stream(dataset,
                       {{.pipeline = &student},
                        {.pipeline = &centre},
                        {.pipeline = &student, .draw = 1, .fixed = true}},
                       {.batch_size = 12, .workers = 2, .images = cache_of(dataset, cache)});
    std::vector<std::vector<at::Tensor>> epochs;  // of sample 5, by epoch and view
    for (const Batch& batch : take(stream, 3)) {
      const auto row = std::find(batch.indices.begin(), batch.indices.end(), 5);
      std::vector<at::Tensor> views;
      for (const at::Tensor& view : batch.views)
        views.push_back(view[row - batch.indices.begin()].clone());
      epochs.push_back(views);
    }
    EXPECT_FALSE(at::equal(epochs[0][0], epochs[1][0]) && at::equal(epochs[1][0], epochs[2][0]));
    for (size_t view : {1, 2}) {
      EXPECT_TRUE(at::equal(epochs[0][view], epochs[1][view]));
      EXPECT_TRUE(at::equal(epochs[0][view], epochs[2][view]));
    }
    std::vector<float> wanted(3 * 8 * 8);
    centre.normalise(centre.evaluation_view(dataset.image(5)), wanted.data());
    const at::Tensor got = epochs[0][1].contiguous();
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), got.const_data_ptr<float>()));
    student.normalise(student.training_view(dataset.image(5), Rng(view_key(42, 0, 5, 1))),
                      wanted.data());
    const at::Tensor drawn = epochs[0][2].contiguous();
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), drawn.const_data_ptr<float>()));
  }
}

TEST(BatchStream, FixedViewsAreMadeOnceWhenCached) {
  const FakeDataset dataset(24);
  const ImagePipeline random = augmented(CropMode::random, 8), plain = pipeline_of(false);
  BatchStream stream(dataset, {{.pipeline = &plain}, {.pipeline = &random, .fixed = true}},
                     {.batch_size = 4, .images = cache_of(dataset, 1 << 20)});
  take(stream, 30);
  EXPECT_EQ(dataset.decoded(), 24);
}

TEST(BatchStream, CopiesOfARepeatedImageDifferAcrossBatchesToo) {
  const FakeDataset dataset(12);
  const ImagePipeline pipeline = augmented(CropMode::random_resized, 8);
  // Batches of four cut through the three copies of an image.
  BatchStream stream(dataset, pipeline, {.batch_size = 4, .workers = 2, .repeats = 3});
  std::map<int64_t, std::vector<at::Tensor>> views;
  for (const Batch& batch : take(stream, 3))
    for (size_t row = 0; row < batch.indices.size(); ++row)
      views[batch.indices[row]].push_back(batch.images[static_cast<int64_t>(row)]);
  EXPECT_EQ(views.size(), 4u);  // a third of the images
  for (const auto& [index, copies] : views) {
    ASSERT_EQ(copies.size(), 3u);
    EXPECT_FALSE(at::equal(copies[0], copies[1]) || at::equal(copies[1], copies[2]) ||
                 at::equal(copies[0], copies[2]));
  }
  stream.seek(1);
  const Batch again = take(stream, 1)[0];
  stream.seek(1);
  expect_equal(take(stream, 1)[0], again);
}

ImagePipeline erasing(double mean) {
  InputConfig input;
  input.size = {8, 8};
  input.mean = {mean, mean, mean};
  input.std = {0.25, 0.25, 0.25};
  AugmentConfig augment;
  augment.flip = 0.5;
  augment.rand_augment = "rand-m7-mstd0.5-inc1";
  augment.erasing = {.probability = 1, .mode = ErasingMode::pixel};
  return {input, augment};
}

TEST(BatchStream, ErasesEachCopyOfARepeatedImageByItself) {
  const FakeDataset dataset(12);
  const ImagePipeline pipeline = erasing(0.5);
  BatchStream stream(dataset, pipeline, {.batch_size = 12, .workers = 2, .repeats = 3});
  const Batch batch = take(stream, 1)[0];
  for (size_t i = 0; i < 12; ++i) {
    const uint64_t key = view_key(42, 0, batch.indices[i], 0, batch.copies[i]);
    std::vector<float> wanted(3 * 8 * 8);
    pipeline.normalise(pipeline.training_view(dataset.image(batch.indices[i]), Rng(key)),
                       wanted.data());
    pipeline.erase(wanted.data(), Rng(random_key(key, 0, 0, Purpose::erase)));
    const at::Tensor got = batch.images[static_cast<int64_t>(i)].contiguous();
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), got.const_data_ptr<float>())) << i;
  }
}

TEST(BatchStream, ErasesAfterNormalisingByAKeyOfTheView) {
  const FakeDataset dataset(12);
  const ImagePipeline pipeline = erasing(0.5);
  BatchStream stream(dataset, pipeline, {.batch_size = 12, .workers = 2});
  for (const Batch& batch : take(stream, 3)) {
    for (size_t i = 0; i < 12; ++i) {
      const uint64_t key = view_key(42, batch.step, batch.indices[i]);
      std::vector<float> wanted(3 * 8 * 8);
      pipeline.normalise(pipeline.training_view(dataset.image(batch.indices[i]), Rng(key)),
                         wanted.data());
      pipeline.erase(wanted.data(), Rng(random_key(key, 0, 0, Purpose::erase)));
      const at::Tensor got = batch.images[static_cast<int64_t>(i)].contiguous();
      ASSERT_TRUE(std::equal(wanted.begin(), wanted.end(), got.const_data_ptr<float>()));
    }
  }
  BatchStream evaluation(dataset, pipeline, {.batch_size = 12, .training = false});
  std::vector<float> whole(3 * 8 * 8);
  pipeline.normalise(pipeline.evaluation_view(dataset.image(0)), whole.data());
  const at::Tensor got = take(evaluation, 1)[0].images[0].contiguous();
  EXPECT_TRUE(std::equal(whole.begin(), whole.end(), got.const_data_ptr<float>()));
}

TEST(BatchStream, ViewsOfOneDrawAreErasedAlike) {
  const FakeDataset dataset(12);
  const ImagePipeline student = erasing(0.5), same = erasing(0.5), darker = erasing(0.3);
  BatchStream stream(dataset,
                     {{.pipeline = &student},
                      {.pipeline = &same},
                      {.pipeline = &darker},
                      {.pipeline = &same, .draw = 1},
                      {.pipeline = &same, .draw = 2, .fixed = true}},
                     {.batch_size = 12, .images = cache_of(dataset, 1 << 20)});
  const std::vector<Batch> batches = take(stream, 2);
  for (const Batch& batch : batches) {
    EXPECT_TRUE(at::equal(batch.views[0], batch.views[1]));
    EXPECT_FALSE(at::equal(batch.views[0], batch.views[3]));
    // The same numbers in the same boxes: as many of the values agree as are erased.
    const at::Tensor agree = batch.views[0].eq(batch.views[2]).all(1).sum({1, 2});
    EXPECT_GE(agree.min().item<int64_t>(), 1);
  }
  // A fixed view is erased alike in every epoch.
  const auto row = [](const Batch& batch) {
    return std::find(batch.indices.begin(), batch.indices.end(), 5) - batch.indices.begin();
  };
  EXPECT_TRUE(
      at::equal(batches[0].views[4][row(batches[0])], batches[1].views[4][row(batches[1])]));
  EXPECT_FALSE(
      at::equal(batches[0].views[0][row(batches[0])], batches[1].views[0][row(batches[1])]));
}

TEST(BatchStream, RefusesViewsOfOneDrawWithOtherCrops) {
  const FakeDataset dataset(4);
  const ImagePipeline one = augmented(CropMode::random, 8), two = augmented(CropMode::inception, 8);
  EXPECT_NE(test::message_of([&] {
              BatchStream(dataset, {{.pipeline = &one}, {.pipeline = &two}}, {.batch_size = 2});
            }).find("views of one draw need the same settings of all that is drawn"),
            std::string::npos);
}

}  // namespace
}  // namespace convpass
