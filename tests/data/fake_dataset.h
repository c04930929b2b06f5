#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/data/batch_stream.h"

namespace convpass {

/// Images that differ by index; counts how often each is decoded; `broken` cannot be.
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

inline ImagePipeline pipeline_of(bool random) {
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

inline ImagePipeline augmented(CropMode crop, int64_t size, double mean = 0.5) {
  InputConfig input;
  input.size = {size, size};
  input.resize_to = {size + size / 4};
  input.mean = {mean, mean, mean};
  input.std = {0.25, 0.25, 0.25};
  AugmentConfig augment;
  augment.crop = crop;
  augment.flip = crop == CropMode::none ? 0.0 : 0.5;
  return {input, augment};
}

inline std::shared_ptr<ImageCache> cache_of(const Dataset& dataset, int64_t bytes) {
  return std::make_shared<ImageCache>(dataset.size(), std::make_shared<CacheBudget>(bytes));
}

inline std::vector<Batch> take(BatchStream& stream, int64_t count) {
  std::vector<Batch> batches(static_cast<size_t>(count));
  for (Batch& batch : batches) EXPECT_TRUE(stream.next(batch));
  return batches;
}

inline void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.indices, b.indices);
  EXPECT_TRUE(at::equal(a.images, b.images)) << a.step;
  EXPECT_TRUE(at::equal(a.labels, b.labels));
}

}  // namespace convpass
