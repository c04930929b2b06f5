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

#include "convpass/core/error.h"
#include "convpass/core/rng.h"

namespace convpass {
namespace {

using Images = ImageCache::Images;

// A view, and the earlier one whose pixels it shares, so that these are made once.
struct PlannedView {
  View view;
  bool random;    // drawn, not the evaluation view
  size_t pixels;  // index of the view that makes them, its own where nobody before does
};

std::vector<PlannedView> plan(const std::vector<View>& views, bool training) {
  TORCH_CHECK(!views.empty(), "a batch stream needs a view");
  std::vector<PlannedView> planned;
  for (const View& view : views) {
    TORCH_CHECK(view.pipeline != nullptr, "a view needs a pipeline");
    PlannedView next{view, training && view.pipeline->random(), planned.size()};
    for (size_t i = 0; i < planned.size(); ++i) {
      const PlannedView& before = planned[i];
      const bool same_key = view.draw == before.view.draw && view.fixed == before.view.fixed;
      TORCH_CHECK(!next.random || !before.random || view.draw != before.view.draw ||
                      view.pipeline->augment().same_draw(before.view.pipeline->augment()),
                  "views of one draw need the same settings of all that is drawn");
      if (next.random == before.random && (!next.random || same_key) &&
          view.pipeline->same_pixels(*before.view.pipeline, next.random)) {
        next.pixels = before.pixels;
        break;
      }
    }
    planned.push_back(next);
  }
  return planned;
}

int64_t count_epoch(int64_t size, const StreamOptions& options) {
  constexpr int64_t kRound = 256;  // timm's selected_round
  return options.training && options.repeats > 1 && size >= kRound ? size / kRound * kRound : size;
}

int64_t count_steps(int64_t size, const StreamOptions& options) {
  TORCH_CHECK(size > 0, "a batch stream needs a sample");
  TORCH_CHECK(options.repeats > 0, "a batch stream repeats each sample at least once");
  TORCH_CHECK(options.batch_size > 0 && options.workers > 0,
              "a batch stream needs a batch size and workers above 0");
  if (options.training && options.drop_last) return std::max<int64_t>(size / options.batch_size, 1);
  return (size + options.batch_size - 1) / options.batch_size;
}

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

uint64_t view_key(uint64_t seed, int64_t epoch, int64_t index, int64_t draw, int64_t copy) {
  const uint64_t key = random_key(seed, static_cast<uint64_t>(epoch), static_cast<uint64_t>(index),
                                  Purpose::augment);
  if (draw == 0 && copy == 0) return key;
  return random_key(key, static_cast<uint64_t>(draw), static_cast<uint64_t>(copy), Purpose::view);
}

BatchOrder::BatchOrder(int64_t size, const StreamOptions& options)
    : size_(size),
      epoch_size_(count_epoch(size, options)),
      steps_(count_steps(epoch_size_, options)),
      options_(options) {}

std::shared_ptr<const std::vector<int64_t>> BatchOrder::shuffled(int64_t epoch) {
  std::lock_guard lock(mutex_);
  auto found = orders_.find(epoch);
  if (found != orders_.end()) return found->second;
  auto order =
      std::make_shared<const std::vector<int64_t>>(epoch_order(options_.seed, epoch, size_));
  if (orders_.size() >= 2) orders_.erase(orders_.begin());
  orders_[epoch] = order;
  return order;
}

int64_t BatchOrder::replayed(int64_t step) const {
  return options_.replay_epochs > 0 ? step % (options_.replay_epochs * steps_) : step;
}

BatchSamples BatchOrder::samples(int64_t step) {
  step = replayed(step);
  const int64_t batch = options_.batch_size;
  BatchSamples samples;
  if (options_.training && options_.small_set == SmallSet::with_replacement && size_ < batch) {
    Rng rng(options_.seed, static_cast<uint64_t>(step), 0, Purpose::resample);
    std::map<int64_t, int64_t> seen;
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t index = rng.below(size_);
      samples.indices.push_back(index);
      samples.copies.push_back(seen[index]++);
    }
    return samples;
  }
  const int64_t first = step % steps_ * batch;
  const int64_t end = std::min(first + batch, epoch_size_);
  const auto order = options_.training ? shuffled(step / steps_) : nullptr;
  const int64_t repeats = options_.training ? options_.repeats : 1;
  for (int64_t place = first; place < end; ++place) {
    const int64_t image = place / repeats;
    samples.indices.push_back(order ? (*order)[static_cast<size_t>(image)] : image);
    samples.copies.push_back(place % repeats);
  }
  return samples;
}

struct BatchStream::State {
  const Dataset& dataset;
  const StreamOptions options;
  const std::vector<PlannedView> views;
  const bool changing;  // some view is another one in each epoch
  BatchOrder order;
  const int64_t end;        // no batch from here on
  ImageCache* const cache;  // or null

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

  State(const Dataset& dataset_, const std::vector<View>& views_, const StreamOptions& options_)
      : dataset(dataset_),
        options(options_),
        views(plan(views_, options_.training)),
        changing(changes(views, options_)),
        order(dataset_.size(), options_),
        end(options_.training ? std::numeric_limits<int64_t>::max() : order.steps_per_epoch()),
        cache(changing && dataset_.in_memory() ? nullptr : options.images.get()) {}

  // Copies of a sample differ even where a view is fixed.
  static bool changes(const std::vector<PlannedView>& views, const StreamOptions& options) {
    return std::any_of(views.begin(), views.end(), [&](const PlannedView& planned) {
      return planned.random &&
             (!planned.view.fixed || options.small_set == SmallSet::with_replacement ||
              options.repeats > 1);
    });
  }

  uint64_t key_of(const View& view, int64_t index, int64_t epoch, int64_t copy) const {
    return view_key(options.seed, view.fixed ? 0 : epoch, index, view.draw, copy);
  }

  // The 8-bit images of all views of a sample; empty where an earlier view has them.
  Images make_views(const Image& image, int64_t index, int64_t epoch, int64_t copy) const {
    Images made_views(views.size());
    for (size_t i = 0; i < views.size(); ++i) {
      const auto& [view, random, pixels] = views[i];
      if (pixels != i) continue;
      try {
        made_views[i] =
            random ? view.pipeline->training_view(image, Rng(key_of(view, index, epoch, copy)))
                   : view.pipeline->evaluation_view(image);
      } catch (const Error& error) {
        throw FileError(dataset.name(index), error.what());
      }
    }
    return made_views;
  }

  template <class Make>
  std::shared_ptr<const Images> kept(int64_t index, const Make& make) const {
    return cache ? cache->get(index, make) : std::make_shared<const Images>(make());
  }

  std::shared_ptr<const Images> views_of(int64_t index, int64_t epoch, int64_t copy) {
    if (!changing)
      return kept(index, [&] { return make_views(dataset.image(index), index, 0, 0); });
    const auto whole = kept(index, [&] { return Images{dataset.image(index)}; });
    return std::make_shared<const Images>(make_views(whole->front(), index, epoch, copy));
  }

  Batch make(int64_t step) {
    Batch batch;
    batch.step = step;
    batch.replayed = order.replayed(step);
    const int64_t epoch = batch.replayed / order.steps_per_epoch();
    BatchSamples samples = order.samples(step);
    batch.indices = std::move(samples.indices);
    batch.copies = std::move(samples.copies);
    const auto count = static_cast<int64_t>(batch.indices.size());
    for (const PlannedView& planned : views) {
      const ImagePipeline& pipeline = *planned.view.pipeline;
      batch.views.push_back(at::empty({count, 3, pipeline.height(), pipeline.width()}, at::kFloat));
    }
    batch.images = batch.views.front();
    batch.labels = at::empty({count}, at::kLong);
    auto* labels = batch.labels.mutable_data_ptr<int64_t>();
    for (int64_t row = 0; row < count; ++row) {
      const int64_t index = batch.indices[static_cast<size_t>(row)];
      labels[row] = dataset.label(index);
      if (options.known && options.known(index)) {
        batch.blanks.resize(static_cast<size_t>(count));
        batch.blanks[static_cast<size_t>(row)] = true;
        continue;
      }
      const auto images = views_of(index, epoch, batch.copies[static_cast<size_t>(row)]);
      for (size_t i = 0; i < views.size(); ++i) {
        const auto& [view, random, pixels] = views[i];
        float* out = batch.views[i].mutable_data_ptr<float>() + row * batch.views[i].stride(0);
        view.pipeline->normalise((*images)[pixels], out);
        if (!random) continue;
        const uint64_t key = key_of(view, index, epoch, batch.copies[static_cast<size_t>(row)]);
        view.pipeline->erase(out, Rng(random_key(key, 0, 0, Purpose::erase)));
      }
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
    : BatchStream(dataset, std::vector<View>{{.pipeline = &pipeline}}, options) {}

BatchStream::BatchStream(const Dataset& dataset, std::vector<View> views,
                         const StreamOptions& options)
    : state_(std::make_unique<State>(dataset, views, options)) {
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

int64_t BatchStream::steps_per_epoch() const { return state_->order.steps_per_epoch(); }

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
