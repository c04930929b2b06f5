#include "src/train/splits.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <thread>

#include "convpass/core/error.h"
#include "convpass/train/progress.h"
#include "src/train/build_head.h"

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

std::string name_of(Split split) {
  return std::array{"train", "val", "test"}[static_cast<size_t>(split)];
}

std::unique_ptr<Dataset> open_named(const Recipe& recipe, const DatasetConfig& config,
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

/// What data.val takes out of the training set; null where it is a set of its own, or trained on.
const HeldOutSource* held_out(const DataConfig& data) {
  return data.val && !data.train_on_val ? std::get_if<HeldOutSource>(&data.val->source) : nullptr;
}

/// Whether the training set grows by a data.val of its own.
bool adds_val(const DataConfig& data) {
  return data.val && data.train_on_val && !std::holds_alternative<HeldOutSource>(data.val->source);
}

std::unique_ptr<Dataset> with_val(std::unique_ptr<Dataset> train, std::unique_ptr<Dataset> val) {
  require_labels(*train, "data.train", "to train on data.val too");
  return joined(std::move(train), std::move(val));
}

}  // namespace

std::unique_ptr<Dataset> open_split(const Recipe& recipe, Split split, int64_t classes) {
  const DataConfig& data = recipe.data;
  auto open = [&](Split which) {
    const std::array parts{&data.train, &data.val, &data.test};
    const auto& part = *parts[static_cast<size_t>(which)];
    if (!part) throw RecipeError(recipe.file, "/data/" + name_of(which), "missing, wanted images");
    return open_named(recipe, *part, classes, "data." + name_of(which));
  };
  if (split == Split::test) return open(split);
  if (const HeldOutSource* held = held_out(data)) {
    HeldOut parts = hold_out(open(Split::train), *held, data.val->seed);
    return split == Split::train ? std::move(parts.rest) : std::move(parts.part);
  }
  if (split == Split::val || !adds_val(data)) return open(split);
  return with_val(open(Split::train), open(Split::val));
}

bool check_images(Dataset& dataset, const Recipe& recipe, const std::string& where) {
  Progress progress("checking " + where, dataset.size(), "image");
  const std::vector<BrokenImage> broken =
      find_broken_images(dataset, worker_count(recipe.train), [&](int64_t done) {
        progress.update(done);
        return !stop_requested();
      });
  progress.finish();
  if (broken.empty() || stop_requested()) return !stop_requested();
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
  return false;
}

namespace {

std::unique_ptr<Dataset> labelled(std::unique_ptr<Dataset> dataset, const std::string& where) {
  require_labels(*dataset, where, "to evaluate on");
  return dataset;
}

}  // namespace

std::unique_ptr<Dataset> open_labelled(const Recipe& recipe, Split split, int64_t classes) {
  return labelled(open_split(recipe, split, classes), "data." + name_of(split));
}

std::unique_ptr<Dataset> open_labelled(const Recipe& recipe, const DatasetConfig& config,
                                       int64_t classes, const std::string& where) {
  return labelled(open_named(recipe, config, classes, where), where);
}

Splits open_splits(const Recipe& recipe, const std::vector<std::string>& teacher_classes) {
  const DataConfig& data = recipe.data;
  Splits splits;
  splits.train = open_named(recipe, *data.train, data.classes, "data.train");
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
    dataset = open_named(recipe, *config, classes, where);
    require_labels(*dataset, where, "to evaluate on");
    const std::vector<std::string>&ours = splits.train->classes(), &theirs = dataset->classes();
    if (!named && (ours.empty() || ours.size() == theirs.size())) {
      splits.train->name_classes(theirs, "data.train");
      named = true;
    }
    check_same_classes(*splits.train, *dataset, where);
    return dataset;
  };
  if (const HeldOutSource* held = held_out(data)) {
    HeldOut parts = hold_out(std::move(splits.train), *held, data.val->seed);
    splits.train = std::move(parts.rest);
    splits.val = std::move(parts.part);
  } else if (!data.train_on_val) {
    splits.val = other(data.val, "data.val");
  } else if (adds_val(data)) {
    auto val = other(data.val, "data.val");
    splits.train = with_val(std::move(splits.train), std::move(val));
  }
  splits.test = other(data.test, "data.test");
  if (splits.train->classes().empty()) {
    throw Error(
        "data.train: got images without labels and no data.classes, wanted the number of "
        "classes");
  }
  check_class_texts(recipe, *splits.train);
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

bool check_images(Splits& splits, const Recipe& recipe) {
  check_pairs(recipe, splits.train->size());
  bool whole = check_images(*splits.train, recipe, "data.train");
  check_pairs(recipe, splits.train->size());  // some may have been left out
  if (splits.val) whole &= check_images(*splits.val, recipe, "data.val");
  if (splits.test) whole &= check_images(*splits.test, recipe, "data.test");
  return whole;
}

}  // namespace convpass
