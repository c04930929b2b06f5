#include "src/train/run_cache.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "convpass/train/progress.h"
#include "src/train/memory.h"

namespace convpass {

at::Tensor StemCache::of(const Batch& batch) {
  std::vector<int64_t> known, known_rows, missing, missing_rows;
  for (size_t row = 0; row < batch.indices.size(); ++row) {
    const bool blank = batch.blank(row);
    (blank ? known : missing).push_back(batch.indices[row]);
    (blank ? known_rows : missing_rows).push_back(static_cast<int64_t>(row));
  }
  if (missing.empty()) return kept_.take(known).to(model_.device());
  const at::Tensor rows = at::tensor(missing_rows, at::kLong);
  at::Tensor computed;
  {
    at::NoGradGuard no_grad;
    const at::Tensor images = known.empty() ? batch.images : batch.images.index_select(0, rows);
    computed = model_.stem(images.to(model_.device()));
  }
  const bool first = kept_.row_bytes() == 0;
  kept_.put(missing, computed);
  if (first) report();
  if (known.empty()) return computed;
  std::vector<int64_t> shape = computed.sizes().vec();
  shape.front() = static_cast<int64_t>(batch.indices.size());
  at::Tensor all = at::empty(shape, computed.options());
  all.index_copy_(0, rows.to(all.device()), computed);
  return all.index_copy_(0, at::tensor(known_rows, at::kLong).to(all.device()),
                         kept_.take(known).to(all.device()));
}

void StemCache::report() const {
  std::string line = "cache: what the frozen part makes of " + where_ + " is computed once (" +
                     mebibytes(static_cast<double>(kept_.row_bytes())) + " an image)";
  if (kept_.room() < kept_.samples())
    line += "; there is room for " + std::to_string(kept_.room()) + " of " +
            std::to_string(kept_.samples()) +
            " images, the others are computed again each time (data.cache_mb, data.cache_disk_mb)";
  else if (kept_.disk_rows() > 0)
    line += ", " + std::to_string(kept_.disk_rows()) + " of " + std::to_string(kept_.samples()) +
            " on disk";
  say(line);
}

StreamOptions SplitCache::apply(StreamOptions options) const {
  options.images = images;
  if (stem) options.known = [stem = stem.get()](int64_t image) { return stem->known(image); };
  return options;
}

SplitCache RunCache::for_evaluation(const TunedModel& model, const Dataset& split,
                                    const std::string& where) const {
  SplitCache cache;
  if (!on_) return cache;
  if (model.has_stem())
    cache.stem = std::make_unique<StemCache>(model, split.size(), budget_, where);
  else
    cache.images = std::make_shared<ImageCache>(split.size(), budget_);
  return cache;
}

SplitCache RunCache::for_training(const TunedModel& model, const Dataset& split,
                                  const Recipe& recipe, const std::vector<View>& views) const {
  const bool same_view = views.size() == 1 && !views.front().pipeline->random();
  if (same_view && !recipe.augment.mix.on()) return for_evaluation(model, split, "data.train");
  SplitCache cache;
  if (on_) cache.images = std::make_shared<ImageCache>(split.size(), budget_);
  return cache;
}

}  // namespace convpass
