#include "convpass/data/sample_cache.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "convpass/core/error.h"

namespace convpass {
namespace {

/// A file descriptor without a name in `folder`, `bytes` long and with all its blocks: a write to a
/// mapping for which the disk has no room would kill the process. Errors: FileError.
int nameless_file(const std::filesystem::path& folder, int64_t bytes) {
  std::string name = (folder / "cache-XXXXXX").string();
  const int file = ::mkstemp(name.data());
  if (file < 0)
    throw FileError(folder, std::string("data.cache_disk_mb: cannot make a file here: ") +
                                std::strerror(errno));
  ::unlink(name.c_str());
  if (const int error = ::posix_fallocate(file, 0, bytes); error != 0) {
    ::close(file);
    throw FileError(folder, "data.cache_disk_mb: cannot reserve " + std::to_string(bytes >> 20) +
                                " MiB here: " + std::strerror(error) +
                                "; wanted a smaller budget or a larger disk");
  }
  return file;
}

}  // namespace

int64_t CacheBudget::rows(int64_t& left, int64_t wanted, int64_t row_bytes) {
  std::lock_guard lock(mutex_);
  const int64_t taken = std::min(wanted, left / std::max<int64_t>(1, row_bytes));
  left -= taken * row_bytes;
  return taken;
}

void CacheBudget::give(int64_t memory_bytes, int64_t disk_bytes) {
  std::lock_guard lock(mutex_);
  memory_ += memory_bytes;
  disk_ += disk_bytes;
}

std::shared_ptr<const ImageCache::Images> ImageCache::get(int64_t sample,
                                                          const std::function<Images()>& make) {
  std::shared_ptr<const Images>& slot = images_[static_cast<size_t>(sample)];
  {
    std::lock_guard lock(mutex_);
    if (slot) return slot;
  }
  auto images = std::make_shared<const Images>(make());
  int64_t bytes = 0;
  for (const Image& image : *images) bytes += static_cast<int64_t>(image.pixels.size());
  std::lock_guard lock(mutex_);
  if (!slot && budget_->take(bytes)) {
    slot = images;
    bytes_ += bytes;
  }
  return images;
}

SampleTensors::SampleTensors(int64_t samples, std::shared_ptr<CacheBudget> budget)
    : budget_(std::move(budget)), rows_(static_cast<size_t>(samples)) {
  for (auto& row : rows_) row.store(-1, std::memory_order_relaxed);
}

SampleTensors::~SampleTensors() {
  if (disk_ != nullptr) ::munmap(disk_, static_cast<size_t>(disk_rows_ * row_bytes_));
  budget_->give(memory_rows_ * row_bytes_, disk_rows_ * row_bytes_);
}

void SampleTensors::reserve(const at::Tensor& values) {
  row_bytes_ = static_cast<int64_t>(values.nbytes()) / values.size(0);
  shape_ = values.sizes().slice(1).vec();
  type_ = values.scalar_type();
  memory_rows_ = budget_->take_memory_rows(samples(), row_bytes_);
  memory_ = at::empty({memory_rows_ * row_bytes_}, at::kByte);
  const int64_t disk_rows = budget_->take_disk_rows(samples() - memory_rows_, row_bytes_);
  if (disk_rows == 0) return;
  const int file = nameless_file(budget_->folder(), disk_rows * row_bytes_);
  void* mapped = ::mmap(nullptr, static_cast<size_t>(disk_rows * row_bytes_),
                        PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int error = errno;
  ::close(file);  // the mapping keeps it
  if (mapped == MAP_FAILED)
    throw FileError(budget_->folder(), std::string("data.cache_disk_mb: cannot map a file here: ") +
                                           std::strerror(error));
  disk_ = static_cast<char*>(mapped);
  disk_rows_ = disk_rows;
}

char* SampleTensors::row(int64_t row) const {
  return row < memory_rows_ ? static_cast<char*>(memory_.data_ptr()) + row * row_bytes_
                            : disk_ + (row - memory_rows_) * row_bytes_;
}

void SampleTensors::put(const std::vector<int64_t>& samples, const at::Tensor& values) {
  TORCH_CHECK(values.size(0) == static_cast<int64_t>(samples.size()), "a row for each sample");
  if (samples.empty()) return;
  if (row_bytes_ == 0) reserve(values);
  const at::Tensor rows = values.detach().to(at::kCPU).contiguous();
  TORCH_CHECK(rows.sizes().slice(1) == at::IntArrayRef(shape_) && rows.scalar_type() == type_,
              "rows of one shape and type");
  const auto* from = static_cast<const char*>(rows.const_data_ptr());
  for (size_t i = 0; i < samples.size(); ++i) {
    if (next_row_ == room()) return;
    if (known(samples[i])) continue;
    std::memcpy(row(next_row_), from + static_cast<int64_t>(i) * row_bytes_,
                static_cast<size_t>(row_bytes_));
    rows_[static_cast<size_t>(samples[i])].store(next_row_++, std::memory_order_release);
  }
}

at::Tensor SampleTensors::take(const std::vector<int64_t>& samples) const {
  std::vector<int64_t> shape{static_cast<int64_t>(samples.size())};
  shape.insert(shape.end(), shape_.begin(), shape_.end());
  at::Tensor values = at::empty(shape, type_);
  auto* to = static_cast<char*>(values.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / std::max<int64_t>(1, row_bytes_));
  at::parallel_for(0, shape[0], grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t held = rows_[static_cast<size_t>(samples[static_cast<size_t>(i)])];
      TORCH_CHECK(held >= 0, "sample ", samples[static_cast<size_t>(i)], " is not known");
      std::memcpy(to + i * row_bytes_, row(held), static_cast<size_t>(row_bytes_));
    }
  });
  return values;
}

}  // namespace convpass
