#include "convpass/data/dataset.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "convpass/core/error.h"
#include "convpass/core/fields.h"
#include "src/data/dataset_kinds.h"

namespace convpass {
namespace {

std::vector<int64_t> choose_per_class(const Dataset& dataset, int64_t count, int64_t seed) {
  const std::vector<std::vector<int64_t>> members = members_by_class(dataset);
  std::vector<int64_t> kept;
  for (size_t label = 0; label < members.size(); ++label) {
    if (static_cast<int64_t>(members[label].size()) < count) {
      throw Error("per_class: class " + dataset.classes()[label] + " has " +
                  std::to_string(members[label].size()) + " images, wanted at least " +
                  std::to_string(count));
    }
    const std::vector<int64_t> chosen = choose(members[label], count, seed, Purpose::subset);
    kept.insert(kept.end(), chosen.begin(), chosen.end());
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

void cut(Dataset& dataset, const DatasetConfig& config) {
  if (config.per_class <= 0 && config.limit <= 0) return;
  std::vector<int64_t> kept;
  if (config.per_class > 0) {
    if (!dataset.labelled()) {
      throw Error("per_class: got images without labels, wanted limit, or a format with labels");
    }
    kept = choose_per_class(dataset, config.per_class, config.seed);
  } else {
    for (int64_t i = 0; i < dataset.size(); ++i) kept.push_back(i);
  }
  if (config.limit > 0) kept = choose(kept, config.limit, config.seed, Purpose::subset);
  dataset.keep(kept);
}

}  // namespace

std::filesystem::path file_of(const std::string& name) {
  std::error_code none;
  std::string file = name;
  while (!std::filesystem::exists(file, none)) {
    const size_t part = file.rfind('#');
    if (part == std::string::npos) return name;
    file.resize(part);
  }
  return file;
}

bool are_counted(const std::vector<std::string>& classes) {
  for (size_t i = 0; i < classes.size(); ++i) {
    if (classes[i] != std::to_string(i)) return false;
  }
  return true;
}

std::vector<std::vector<int64_t>> members_by_class(const Dataset& dataset) {
  std::vector<std::vector<int64_t>> members(dataset.classes().size());
  for (int64_t i = 0; i < dataset.size(); ++i) {
    members[static_cast<size_t>(dataset.label(i))].push_back(i);
  }
  return members;
}

std::vector<int64_t> choose(const std::vector<int64_t>& indices, int64_t count, int64_t seed,
                            Purpose purpose) {
  std::vector<std::pair<uint64_t, int64_t>> keyed;
  for (int64_t index : indices) {
    keyed.emplace_back(
        random_key(static_cast<uint64_t>(seed), 0, static_cast<uint64_t>(index), purpose), index);
  }
  if (count < static_cast<int64_t>(keyed.size())) {
    std::sort(keyed.begin(), keyed.end());
    keyed.resize(static_cast<size_t>(count));
  }
  std::vector<int64_t> kept;
  for (const auto& [key, index] : keyed) kept.push_back(index);
  std::sort(kept.begin(), kept.end());
  return kept;
}

void fields(FieldVisitor& visitor, FolderSource& source) {
  visitor.field("path", source.path, "a folder that holds one folder of images per class");
}

void fields(FieldVisitor& visitor, ListSource& source) {
  visitor.field("path", source.path, "a text file of lines `path label`, labels from 0");
  visitor.field("root", source.root,
                "folder that the paths in the list are relative to; empty = that of the list");
}

void fields(FieldVisitor& visitor, IdxSource& source) {
  visitor.field("images", source.images, "idx file of the images (MNIST), plain or gzip");
  visitor.field("labels", source.labels, "idx file of the labels, plain or gzip");
}

void fields(FieldVisitor& visitor, CifarSource& source) {
  visitor.field("path", source.path, "folder of the binary version of CIFAR-10 or CIFAR-100");
  visitor.field("split", source.split, "train or test");
}

void fields(FieldVisitor& visitor, NpzSource& source) {
  visitor.field("path", source.path, "npz file");
  visitor.field("images", source.images, "name of the images, uint8 [N, H, W] or [N, H, W, 3]");
  visitor.field("labels", source.labels, "name of the labels, whole numbers [N] from 0");
}

void fields(FieldVisitor& visitor, ImagesSource& source) {
  visitor.field("path", source.path, "a folder of images without labels, at any depth");
}

void fields(FieldVisitor& visitor, HeldOutSource& source) {
  visitor.field("fraction", source.fraction,
                "how much of each class of data.train is held out, to the nearest image, at least "
                "one and never all",
                {.min = 0, .max = 0.9, .above_min = true});
}

void fields(FieldVisitor& visitor, DatasetConfig& config) {
  visitor.variant(
      "format", config.source, {"folder", "list", "idx", "cifar", "npz", "images", "held_out"},
      "how the images are stored; \"held_out\", of data.val alone: a part of data.train, "
      "which loses it");
  visitor.field("limit", config.limit, "keep at most this many images, chosen by seed; 0 = all",
                at_least(0));
  visitor.field("per_class", config.per_class,
                "keep this many images of each class, chosen by seed; 0 = all", at_least(0));
  visitor.field("seed", config.seed, "of the choice by limit, per_class and held_out", at_least(0));
}

void fields(FieldVisitor& visitor, DataConfig& config) {
  visitor.paths_root("root", config.root,
                     "folder at which relative paths of train, val and test start; empty: each "
                     "at the folder of the recipe that names it");
  visitor.optional_part("train", config.train, "images to train on");
  visitor.optional_part("val", config.val, "images to choose settings by");
  visitor.optional_part("test", config.test, "images to report on");
  visitor.field("train_on_val", config.train_on_val,
                "train on the images of data.val too, which leaves none to choose by: the last run "
                "after a search");
  visitor.field("classes", config.classes, "number of classes; 0 = as many as the training set has",
                at_least(0));
  visitor.field("class_names", config.class_names,
                "names in the order of the labels, for sets that only number their classes");
  visitor.choice("on_error", config.on_error, {"stop", "skip"},
                 "what to do about an image that cannot be decoded");
  visitor.field("cache_mb", config.cache_mb,
                "memory in MiB for what need not be computed again of each image: what the frozen "
                "part makes of it where its view is always the same, else its pixels; 0 = none",
                between(0, 1 << 24));
  visitor.field("cache_disk_mb", config.cache_disk_mb,
                "disk in MiB, in the run's folder, for what the frozen part makes of images beyond "
                "cache_mb; 0 = none",
                between(0, 1 << 24));
}

std::unique_ptr<Dataset> open_dataset(const DatasetConfig& config, const DecodeOptions& decode,
                                      int64_t classes, const std::string& where) {
  try {
    std::unique_ptr<Dataset> dataset = std::visit(
        [&](const auto& source) { return open_source(source, decode, classes); }, config.source);
    cut(*dataset, config);
    return dataset;
  } catch (const Error& error) {
    throw FileError(where, error.what());
  }
}

void Dataset::name_classes(const std::vector<std::string>& names, const std::string& where) {
  if (names.size() != classes_.size() && (labelled() || !classes_.empty())) {
    throw Error(where + ": data.class_names has " + std::to_string(names.size()) +
                " names, wanted one for each of the " + std::to_string(classes_.size()) +
                " classes");
  }
  classes_ = names;
}

void require_labels(const Dataset& dataset, const std::string& where, const std::string& purpose) {
  if (dataset.labelled()) return;
  throw Error(where + ": got images without labels, wanted labels " + purpose);
}

void check_same_classes(const Dataset& train, const Dataset& other, const std::string& where) {
  const std::vector<std::string>&ours = train.classes(), &theirs = other.classes();
  if (!train.labelled() && are_counted(ours) && ours.size() == theirs.size()) return;
  if (are_counted(theirs)) {
    if (theirs.size() > ours.size()) {
      throw Error(where + ": got labels of " + std::to_string(theirs.size()) +
                  " classes, the training set has " + std::to_string(ours.size()));
    }
    return;
  }
  for (const std::string& name : ours) {
    if (std::find(theirs.begin(), theirs.end(), name) == theirs.end()) {
      throw Error(where + ": no images of class \"" + name + "\" of the training set");
    }
  }
  for (const std::string& name : theirs) {
    if (std::find(ours.begin(), ours.end(), name) == ours.end()) {
      throw Error(where + ": class \"" + name + "\" is not in the training set");
    }
  }
  if (ours != theirs) throw Error(where + ": the classes stand in another order than in training");
}

std::vector<BrokenImage> find_broken_images(const Dataset& dataset, int workers,
                                            const std::function<bool(int64_t)>& progress) {
  std::vector<BrokenImage> broken;
  std::mutex mutex;
  std::condition_variable changed;
  std::atomic<int64_t> next{0};
  int64_t done = 0;  // under the mutex
  auto work = [&] {
    for (int64_t index = next++; index < dataset.size(); index = next++) {
      std::string message;
      bool good = false;
      try {
        dataset.image(index);
        good = true;
      } catch (const std::exception& error) {
        message = error.what();
      }
      std::lock_guard lock(mutex);
      if (!good) broken.push_back({index, std::move(message)});
      ++done;
      changed.notify_one();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < std::max(workers, 1); ++i) threads.emplace_back(work);
    std::unique_lock lock(mutex);
    for (int64_t reported = 0; reported < dataset.size();) {
      changed.wait(lock, [&] { return done > reported; });
      reported = done;
      lock.unlock();
      const bool goes_on = !progress || progress(reported);
      lock.lock();
      if (goes_on) continue;
      next = dataset.size();
      break;
    }
  }
  std::sort(broken.begin(), broken.end(),
            [](const BrokenImage& a, const BrokenImage& b) { return a.index < b.index; });
  return broken;
}

}  // namespace convpass
