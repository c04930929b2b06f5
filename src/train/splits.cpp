#include "src/train/splits.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "convpass/core/error.h"
#include "convpass/train/progress.h"

namespace convpass {

int worker_count(const TrainConfig& config) {
  if (config.workers > 0) return static_cast<int>(config.workers);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 2);
}

StreamOptions stream_options(const Recipe& recipe) {
  return {.batch_size = recipe.train.batch_size,
          .seed = static_cast<uint64_t>(recipe.train.seed),
          .workers = worker_count(recipe.train),
          .drop_last = recipe.train.drop_last,
          .small_set = recipe.train.small_set,
          .replay_epochs = recipe.distill.replay_epochs(),
          .repeats = recipe.augment.repeated};
}

namespace {

bool is_text(const std::string& name) {
  // What JSON cannot hold would be found out only when the adapter is written.
  return nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::ignore) ==
         nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::unique_ptr<Dataset> open_split(const Recipe& recipe, const DatasetConfig& config,
                                    int64_t classes, const std::string& where) {
  auto dataset =
      open_dataset(config, {.exif_orientation = recipe.input.exif_orientation}, classes, where);
  const std::vector<std::string>& names = recipe.data.class_names;
  if (!names.empty()) {
    if (std::holds_alternative<FolderSource>(config.source))
      throw RecipeError(recipe.file, "/data/class_names",
                        "got names for " + where + ", whose folders name the classes; wanted none");
    dataset->name_classes(names, where);
  }
  for (const std::string& name : dataset->classes())
    if (!is_text(name)) throw Error(where + ": the name of a class is not UTF-8");
  return dataset;
}

}  // namespace

void check_images(Dataset& dataset, const Recipe& recipe, const std::string& where) {
  Progress progress("checking " + where, dataset.size(), "image");
  const std::vector<BrokenImage> broken =
      find_broken_images(dataset, worker_count(recipe.train), [&](int64_t done) {
        progress.update(done);
        return !stop_requested();
      });
  progress.finish();
  if (broken.empty() || stop_requested()) return;
  if (recipe.data.on_error == OnError::stop) {
    for (size_t i = 0; i < std::min<size_t>(10, broken.size()); ++i) say(broken[i].message);
    throw Error(
        where + ": " + std::to_string(broken.size()) + " of " + std::to_string(dataset.size()) +
        " images cannot be read (listed above, ten at most); mend them, or leave them out with "
        "data.on_error \"skip\"");
  }
  std::vector<int64_t> whole;
  for (int64_t i = 0, next = 0; i < dataset.size(); ++i) {
    if (next < static_cast<int64_t>(broken.size()) && broken[static_cast<size_t>(next)].index == i)
      ++next;
    else
      whole.push_back(i);
  }
  if (whole.empty()) throw Error(where + ": no image can be read");
  dataset.keep(whole);
  say(where + ": left out " + std::to_string(broken.size()) + " images that cannot be read");
}

std::unique_ptr<Dataset> open_checked(const Recipe& recipe, const DatasetConfig& config,
                                      int64_t classes, const std::string& where) {
  auto dataset = open_split(recipe, config, classes, where);
  require_labels(*dataset, where, "to evaluate on");
  check_images(*dataset, recipe, where);
  return dataset;
}

Splits open_splits(const Recipe& recipe, const std::vector<std::string>& teacher_classes) {
  const DataConfig& data = recipe.data;
  Splits splits;
  splits.train = open_split(recipe, *data.train, data.classes, "data.train");
  if (recipe.loss.label_weight > 0) require_labels(*splits.train, "data.train", "to train on");
  bool named = splits.train->labelled() || !data.class_names.empty();
  const size_t given = splits.train->classes().size();
  if (!named && !teacher_classes.empty() && (given == 0 || given == teacher_classes.size())) {
    splits.train->name_classes(teacher_classes, "data.train");
    named = true;
  }
  auto other = [&](const std::optional<DatasetConfig>& config, const std::string& where) {
    std::unique_ptr<Dataset> dataset;
    if (!config) return dataset;
    const auto classes = static_cast<int64_t>(splits.train->classes().size());
    dataset = open_split(recipe, *config, classes, where);
    require_labels(*dataset, where, "to evaluate on");
    const std::vector<std::string>&ours = splits.train->classes(), &theirs = dataset->classes();
    if (!named && (ours.empty() || ours.size() == theirs.size())) {
      splits.train->name_classes(theirs, "data.train");
      named = true;
    }
    check_same_classes(*splits.train, *dataset, where);
    return dataset;
  };
  splits.val = other(data.val, "data.val");
  splits.test = other(data.test, "data.test");
  if (splits.train->classes().empty()) {
    throw Error(
        "data.train: got images without labels and no data.classes, wanted the number of "
        "classes");
  }
  return splits;
}

void check_pairs(const Recipe& recipe, int64_t images) {
  const MixConfig& mix = recipe.augment.mix;
  if (!mix.on() || mix.style != MixStyle::timm) return;
  const int64_t batch =
      std::ssize(BatchOrder(images, stream_options(recipe)).samples(/*step=*/0).indices);
  if (batch % 2 != 0)
    throw RecipeError(recipe.file, "/train/batch_size",
                      "got a batch of all " + std::to_string(batch) +
                          " training images, wanted an even number: augment.mix_style \"timm\" "
                          "mixes pairs");
}

void check_images(Splits& splits, const Recipe& recipe) {
  check_pairs(recipe, splits.train->size());
  check_images(*splits.train, recipe, "data.train");
  check_pairs(recipe, splits.train->size());  // some may have been left out
  if (splits.val) check_images(*splits.val, recipe, "data.val");
  if (splits.test) check_images(*splits.test, recipe, "data.test");
}

}  // namespace convpass
