#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "convpass/data/image.h"

namespace convpass {

/// The bytes that a run may keep of its images so as not to compute the same again: one budget of
/// memory and one of disk for all that keeps. May be used by several threads.
class CacheBudget {
 public:
  /// `folder`: where a file for what memory does not hold may be made.
  explicit CacheBudget(int64_t memory_bytes, int64_t disk_bytes = 0,
                       std::filesystem::path folder = {})
      : memory_(memory_bytes), disk_(disk_bytes), folder_(std::move(folder)) {}

  /// Takes `bytes` of memory off the budget; or nothing, and false.
  bool take(int64_t bytes) { return rows(memory_, 1, bytes) == 1; }
  /// Takes as many rows of `row_bytes` as are left, `wanted` at most, and returns how many.
  int64_t take_memory_rows(int64_t wanted, int64_t row_bytes) {
    return rows(memory_, wanted, row_bytes);
  }
  int64_t take_disk_rows(int64_t wanted, int64_t row_bytes) {
    return rows(disk_, wanted, row_bytes);
  }
  /// Gives back what was taken.
  void give(int64_t memory_bytes, int64_t disk_bytes = 0);
  const std::filesystem::path& folder() const { return folder_; }

 private:
  int64_t rows(int64_t& left, int64_t wanted, int64_t row_bytes);

  std::mutex mutex_;
  int64_t memory_, disk_;
  std::filesystem::path folder_;
};

/// Decoded images, or finished views, of the samples of one data set, until the budget is spent. A
/// budget that is too small keeps the first ones for good: with a shuffled order, evicting would
/// only trade one hit for another. May be used by several threads, and by one stream after another
/// that want the same of each sample.
class ImageCache {
 public:
  using Images = std::vector<Image>;

  ImageCache(int64_t samples, std::shared_ptr<CacheBudget> budget)
      : budget_(std::move(budget)), images_(static_cast<size_t>(samples)) {}
  ~ImageCache() { budget_->give(bytes_); }
  ImageCache(const ImageCache&) = delete;
  ImageCache& operator=(const ImageCache&) = delete;
  /// What is kept of a sample, else what `make` returns, which is kept from then on if it fits.
  std::shared_ptr<const Images> get(int64_t sample, const std::function<Images()>& make);

 private:
  std::shared_ptr<CacheBudget> budget_;
  std::mutex mutex_;
  int64_t bytes_ = 0;  ///< of the budget
  std::vector<std::shared_ptr<const Images>> images_;
};

/// A tensor of the same shape and type for each sample of a data set, kept from when it is first
/// put: in memory as far as the budget goes, then in a file that has no name and is gone with the
/// process; what does not fit there either is not kept. One thread puts and takes; others may ask
/// what is known.
class SampleTensors {
 public:
  SampleTensors(int64_t samples, std::shared_ptr<CacheBudget> budget);
  ~SampleTensors();
  SampleTensors(const SampleTensors&) = delete;
  SampleTensors& operator=(const SampleTensors&) = delete;

  bool known(int64_t sample) const {
    return rows_[static_cast<size_t>(sample)].load(std::memory_order_acquire) >= 0;
  }
  /// Keeps row i of `values`, `[B, ...]` on any device, for samples[i], where there is room.
  /// Errors: FileError when the disk cannot hold what its budget allows.
  void put(const std::vector<int64_t>& samples, const at::Tensor& values);
  /// `[B, ...]` on the CPU, of samples that are known.
  at::Tensor take(const std::vector<int64_t>& samples) const;

  int64_t samples() const { return static_cast<int64_t>(rows_.size()); }
  /// How many samples there is room for, those of them on disk, and the bytes of one; 0 before the
  /// first is put.
  int64_t room() const { return memory_rows_ + disk_rows_; }
  int64_t disk_rows() const { return disk_rows_; }
  int64_t row_bytes() const { return row_bytes_; }

 private:
  void reserve(const at::Tensor& values);
  char* row(int64_t row) const;

  std::shared_ptr<CacheBudget> budget_;
  std::vector<std::atomic<int64_t>> rows_;  // of each sample; -1: not known
  int64_t next_row_ = 0, row_bytes_ = 0, memory_rows_ = 0, disk_rows_ = 0;
  std::vector<int64_t> shape_;  // of a row
  c10::ScalarType type_ = c10::ScalarType::Float;
  at::Tensor memory_;     // [memory_rows_ * row_bytes_] bytes
  char* disk_ = nullptr;  // mapped, disk_rows_ * row_bytes_ bytes
};

}  // namespace convpass
