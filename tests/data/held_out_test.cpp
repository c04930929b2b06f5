#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "convpass/core/error.h"
#include "convpass/core/rng.h"
#include "convpass/data/dataset.h"
#include "data/image_files.h"
#include "tests/core/temp_folder.h"
#include "tests/core/zip_files.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using test::bytes_of;
using test::image_file;
using test::message_of;
using test::write_bytes;

/// The same labels in every format: class c has sizes[c] images, in turn as long as they last.
class HeldOutSet : public testing::Test {
 protected:
  static std::vector<uint8_t> labels_of(std::vector<int> sizes) {
    std::vector<uint8_t> labels;
    for (bool more = true; more;) {
      more = false;
      for (size_t c = 0; c < sizes.size(); ++c)
        if (sizes[c]-- > 0) labels.push_back(static_cast<uint8_t>(c)), more = true;
    }
    return labels;
  }
  static std::string word(uint32_t value) {
    std::string text;
    for (int shift = 24; shift >= 0; shift -= 8) text += static_cast<char>(value >> shift);
    return text;
  }
  void write(const std::string& name, const std::string& text) const {
    write_bytes(folder_ / name, {text.begin(), text.end()});
  }
  static std::string npy(const std::string& shape, const std::string& data) {
    std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': (" + shape + "), }";
    header.resize(117, ' ');
    header += '\n';
    return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header +
           data;
  }
  /// Image i is one pixel of the level i (CIFAR: 32 by 32 of it).
  DatasetConfig stored(const std::string& format, const std::vector<int>& sizes) const {
    const std::vector<uint8_t> labels = labels_of(sizes);
    std::string levels, numbers(labels.begin(), labels.end());
    for (size_t i = 0; i < labels.size(); ++i) levels += static_cast<char>(i);
    const auto count = static_cast<uint32_t>(labels.size());
    if (format == "idx") {
      write("images", word(0x803) + word(count) + word(1) + word(1) + levels);
      write("labels", word(0x801) + word(count) + numbers);
      return {IdxSource{folder_ / "images", folder_ / "labels"}};
    }
    if (format == "npz") {
      write("set.npz", zip_bytes({{"images.npy", npy(std::to_string(count) + ", 1, 1", levels)},
                                  {"labels.npy", npy(std::to_string(count) + ",", numbers)}}));
      return {NpzSource{folder_ / "set.npz"}};
    }
    if (format == "cifar") {
      std::string bytes;
      for (size_t i = 0; i < labels.size(); ++i) bytes += numbers[i] + std::string(3072, levels[i]);
      write("data_batch_1.bin", bytes);
      return {CifarSource{folder_.path(), "train"}};
    }
    std::string list;
    for (size_t i = 0; i < labels.size(); ++i) {
      const std::string name =
          "photos/" + std::to_string(labels[i]) + "/" + std::to_string(i) + ".png";
      fs::create_directories((folder_ / name).parent_path());
      fs::copy_file(image_file("png_rgb.png"), folder_ / name,
                    fs::copy_options::overwrite_existing);
      list += name + " " + std::to_string(labels[i]) + "\n";
    }
    write("list.txt", list);
    if (format == "list") return {ListSource{folder_ / "list.txt", {}}};
    return {FolderSource{folder_ / "photos"}};
  }
  std::shared_ptr<const Dataset> open(const DatasetConfig& config) const {
    return open_dataset(config, {}, 0, "data.train");
  }
  static std::vector<std::string> names(const Dataset& dataset) {
    std::vector<std::string> result;
    for (int64_t i = 0; i < dataset.size(); ++i) result.push_back(dataset.name(i));
    return result;
  }

  TempFolder folder_;
};

TEST_F(HeldOutSet, IsAShareOfEachClassInEveryFormat) {
  for (const char* format : {"folder", "list", "idx", "cifar", "npz"}) {
    std::vector<int> sizes{13, 6, 2, 20};
    if (std::string(format) == "cifar") sizes.insert(sizes.end(), {3, 3, 3, 3, 3, 3});
    const auto whole = open(stored(format, sizes));
    const HeldOut parts = hold_out(whole, {.fraction = 0.2}, 0);
    std::vector<int> held(sizes.size()), kept(sizes.size());
    for (int64_t label : parts.part->labels()) ++held[static_cast<size_t>(label)];
    for (int64_t label : parts.rest->labels()) ++kept[static_cast<size_t>(label)];
    for (size_t c = 0; c < sizes.size(); ++c) {
      const int wanted = std::max(1, static_cast<int>(std::lround(0.2 * sizes[c])));
      EXPECT_EQ(held[c], wanted) << format << " " << c;
      EXPECT_EQ(kept[c], sizes[c] - wanted) << format << " " << c;
    }
    EXPECT_EQ(parts.part->classes(), whole->classes());
    EXPECT_EQ(parts.rest->in_memory(), whole->in_memory());

    // Each image stands in one of the two, in its order, with its label and its pixels.
    std::map<std::string, int64_t> place;
    for (int64_t i = 0; i < whole->size(); ++i) place[whole->name(i)] = i;
    std::set<int64_t> all;
    for (const Dataset* part : {parts.part.get(), parts.rest.get()}) {
      int64_t before = -1;
      for (int64_t i = 0; i < part->size(); ++i) {
        const int64_t at = place.at(part->name(i));
        EXPECT_GT(at, before);
        EXPECT_EQ(part->label(i), whole->label(at));
        EXPECT_EQ(part->image(i).pixels, whole->image(at).pixels);
        all.insert(before = at);
      }
    }
    EXPECT_EQ(std::ssize(all), whole->size()) << format;
  }
}

TEST_F(HeldOutSet, FollowsTheRule) {
  const auto whole = open(stored("idx", {10, 10}));
  const HeldOut parts = hold_out(whole, {.fraction = 0.3}, 7);
  std::vector<std::string> wanted;
  for (int64_t label : {0, 1}) {
    std::vector<int64_t> members;
    for (int64_t i = 0; i < whole->size(); ++i)
      if (whole->label(i) == label) members.push_back(i);
    std::sort(members.begin(), members.end(), [](int64_t a, int64_t b) {
      return random_key(7, 0, static_cast<uint64_t>(a), Purpose::hold_out) <
             random_key(7, 0, static_cast<uint64_t>(b), Purpose::hold_out);
    });
    for (size_t i = 0; i < 3; ++i) wanted.push_back(whole->name(members[i]));
  }
  std::vector<std::string> got = names(*parts.part);
  std::sort(wanted.begin(), wanted.end());
  std::sort(got.begin(), got.end());
  EXPECT_EQ(got, wanted);
  EXPECT_EQ(names(*hold_out(whole, {.fraction = 0.3}, 7).part), names(*parts.part));
  EXPECT_NE(names(*hold_out(whole, {.fraction = 0.3}, 8).part), names(*parts.part));
}

TEST_F(HeldOutSet, TakesAtLeastOneAndNeverAll) {
  const auto whole = open(stored("idx", {2, 3}));
  for (double fraction : {0.001, 0.9}) {
    const HeldOut parts = hold_out(whole, {.fraction = fraction}, 0);
    const std::vector<int64_t>&held = parts.part->labels(), &kept = parts.rest->labels();
    for (int64_t label : {0, 1}) {
      EXPECT_GE(std::count(held.begin(), held.end(), label), 1) << fraction;
      EXPECT_GE(std::count(kept.begin(), kept.end(), label), 1) << fraction;
    }
  }
}

TEST_F(HeldOutSet, NeedsTwoImagesOfEachClassAndLabels) {
  const auto few = open(stored("idx", {3, 1}));
  EXPECT_EQ(message_of([&] { hold_out(few, {}, 0); }),
            "data.val: class 1 has 1 images in data.train, wanted at least 2 to hold one out");
  stored("list", {2});
  const auto bare = open({ImagesSource{folder_ / "photos"}});
  EXPECT_EQ(
      message_of([&] { hold_out(bare, {}, 0); }),
      "data.train: got images without labels, wanted labels to hold out a part of each class");
}

TEST_F(HeldOutSet, JoinedSetsStandOneBehindTheOther) {
  const auto arrays = open(stored("idx", {2, 2})), files = open(stored("folder", {1, 2}));
  auto both = joined(arrays, files);
  EXPECT_EQ(both->labels(), (std::vector<int64_t>{0, 1, 0, 1, 0, 1, 1}));
  EXPECT_EQ(both->classes(), arrays->classes());
  EXPECT_FALSE(both->in_memory());
  EXPECT_EQ(both->image(2).pixels, arrays->image(2).pixels);
  EXPECT_EQ(both->name(4), files->name(0));
  both->keep({6, 1});
  EXPECT_EQ(both->labels(), (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(both->name(0), files->name(2));
  EXPECT_EQ(both->image(1).pixels, arrays->image(1).pixels);
}

}  // namespace
}  // namespace convpass
