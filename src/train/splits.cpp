#include "src/train/splits.h"

#include <algorithm>
#include <thread>

#include "convpass/core/error.h"
#include "convpass/train/progress.h"

namespace convpass {

int worker_count(const TrainConfig& config) {
  if (config.workers > 0) return static_cast<int>(config.workers);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2);
}

std::unique_ptr<Dataset> open_checked(const DatasetConfig& config, const DataConfig& data,
                                      int64_t classes, int workers, const std::string& where) {
  auto dataset = open_dataset(config, {.exif_orientation = data.exif_orientation}, classes, where);
  if (!data.class_names.empty() && !std::holds_alternative<FolderSource>(config.source)) {
    dataset->name_classes(data.class_names, where);
  }
  Progress progress("checking " + where, dataset->size(), "image");
  const std::vector<BrokenImage> broken =
      find_broken_images(*dataset, workers, [&](int64_t done) { progress.update(done); });
  progress.finish();
  if (broken.empty()) return dataset;
  if (data.on_error == OnError::stop) {
    for (size_t i = 0; i < std::min<size_t>(10, broken.size()); ++i) say(broken[i].message);
    throw Error(
        where + ": " + std::to_string(broken.size()) + " of " + std::to_string(dataset->size()) +
        " images cannot be read (listed above, ten at most); mend them, or leave them out with "
        "data.on_error \"skip\"");
  }
  std::vector<int64_t> whole;
  for (int64_t i = 0, next = 0; i < dataset->size(); ++i) {
    if (next < static_cast<int64_t>(broken.size()) && broken[static_cast<size_t>(next)].index == i)
      ++next;
    else
      whole.push_back(i);
  }
  if (whole.empty()) throw Error(where + ": no image can be read");
  dataset->keep(whole);
  say(where + ": left out " + std::to_string(broken.size()) + " images that cannot be read");
  return dataset;
}

Splits open_splits(const Recipe& recipe) {
  const DataConfig& data = recipe.data;
  const int workers = worker_count(recipe.train);
  Splits splits;
  splits.train = open_checked(*data.train, data, data.classes, workers, "data.train");
  const auto classes = static_cast<int64_t>(splits.train->classes().size());
  auto other = [&](const std::optional<DatasetConfig>& config, const std::string& where) {
    std::unique_ptr<Dataset> dataset;
    if (!config) return dataset;
    dataset = open_checked(*config, data, classes, workers, where);
    check_same_classes(*splits.train, *dataset, where);
    return dataset;
  };
  splits.val = other(data.val, "data.val");
  splits.test = other(data.test, "data.test");
  return splits;
}

}  // namespace convpass
