#include "convpass/data/sample_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <thread>

#include "convpass/core/error.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

at::Tensor values_of(const std::vector<int64_t>& samples, c10::ScalarType type = at::kFloat) {
  std::vector<at::Tensor> rows;
  for (int64_t sample : samples)
    rows.push_back(at::arange(6, at::kFloat).view({2, 3}) + static_cast<double>(10 * sample));
  return at::stack(rows).to(type);  // [B, 2, 3]
}

TEST(SampleTensors, GiveBackWhatWasPutInAnyOrder) {
  for (auto type : {at::kFloat, at::kBFloat16}) {
    SampleTensors kept(5, std::make_shared<CacheBudget>(1 << 20));
    EXPECT_FALSE(kept.known(3));
    kept.put({3, 0}, values_of({3, 0}, type));
    kept.put({0, 4}, values_of({0, 4}, type));
    EXPECT_TRUE(kept.known(3) && kept.known(0) && kept.known(4));
    EXPECT_FALSE(kept.known(1));
    const at::Tensor got = kept.take({4, 3, 3, 0});
    EXPECT_EQ(got.scalar_type(), type);
    EXPECT_TRUE(at::equal(got, values_of({4, 3, 3, 0}, type)));
    EXPECT_THROW(kept.take({1}), c10::Error);
  }
}

TEST(SampleTensors, KeepWhatFitsTheMemoryThenWhatFitsTheDisk) {
  TempFolder folder;
  // 24 bytes a row: two rows of memory, three of disk.
  auto budget = std::make_shared<CacheBudget>(50, 80, folder.path());
  SampleTensors kept(8, budget);
  std::vector<int64_t> all(8);
  std::iota(all.begin(), all.end(), 0);
  kept.put(all, values_of(all));
  EXPECT_EQ(kept.room(), 5);
  EXPECT_EQ(kept.disk_rows(), 3);
  EXPECT_EQ(kept.row_bytes(), 24);
  for (int64_t sample = 0; sample < 8; ++sample) EXPECT_EQ(kept.known(sample), sample < 5);
  EXPECT_TRUE(at::equal(kept.take({4, 1, 2, 0, 3}), values_of({4, 1, 2, 0, 3})));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // the file has no name
  // What one took is not there for another.
  SampleTensors other(8, budget);
  other.put({0}, values_of({0}));
  EXPECT_EQ(other.room(), 0);
  EXPECT_FALSE(other.known(0));
}

TEST(SampleTensors, SayWhereTheDiskFails) {
  for (const auto& [folder, bytes] :
       {std::pair<std::string, int64_t>{"/no/such/folder", 1000}, {"/proc", 1000}}) {
    SampleTensors kept(100, std::make_shared<CacheBudget>(0, bytes, folder));
    try {
      kept.put({0}, values_of({0}));
      FAIL() << folder;
    } catch (const FileError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(folder), std::string::npos) << text;
      EXPECT_NE(text.find("data.cache_disk_mb: cannot "), std::string::npos) << text;
    }
  }
}

TEST(SampleTensors, MayBeAskedWhileTheyArePut) {
  constexpr int64_t kSamples = 2000;
  SampleTensors kept(kSamples, std::make_shared<CacheBudget>(1 << 20));
  std::thread asking([&] {
    for (int64_t sample = 0; sample < kSamples; ++sample)
      while (!kept.known(sample)) std::this_thread::yield();
  });
  for (int64_t sample = 0; sample < kSamples; ++sample) kept.put({sample}, values_of({sample}));
  asking.join();
  EXPECT_TRUE(at::equal(kept.take({kSamples - 1}), values_of({kSamples - 1})));
}

TEST(CacheBudget, GetsBackWhatACacheHeldWhenItGoes) {
  const auto budget = std::make_shared<CacheBudget>(100);
  {
    ImageCache images(2, budget);
    images.get(0, [] { return ImageCache::Images{Image{3, 4, std::vector<uint8_t>(36)}}; });
    EXPECT_FALSE(budget->take(65));
  }
  EXPECT_TRUE(budget->take(100));
  budget->give(100);
  {
    SampleTensors tensors(2, budget);
    tensors.put({0}, at::zeros({1, 5}));
    EXPECT_FALSE(budget->take(61));
  }
  EXPECT_TRUE(budget->take(100));
}

TEST(CacheBudget, GivesOutNoMoreThanItHas) {
  CacheBudget budget(100, 10);
  EXPECT_FALSE(budget.take(101));
  EXPECT_TRUE(budget.take(40));
  EXPECT_EQ(budget.take_memory_rows(9, 25), 2);
  EXPECT_TRUE(budget.take(10));
  EXPECT_FALSE(budget.take(1));
  EXPECT_EQ(budget.take_disk_rows(9, 4), 2);
}

}  // namespace
}  // namespace convpass
