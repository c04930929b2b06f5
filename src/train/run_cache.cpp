#include "src/train/run_cache.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <functional>

#include "convpass/core/json.h"
#include "convpass/train/progress.h"
#include "convpass/train/trainer.h"

namespace convpass {

namespace {

/// Of these rows of `images`. On the CPU each by itself, several at a time: the order in which a
/// product of many rows is summed depends on their number, and what an image gives must not hang on
/// which others came with it, on how far the workers are ahead or on where a run was cut.
at::Tensor stems_of(const TunedModel& model, const at::Tensor& images,
                    const std::vector<int64_t>& rows) {
  at::NoGradGuard no_grad;
  if (!model.device().is_cpu())
    return model.stem(images.index_select(0, at::tensor(rows, at::kLong)).to(model.device()));
  // One image alone is computed twice: else all threads would share its products.
  std::vector<at::Tensor> stems(std::max<size_t>(rows.size(), 2));
  at::parallel_for(0, std::ssize(stems), /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    at::NoGradGuard none_here_either;
    for (int64_t i = begin; i < end; ++i)
      stems[static_cast<size_t>(i)] =
          model.stem(images.narrow(0, rows[static_cast<size_t>(i) % rows.size()], 1));
  });
  stems.resize(rows.size());
  return at::cat(stems);
}

}  // namespace

at::Tensor StemCache::of(const Batch& batch) {
  std::vector<int64_t> known, known_rows, missing, missing_rows;
  for (size_t row = 0; row < batch.indices.size(); ++row) {
    const bool blank = batch.blank(row);
    (blank ? known : missing).push_back(batch.indices[row]);
    (blank ? known_rows : missing_rows).push_back(static_cast<int64_t>(row));
  }
  if (missing.empty()) return kept_->take(known).to(model_.device());
  const at::Tensor computed = stems_of(model_, batch.images, missing_rows);
  const bool first = kept_->row_bytes() == 0;
  kept_->put(missing, computed);
  if (first) report();
  if (known.empty()) return computed;
  std::vector<int64_t> shape = computed.sizes().vec();
  shape.front() = static_cast<int64_t>(batch.indices.size());
  at::Tensor all = at::empty(shape, computed.options());
  all.index_copy_(0, at::tensor(missing_rows, at::kLong).to(all.device()), computed);
  return all.index_copy_(0, at::tensor(known_rows, at::kLong).to(all.device()),
                         kept_->take(known).to(all.device()));
}

void StemCache::report() const {
  std::string line = "cache: what the frozen part makes of " + where_ + " is computed once (" +
                     std::to_string((kept_->row_bytes() + 1023) / 1024) + " KiB an image)";
  if (kept_->room() < kept_->samples())
    line += "; there is room for " + std::to_string(kept_->room()) + " of " +
            std::to_string(kept_->samples()) +
            " images, the others are computed again each time (data.cache_mb, data.cache_disk_mb)";
  else if (kept_->disk_rows() > 0)
    line += ", " + std::to_string(kept_->disk_rows()) + " of " + std::to_string(kept_->samples()) +
            " on disk";
  say(line);
}

StreamOptions SplitCache::apply(StreamOptions options) const {
  options.images = images;
  if (stem) options.known = [stem = stem.get()](int64_t image) { return stem->known(image); };
  return options;
}

std::shared_ptr<RunCache> shared_cache(const DataConfig& data,
                                       const std::filesystem::path& folder) {
  return std::make_shared<RunCache>(data, folder);
}

namespace {

std::string key_of(const DataConfig& data, const std::string& where) {
  DataConfig images = data;
  images.cache_mb = images.cache_disk_mb = 0;
  return where + " " + write_json_fields(images);
}

/// Of the images of a split, as they are decoded. The files may change between two runs.
std::string key_of(const Recipe& recipe, const Dataset& split, const std::string& where) {
  uint64_t names = 0;
  for (int64_t i = 0; i < split.size(); ++i)
    names = names * 31 + std::hash<std::string>()(split.name(i));
  return key_of(recipe.data, where) + " " + std::to_string(split.size()) + " " +
         std::to_string(names) + (recipe.input.exif_orientation ? " turned" : "");
}

/// All that a stem depends on besides the images and their view.
std::string stem_key(const TunedModel& model, const Recipe& recipe) {
  BackboneConfig backbone = recipe.backbone;
  int64_t blocks = 0;
  const Adapter* adapter = model.adapter.get();
  while (adapter && blocks < model.backbone->depth() && !adapter->touches(blocks)) ++blocks;
  return model.identity.hash + " " + write_json_fields(backbone) + " " +
         (adapter ? std::to_string(blocks) + " blocks" : "features") + " " +
         std::to_string(model.backbone->feature_dim()) + " " +
         kPrecisionNames[static_cast<size_t>(recipe.train.precision)] + " " + model.device().str();
}

}  // namespace

std::shared_ptr<ImageCache> RunCache::images(const std::string& key, const Dataset& split) {
  std::shared_ptr<ImageCache>& kept = images_[key];
  if (!kept) kept = std::make_shared<ImageCache>(split.size(), budget_);
  return kept;
}

SplitCache RunCache::always_same(const TunedModel& model, const Dataset& split,
                                 const Recipe& recipe, const ImagePipeline& view,
                                 const std::string& where) {
  SplitCache cache;
  if (!on_) return cache;
  InputConfig input = view.input();
  const std::string key = key_of(recipe, split, where) + " " + write_json_fields(input);
  if (!model.has_stem()) {
    cache.images = images(key, split);
    return cache;
  }
  std::shared_ptr<SampleTensors>& kept = stems_[key + " " + stem_key(model, recipe)];
  if (!kept) kept = std::make_shared<SampleTensors>(split.size(), budget_);
  cache.stem = std::make_unique<StemCache>(model, kept, where);
  return cache;
}

SplitCache RunCache::for_evaluation(const TunedModel& model, const Dataset& val,
                                    const Recipe& recipe, const ImagePipeline& view) {
  return always_same(model, val, recipe, view, "data.val");
}

SplitCache RunCache::for_training(const TunedModel& model, const Dataset& train,
                                  const Recipe& recipe, const std::vector<View>& views) {
  const std::string where = "data.train";
  const ImagePipeline& student = *views.front().pipeline;
  if (views.size() == 1 && !student.random() && !recipe.augment.mix.on())
    return always_same(model, train, recipe, student, where);
  SplitCache cache;
  if (!on_) return cache;
  const bool changing = std::any_of(views.begin(), views.end(), [](const View& view) {
    return view.pipeline->random() && !view.fixed;
  });
  // Teachers' views beside one that never changes are this run's own.
  cache.images = changing ? images(key_of(recipe, train, where), train)
                          : std::make_shared<ImageCache>(train.size(), budget_);
  return cache;
}

bool RunCache::take_answers(int64_t bytes) {
  if (bytes <= answers_) return true;
  if (!budget_->take(bytes - answers_)) return false;
  answers_ = bytes;
  return true;
}

bool RunCache::known_whole(const DataConfig& data) const {
  return whole_.count(key_of(data, "")) != 0;
}

void RunCache::set_whole(const DataConfig& data) { whole_.insert(key_of(data, "")); }

}  // namespace convpass
