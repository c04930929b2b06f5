#include "convpass/data/batch_stream.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "convpass/core/rng.h"

namespace convpass {
namespace {

// Images by sample, kept until the budget is spent. A budget that is too small keeps the first ones
// for good: with a shuffled order, evicting would only trade one hit for another.
class ImageCache {
 public:
  ImageCache(int64_t samples, int64_t bytes)
      : images_(bytes > 0 ? static_cast<size_t>(samples) : 0), left_(bytes) {}

  template <class Make>
  std::shared_ptr<const Image> get(int64_t index, Make make) {
    if (images_.empty()) return std::make_shared<const Image>(make());
    std::shared_ptr<const Image>& slot = images_[static_cast<size_t>(index)];
    {
      std::lock_guard lock(mutex_);
      if (slot) return slot;
    }
    auto image = std::make_shared<const Image>(make());
    const auto bytes = static_cast<int64_t>(image->pixels.size());
    std::lock_guard lock(mutex_);
    if (!slot && bytes <= left_) {
      slot = image;
      left_ -= bytes;
    }
    return image;
  }

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<const Image>> images_;
  int64_t left_;
};

// The shuffle of an epoch. Workers are at most a few steps apart, so two epochs are enough.
class EpochOrders {
 public:
  EpochOrders(int64_t samples, uint64_t seed) : samples_(samples), seed_(seed) {}

  std::shared_ptr<const std::vector<int64_t>> of(int64_t epoch) {
    std::lock_guard lock(mutex_);
    auto found = orders_.find(epoch);
    if (found != orders_.end()) return found->second;
    auto order = std::make_shared<const std::vector<int64_t>>(epoch_order(seed_, epoch, samples_));
    if (orders_.size() >= 2) orders_.erase(orders_.begin());
    orders_[epoch] = order;
    return order;
  }

 private:
  const int64_t samples_;
  const uint64_t seed_;
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<const std::vector<int64_t>>> orders_;
};

}  // namespace

std::vector<int64_t> epoch_order(uint64_t seed, int64_t epoch, int64_t size) {
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  Rng rng(seed, static_cast<uint64_t>(epoch), 0, Purpose::shuffle);
  for (int64_t i = size - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng.below(i + 1))]);
  }
  return order;
}

int64_t training_steps_per_epoch(int64_t size, int64_t batch_size) {
  return std::max<int64_t>(size / batch_size, 1);
}

struct BatchStream::State {
  const Dataset& dataset;
  const ImagePipeline& pipeline;
  const StreamOptions options;
  const bool random;
  const int64_t steps;  // of an epoch
  const int64_t end;    // no batch from here on
  ImageCache cache;
  EpochOrders orders;

  struct Made {
    Batch batch;
    std::exception_ptr error;
  };
  std::mutex mutex;  // of all below
  std::condition_variable room, ready;
  int64_t next_given = 0, next_made = 0;
  uint64_t generation = 0;  // counts seeks: what was begun before one is thrown away
  bool stopping = false;
  std::map<int64_t, Made> made;
  std::vector<std::thread> threads;

  State(const Dataset& dataset_, const ImagePipeline& pipeline_, const StreamOptions& options_)
      : dataset(dataset_),
        pipeline(pipeline_),
        options(options_),
        random(options_.training && pipeline_.random()),
        steps(count_steps(dataset_.size(), options_)),
        end(options_.training ? std::numeric_limits<int64_t>::max() : steps),
        cache(dataset_.size(), random && dataset_.in_memory() ? 0 : options_.cache_bytes),
        orders(dataset_.size(), options_.seed) {}

  static int64_t count_steps(int64_t samples, const StreamOptions& options) {
    TORCH_CHECK(samples > 0, "a batch stream needs a sample");
    TORCH_CHECK(options.batch_size > 0 && options.workers > 0,
                "a batch stream needs a batch size and workers above 0");
    if (options.training) return training_steps_per_epoch(samples, options.batch_size);
    return (samples + options.batch_size - 1) / options.batch_size;
  }

  std::vector<int64_t> indices_of(int64_t step) {
    const int64_t first = step % steps * options.batch_size;
    const int64_t count = std::min(options.batch_size, dataset.size() - first);
    std::vector<int64_t> indices(static_cast<size_t>(count));
    if (options.training) {
      const auto order = orders.of(step / steps);
      std::copy_n(order->begin() + first, count, indices.begin());
    } else {
      std::iota(indices.begin(), indices.end(), first);
    }
    return indices;
  }

  std::shared_ptr<const Image> view(int64_t index, int64_t epoch) {
    if (!random) {
      return cache.get(index, [&] { return pipeline.evaluation_view(dataset.image(index)); });
    }
    const auto image = cache.get(index, [&] { return dataset.image(index); });
    const Rng rng(options.seed, static_cast<uint64_t>(epoch), static_cast<uint64_t>(index),
                  Purpose::augment);
    return std::make_shared<const Image>(pipeline.training_view(*image, rng));
  }

  Batch make(int64_t step) {
    Batch batch;
    batch.step = step;
    batch.indices = indices_of(step);
    const auto count = static_cast<int64_t>(batch.indices.size());
    batch.images = at::empty({count, 3, pipeline.height(), pipeline.width()}, at::kFloat);
    batch.labels = at::empty({count}, at::kLong);
    auto* pixels = batch.images.mutable_data_ptr<float>();
    auto* labels = batch.labels.mutable_data_ptr<int64_t>();
    for (int64_t index : batch.indices) {
      pipeline.normalise(*view(index, step / steps), pixels);
      pixels += 3 * pipeline.height() * pipeline.width();
      *labels++ = dataset.label(index);
    }
    return batch;
  }

  void work() {
    std::unique_lock lock(mutex);
    for (;;) {
      room.wait(lock, [&] {
        return stopping || (next_made < end && next_made <= next_given + options.workers);
      });
      if (stopping) return;
      const int64_t step = next_made++;
      const uint64_t begun = generation;
      lock.unlock();
      Made result;
      try {
        result.batch = make(step);
      } catch (...) {
        result.error = std::current_exception();
      }
      lock.lock();
      if (begun == generation) {
        made[step] = std::move(result);
        ready.notify_one();
      }
    }
  }

  void stop() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    room.notify_all();
    for (std::thread& thread : threads) thread.join();
  }
};

BatchStream::BatchStream(const Dataset& dataset, const ImagePipeline& pipeline,
                         const StreamOptions& options)
    : state_(std::make_unique<State>(dataset, pipeline, options)) {
  try {
    for (int i = 0; i < options.workers; ++i) {
      state_->threads.emplace_back([state = state_.get()] { state->work(); });
    }
  } catch (...) {
    state_->stop();
    throw;
  }
}

BatchStream::~BatchStream() { state_->stop(); }

int64_t BatchStream::steps_per_epoch() const { return state_->steps; }

void BatchStream::seek(int64_t step) {
  TORCH_CHECK(step >= 0, "seek to step ", step);
  {
    std::lock_guard lock(state_->mutex);
    ++state_->generation;
    state_->made.clear();
    state_->next_given = state_->next_made = step;
  }
  state_->room.notify_all();
}

bool BatchStream::next(Batch& batch) {
  State& state = *state_;
  State::Made given;
  {
    std::unique_lock lock(state.mutex);
    if (state.next_given >= state.end) return false;
    state.ready.wait(lock, [&] { return state.made.count(state.next_given) != 0; });
    auto found = state.made.find(state.next_given);
    given = std::move(found->second);
    state.made.erase(found);
    ++state.next_given;
  }
  state.room.notify_one();
  if (given.error) std::rethrow_exception(given.error);
  batch = std::move(given.batch);
  return true;
}

}  // namespace convpass
