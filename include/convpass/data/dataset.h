#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "convpass/data/image.h"

namespace convpass {

class FieldVisitor;

/// A folder per class: path/CLASS/**.jpg. Classes in the order of their names (byte order), images
/// in that of their paths. Files count by extension; hidden ones do not; symbolic links are
/// followed.
struct FolderSource {
  std::filesystem::path path;
};
/// A text file of `path label` lines (the VTAB layout), the label after the last blank; paths
/// relative to `root`, or to the list's folder when `root` is empty; labels from 0.
struct ListSource {
  std::filesystem::path path;
  std::filesystem::path root;
};
/// The idx files of MNIST and Fashion-MNIST, plain or gzip.
struct IdxSource {
  std::filesystem::path images;
  std::filesystem::path labels;
};
/// The binary files of CIFAR-10/100: a folder holding data_batch_*.bin/test_batch.bin or
/// train.bin/test.bin; `split` is "train" or "test".
struct CifarSource {
  std::filesystem::path path;
  std::string split = "train";
};
/// A `.npz` file: images `[N, H, W]` or `[N, H, W, 3]` uint8 and integer labels `[N]` under these
/// names.
struct NpzSource {
  std::filesystem::path path;
  std::string images = "images";
  std::string labels = "labels";
};

/// Every image at or below a folder, in the order of their paths, without labels.
struct ImagesSource {
  std::filesystem::path path;
};

/// A part of data.train, which loses it; of data.val alone.
struct HeldOutSource {
  double fraction = 0.2;  ///< of each class, to the nearest image
};

struct DatasetConfig {
  std::variant<FolderSource, ListSource, IdxSource, CifarSource, NpzSource, ImagesSource,
               HeldOutSource>
      source;
  int64_t limit = 0;      ///< keep this many images (0 = all), chosen by seed
  int64_t per_class = 0;  ///< keep this many images of each class (0 = all), chosen by seed
  int64_t seed = 0;       ///< of the two choices above and of what is held out
};

enum class OnError { stop, skip };

struct DataConfig {
  std::filesystem::path root;  ///< where relative paths below start; resolved paths are absolute
  std::optional<DatasetConfig> train, val, test;
  bool train_on_val = false;             ///< nothing is left to choose by
  int64_t classes = 0;                   ///< 0 = as many as the training set has
  std::vector<std::string> class_names;  ///< for sets that only number their classes
  OnError on_error = OnError::stop;
  int64_t cache_mb = 2048;    ///< memory for what is kept of images, MiB
  int64_t cache_disk_mb = 0;  ///< disk in the run's folder for what memory does not hold, MiB
};

void fields(FieldVisitor& visitor, FolderSource& source);
void fields(FieldVisitor& visitor, ListSource& source);
void fields(FieldVisitor& visitor, IdxSource& source);
void fields(FieldVisitor& visitor, CifarSource& source);
void fields(FieldVisitor& visitor, NpzSource& source);
void fields(FieldVisitor& visitor, ImagesSource& source);
void fields(FieldVisitor& visitor, HeldOutSource& source);
void fields(FieldVisitor& visitor, DatasetConfig& config);
void fields(FieldVisitor& visitor, DataConfig& config);

/// Images in a fixed order, with labels or all of them without. Immutable; every method may be
/// called from several threads.
class Dataset {
 public:
  virtual ~Dataset() = default;
  int64_t size() const { return static_cast<int64_t>(labels_.size()); }
  bool labelled() const { return labels_.empty() || labels_.front() >= 0; }
  /// -1 without labels.
  int64_t label(int64_t index) const { return labels_[static_cast<size_t>(index)]; }
  const std::vector<int64_t>& labels() const { return labels_; }
  /// Without labels: as many as open_dataset was told, perhaps none.
  const std::vector<std::string>& classes() const { return classes_; }
  /// What to call sample `index` in a message: a path, or where one file holds several
  /// "train-images-idx3-ubyte.gz#17", "medmnist.npz#train_images#17". An image has no other name in
  /// another split of the same files.
  virtual std::string name(int64_t index) const = 0;
  /// Decodes. Errors: FileError.
  virtual Image image(int64_t index) const = 0;
  /// Whether image() only copies, so that keeping decoded images would gain nothing.
  virtual bool in_memory() const { return false; }
  /// Keeps the samples with these indices, in this order.
  virtual void keep(const std::vector<int64_t>& indices) = 0;
  /// Names the classes, which must be as many (a set without labels and classes takes any number).
  /// Errors: Error.
  void name_classes(const std::vector<std::string>& names, const std::string& where);

 protected:
  std::vector<int64_t> labels_;
  std::vector<std::string> classes_;
};

/// Opens a data set and cuts it to `per_class` and `limit`. `where` names it in messages
/// ("data.train"). `classes`: 0, or the number of classes the labels must lie in (and that a set
/// without labels has). Subset rule: the
/// samples of a class (of the whole set for `limit`) sorted by random_key(seed, 0, index,
/// Purpose::subset); the first k are kept, in the order of the data set. Errors: FileError (nothing
/// found, empty class, label out of range, damaged file, too few per class, per_class without
/// labels).
std::unique_ptr<Dataset> open_dataset(const DatasetConfig& config, const DecodeOptions& decode,
                                      int64_t classes, const std::string& where);

/// A data set in two: what is held out of it and the rest, each in its order.
struct HeldOut {
  std::unique_ptr<Dataset> rest, part;
};

/// Of each class of n images round(fraction n), at least 1 and at most n - 1: those with the
/// smallest random_key(seed, 0, index, Purpose::hold_out). Errors: Error (no labels, a class of
/// fewer than two images).
HeldOut hold_out(std::shared_ptr<const Dataset> whole, const HeldOutSource& source, int64_t seed);

/// Both, one behind the other, as one set with the classes of the first. Both have labels, or
/// neither.
std::unique_ptr<Dataset> joined(std::shared_ptr<const Dataset> first,
                                std::shared_ptr<const Dataset> second);

/// The file that the image of this name lies in.
std::filesystem::path file_of(const std::string& name);

/// Whether the names only count, 0, 1, 2, ...: such classes are not known by name.
bool are_counted(const std::vector<std::string>& classes);

/// Errors: Error when `dataset` has no labels; `purpose` says what they are needed for.
void require_labels(const Dataset& dataset, const std::string& where, const std::string& purpose);

/// Classes of two splits must agree. For folders: the same names. A split that lacks a class is an
/// error that names it. Errors: Error.
void check_same_classes(const Dataset& train, const Dataset& other, const std::string& where);

struct BrokenImage {
  int64_t index;
  std::string message;
};

/// Decodes everything once, in parallel, and returns what cannot be read. `progress` is called from
/// one thread with the number done; false ends the search early.
std::vector<BrokenImage> find_broken_images(const Dataset& dataset, int workers,
                                            const std::function<bool(int64_t)>& progress = {});

}  // namespace convpass
