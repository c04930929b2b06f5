#include "convpass/data/dataset.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/rng.h"
#include "data/image_files.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;
using test::bytes_of;
using test::image_file;
using test::message_of;
using test::write_bytes;

void write_text(const fs::path& file, const std::string& text) {
  write_bytes(file, {text.begin(), text.end()});
}

void add_image(const fs::path& file) {
  fs::create_directories(file.parent_path());
  write_bytes(file, bytes_of(image_file("png_rgb.png")));
}

std::unique_ptr<Dataset> open(const DatasetConfig& config, int64_t classes = 0) {
  return open_dataset(config, {}, classes, "data.train");
}

std::string failure(const DatasetConfig& config, int64_t classes = 0) {
  const std::string message = message_of([&] { open(config, classes); });
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  return message;
}

std::vector<std::string> names(const Dataset& dataset, const fs::path& below) {
  std::vector<std::string> result;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    result.push_back(fs::relative(dataset.name(i), below).string());
  }
  return result;
}

TEST(FolderDataset, OrdersClassesAndImagesByName) {
  TempFolder folder;
  for (const char* name : {"b/2.png", "b/10.JPG", "a/x/deep.webp", "a/z.tiff", "B/one.jpeg"}) {
    add_image(folder / name);
  }
  write_text(folder / "a/notes.txt", "no image");
  write_text(folder / "a/.hidden.png", "no image");
  add_image(folder / ".cache/1.png");
  write_text(folder / "README", "about");
  const auto dataset = open({FolderSource{folder.path()}});
  EXPECT_EQ(dataset->classes(), (std::vector<std::string>{"B", "a", "b"}));
  EXPECT_EQ(
      names(*dataset, folder.path()),
      (std::vector<std::string>{"B/one.jpeg", "a/x/deep.webp", "a/z.tiff", "b/10.JPG", "b/2.png"}));
  EXPECT_EQ(dataset->labels(), (std::vector<int64_t>{0, 1, 1, 2, 2}));
  EXPECT_EQ(dataset->image(2).pixels, test::read_ppm("png_rgb.ppm").pixels);
}

TEST(FolderDataset, FollowsLinksAndEndsInCircles) {
  TempFolder folder, elsewhere;
  add_image(elsewhere / "real.png");
  add_image(folder / "set/a/1.png");
  fs::create_directory_symlink(elsewhere.path(), folder / "set/b");
  fs::create_directory_symlink(folder / "set/a", folder / "set/a/circle");
  fs::create_symlink(elsewhere / "real.png", folder / "set/a/2.png");
  const auto dataset = open({FolderSource{folder / "set"}});
  EXPECT_EQ(dataset->labels(), (std::vector<int64_t>{0, 0, 1}));
  EXPECT_EQ(dataset->image(1).width, 41);
}

TEST(FolderDataset, SaysWhatIsWrong) {
  TempFolder folder;
  EXPECT_EQ(failure({FolderSource{folder / "none"}}),
            "data.train: " + (folder / "none").string() + ": no such folder");
  add_image(folder / "flat/1.png");
  write_text(folder / "flat/labels.csv", "1");
  EXPECT_EQ(failure({FolderSource{folder / "flat"}}),
            "data.train: " + (folder / "flat").string() +
                ": no class folders: got 1 images and 1 other files, wanted a folder per class");
  add_image(folder / "set/a/1.png");
  fs::create_directory(folder / "set/empty");
  EXPECT_EQ(failure({FolderSource{folder / "set"}}),
            "data.train: " + (folder / "set/empty").string() +
                ": a class folder without images, wanted jpg, png, webp, bmp or tif");
  add_image(folder / "set/empty/1.png");
  EXPECT_EQ(failure({FolderSource{folder / "set"}}, 1),
            "data.train: " + (folder / "set").string() + ": got 2 class folders, wanted at most 1");
}

TEST(ListDataset, ReadsVtabLists) {
  TempFolder folder;
  add_image(folder / "images/a b.png");
  add_image(folder / "images/c.png");
  // A mark of the byte order, Windows line ends, blank lines, tabs, no end of line at the end.
  write_text(folder / "list.txt", "\xEF\xBB\xBFimages/a b.png 3\r\n\r\n  \nimages/c.png\t0");
  const auto dataset = open({ListSource{folder / "list.txt", {}}});
  EXPECT_EQ(dataset->labels(), (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(dataset->classes(), (std::vector<std::string>{"0", "1", "2", "3"}));
  EXPECT_EQ(names(*dataset, folder.path()),
            (std::vector<std::string>{"images/a b.png", "images/c.png"}));
  write_text(folder / "other.txt", "c.png 1\n");
  EXPECT_EQ(open({ListSource{folder / "other.txt", folder / "images"}}, 7)->classes().size(), 7u);
}

TEST(ListDataset, NamesTheLineThatIsWrong) {
  TempFolder folder;
  add_image(folder / "a.png");
  const fs::path list = folder / "list.txt";
  const std::string where = "data.train: " + list.string();
  auto fails = [&](const std::string& text, int64_t classes = 0) {
    write_text(list, text);
    return failure({ListSource{list, {}}}, classes);
  };
  EXPECT_EQ(fails("a.png 0\na.png\n"), where + ":2: no label: got \"a.png\", wanted `path label`");
  EXPECT_EQ(fails("a.png x\n"), where + ":1: got label \"x\", wanted 0 to 1048575");
  EXPECT_EQ(fails("a.png -1\n"), where + ":1: got label \"-1\", wanted 0 to 1048575");
  EXPECT_EQ(fails("a.png 1.5\n"), where + ":1: got label \"1.5\", wanted 0 to 1048575");
  EXPECT_EQ(fails("\n\na.png 7\n", 7), where + ":3: got label \"7\", wanted 0 to 6");
  EXPECT_EQ(fails("a.png 99999999999999999999\n"),
            where + ":1: got label \"99999999999999999999\", wanted 0 to 1048575");
  EXPECT_EQ(
      fails("a.png 0\nb.png 0\nc.png 1\n"),
      where + ": 2 of 3 images are missing, the first in line 2: " + (folder / "b.png").string());
  EXPECT_EQ(fails("\n"), where + ": an empty list, wanted lines of `path label`");
}

std::vector<uint8_t> idx(std::vector<uint32_t> sizes, size_t bytes, uint8_t kind = 8) {
  std::vector<uint8_t> result{0, 0, kind, static_cast<uint8_t>(sizes.size())};
  for (uint32_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8)
      result.push_back(static_cast<uint8_t>(size >> shift));
  }
  for (size_t i = 0; i < bytes; ++i) result.push_back(static_cast<uint8_t>(i % 3));
  return result;
}

void write_gzip(const fs::path& file, const std::vector<uint8_t>& bytes) {
  gzFile out = gzopen(file.c_str(), "wb");
  ASSERT_EQ(gzwrite(out, bytes.data(), static_cast<unsigned>(bytes.size())),
            static_cast<int>(bytes.size()));
  gzclose(out);
}

TEST(IdxDataset, ReadsPlainAndGzip) {
  TempFolder folder;
  write_bytes(folder / "images", idx({6, 2, 4}, 48));
  write_gzip(folder / "images.gz", idx({6, 2, 4}, 48));
  write_bytes(folder / "labels", idx({6}, 6));
  write_gzip(folder / "labels.gz", idx({6}, 6));
  const auto plain = open({IdxSource{folder / "images", folder / "labels"}});
  const auto packed = open({IdxSource{folder / "images.gz", folder / "labels.gz"}});
  EXPECT_EQ(plain->labels(), (std::vector<int64_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(plain->classes().size(), 3u);
  EXPECT_EQ(plain->labels(), packed->labels());
  const Image image = packed->image(1);
  EXPECT_EQ(image.height, 2);
  EXPECT_EQ(image.width, 4);
  for (size_t i = 0; i < 24; ++i) EXPECT_EQ(image.pixels[i], (8 + i / 3) % 3);
  EXPECT_EQ(image.pixels, plain->image(1).pixels);
  EXPECT_EQ(packed->name(1), (folder / "images.gz").string() + "#1");
  EXPECT_TRUE(packed->in_memory());
}

TEST(IdxDataset, RefusesDamagedFiles) {
  TempFolder folder;
  const fs::path images = folder / "images", labels = folder / "labels";
  write_bytes(labels, idx({6}, 6));
  auto fails = [&](const std::vector<uint8_t>& bytes, bool packed = false) {
    packed ? write_gzip(images, bytes) : write_bytes(images, bytes);
    std::string message = failure({IdxSource{images, labels}});
    const std::string where = "data.train: " + images.string() + ": ";
    EXPECT_EQ(message.find(where), 0u) << message;
    return message.substr(std::min(message.size(), where.size()));
  };
  EXPECT_EQ(fails(idx({6}, 6)), "idx: cut short: got 14 bytes, wanted a header of 16");
  EXPECT_EQ(fails(idx({6}, 60)), "idx images: starts with the number 2049, wanted 2051");
  EXPECT_EQ(fails(idx({6, 2, 4}, 47)), "idx: got 63 bytes, wanted 64 by its header");
  EXPECT_EQ(fails(idx({6, 2, 4}, 49)), "idx: got 65 bytes, wanted 64 by its header");
  EXPECT_EQ(fails(idx({6, 2, 4}, 47), true), "idx: got 63 bytes, wanted 64 by its header");
  // A bomb: 64 MB behind a header that claims 64 bytes.
  EXPECT_EQ(fails(idx({6, 2, 4}, size_t{64} << 20), true),
            "idx: got more than 64 bytes, wanted 64 by its header");
  EXPECT_EQ(fails(idx({0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, 10)),
            "idx: axis 1 has the size 4294967295, which cannot be");
  EXPECT_EQ(fails(idx({6, 0, 4}, 10)), "idx: axis 1 has the size 0, which cannot be");
  write_gzip(images, idx({6, 2, 4}, 48));
  std::vector<uint8_t> packed = bytes_of(images);
  for (size_t cut = 2; cut < packed.size() - 8; ++cut) {
    write_bytes(images, {packed.begin(), packed.begin() + static_cast<int64_t>(cut)});
    EXPECT_NE(failure({IdxSource{images, labels}}), "") << cut;
  }
  EXPECT_EQ(failure({IdxSource{}}), "data.train: idx: no `images` file is named");
}

TEST(IdxDataset, NamesALabelOutOfRange) {
  TempFolder folder;
  write_bytes(folder / "images", idx({6, 2, 4}, 48));
  write_bytes(folder / "labels", idx({6}, 6));
  EXPECT_EQ(
      failure({IdxSource{folder / "images", folder / "labels"}}, 2),
      "data.train: " + (folder / "labels").string() + ": sample 2: got label 2, wanted 0 to 1");
  write_bytes(folder / "labels", idx({5}, 5));
  EXPECT_EQ(failure({IdxSource{folder / "images", folder / "labels"}}),
            "data.train: " + (folder / "labels").string() +
                ": idx: got 5 labels, wanted one for each of the 6 images of " +
                (folder / "images").string());
}

std::vector<uint8_t> cifar(std::initializer_list<std::vector<uint8_t>> labels) {
  std::vector<uint8_t> bytes;
  for (const std::vector<uint8_t>& label : labels) {
    bytes.insert(bytes.end(), label.begin(), label.end());
    for (int i = 0; i < 3072; ++i) bytes.push_back(static_cast<uint8_t>(i / 1024 * 50 + i % 32));
  }
  return bytes;
}

TEST(CifarDataset, ReadsBothSets) {
  TempFolder folder;
  fs::create_directory(folder / "ten");
  fs::create_directory(folder / "hundred");
  write_bytes(folder / "ten/data_batch_1.bin", cifar({{3}, {9}}));
  write_bytes(folder / "ten/data_batch_2.bin", cifar({{1}}));
  write_bytes(folder / "ten/test_batch.bin", cifar({{7}}));
  write_bytes(folder / "hundred/train.bin", cifar({{19, 99}, {2, 5}}));
  const auto ten = open({CifarSource{folder / "ten", "train"}});
  EXPECT_EQ(ten->labels(), (std::vector<int64_t>{3, 9, 1}));
  EXPECT_EQ(ten->classes().size(), 10u);
  EXPECT_EQ(ten->classes()[9], "9");
  const Image image = ten->image(2);
  EXPECT_EQ(image.height, 32);
  for (size_t p = 0; p < 1024; ++p) {
    for (size_t c = 0; c < 3; ++c) ASSERT_EQ(image.pixels[p * 3 + c], c * 50 + p % 32);
  }
  EXPECT_EQ(open({CifarSource{folder / "ten", "test"}})->labels(), (std::vector<int64_t>{7}));
  const auto hundred = open({CifarSource{folder / "hundred", "train"}});
  EXPECT_EQ(hundred->labels(), (std::vector<int64_t>{99, 5}));
  EXPECT_EQ(hundred->image(1).pixels, image.pixels);
  write_text(folder / "ten/batches.meta.txt",
             "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\r\ntruck\n\n");
  EXPECT_EQ(open({CifarSource{folder / "ten", "train"}})->classes()[9], "truck");
}

TEST(CifarDataset, RefusesDamagedFiles) {
  TempFolder folder;
  EXPECT_EQ(failure({CifarSource{folder.path(), "train"}}),
            "data.train: " + folder.path().string() +
                ": cifar: no data_batch_1.bin (CIFAR-10) and no train.bin (CIFAR-100)");
  EXPECT_EQ(failure({CifarSource{folder.path(), "dev"}}),
            "data.train: " + folder.path().string() +
                ": cifar: got split \"dev\", wanted \"train\" or \"test\"");
  std::vector<uint8_t> bytes = cifar({{3}, {10}});
  write_bytes(folder / "test_batch.bin", bytes);
  EXPECT_EQ(failure({CifarSource{folder.path(), "test"}}),
            "data.train: " + (folder / "test_batch.bin").string() +
                ": sample 1: got label 10, wanted 0 to 9");
  bytes.pop_back();
  write_bytes(folder / "test_batch.bin", bytes);
  EXPECT_EQ(failure({CifarSource{folder.path(), "test"}}),
            "data.train: " + (folder / "test_batch.bin").string() +
                ": cifar: got 6145 bytes, wanted a multiple of 3073 above 0");
  std::ofstream(folder / "test_batch.bin", std::ios::trunc).close();
  EXPECT_NE(failure({CifarSource{folder.path(), "test"}}).find("got 0 bytes"), std::string::npos);
}

TEST(NpzDataset, ReadsGreyAndColour) {
  const fs::path file = image_file("small.npz");
  const auto colour = open({NpzSource{file, "images", "labels"}});
  EXPECT_EQ(colour->labels(), (std::vector<int64_t>{2, 0, 1}));
  const Image image = colour->image(1);
  EXPECT_EQ(image.height, 4);
  EXPECT_EQ(image.width, 5);
  for (size_t i = 0; i < 60; ++i) EXPECT_EQ(image.pixels[i], 60 + i);
  const auto grey = open({NpzSource{file, "grey", "column"}});
  EXPECT_EQ(grey->labels(), colour->labels());
  EXPECT_EQ(grey->image(2).pixels[4], 41);
}

TEST(NpzDataset, RefusesOtherArrays) {
  const fs::path file = image_file("small.npz");
  const std::string where = "data.train: " + file.string() + ": npz: ";
  EXPECT_EQ(failure({NpzSource{file, "pictures", "labels"}}),
            where + "no array \"pictures\", got: column, grey, images, labels, real");
  EXPECT_EQ(failure({NpzSource{file, "real", "labels"}}),
            where + "\"real\" is Float [3], wanted Byte [N, H, W] or [N, H, W, 3]");
  EXPECT_EQ(failure({NpzSource{file, "images", "real"}}),
            where + "\"real\" is Float [3], wanted whole numbers [3]");
}

struct Subset : testing::Test {
  // 40 samples, labels 0, 1, 2, 0, 1, 2, ...
  Subset() {
    write_bytes(folder / "images", idx({40, 1, 1}, 40));
    write_bytes(folder / "labels", idx({40}, 40));
  }
  DatasetConfig config(int64_t limit, int64_t per_class, int64_t seed) const {
    return {IdxSource{folder / "images", folder / "labels"}, limit, per_class, seed};
  }
  static std::vector<int64_t> kept(const Dataset& dataset) {
    std::vector<int64_t> result;
    for (int64_t i = 0; i < dataset.size(); ++i) {
      const std::string name = dataset.name(i);
      result.push_back(std::stoll(name.substr(name.find('#') + 1)));
    }
    return result;
  }
  // The rule of dataset.h, in other words.
  static std::vector<int64_t> smallest(std::vector<int64_t> indices, size_t count, uint64_t seed) {
    std::sort(indices.begin(), indices.end(), [&](int64_t a, int64_t b) {
      return random_key(seed, 0, static_cast<uint64_t>(a), Purpose::subset) <
             random_key(seed, 0, static_cast<uint64_t>(b), Purpose::subset);
    });
    indices.resize(std::min(count, indices.size()));
    std::sort(indices.begin(), indices.end());
    return indices;
  }
  TempFolder folder;
};

TEST_F(Subset, LimitFollowsTheRule) {
  std::vector<int64_t> all(40);
  for (size_t i = 0; i < 40; ++i) all[i] = static_cast<int64_t>(i);
  const auto dataset = open(config(11, 0, 5));
  EXPECT_EQ(kept(*dataset), smallest(all, 11, 5));
  for (int64_t i = 0; i < dataset->size(); ++i)
    EXPECT_EQ(dataset->label(i), kept(*dataset)[static_cast<size_t>(i)] % 3);
  EXPECT_NE(kept(*open(config(11, 0, 6))), kept(*dataset));
  EXPECT_EQ(open(config(1000, 0, 5))->size(), 40);
}

TEST_F(Subset, PerClassFollowsTheRule) {
  std::vector<int64_t> wanted;
  for (int64_t label = 0; label < 3; ++label) {
    std::vector<int64_t> members;
    for (int64_t i = label; i < 40; i += 3) members.push_back(i);
    for (int64_t i : smallest(members, 4, 9)) wanted.push_back(i);
  }
  std::sort(wanted.begin(), wanted.end());
  EXPECT_EQ(kept(*open(config(0, 4, 9))), wanted);
  EXPECT_EQ(kept(*open(config(5, 4, 9))), smallest(wanted, 5, 9));
}

TEST_F(Subset, TooFewPerClassNamesTheClass) {
  EXPECT_EQ(failure(config(0, 14, 0)),
            "data.train: per_class: class 1 has 13 images, wanted at least 14");
}

TEST(SameClasses, OfASetWithoutLabelsAreAsMany) {
  TempFolder folder;
  add_image(folder / "test/cat/1.png");
  add_image(folder / "test/dog/1.png");
  const auto test = open({FolderSource{folder / "test"}});
  EXPECT_NO_THROW(check_same_classes(*open({ImagesSource{folder.path()}}, 2), *test, "data.test"));
  EXPECT_NE(message_of([&] {
              check_same_classes(*open({ImagesSource{folder.path()}}, 3), *test, "data.test");
            }),
            "");
}

TEST(SameClasses, NamesWhatOneSplitLacks) {
  TempFolder folder;
  for (const char* name : {"train/cat", "train/dog", "same/cat", "same/dog", "less/dog", "more/ape",
                           "more/cat", "more/dog"}) {
    add_image(folder / (std::string(name) + "/1.png"));
  }
  auto set = [&](const char* name) { return open({FolderSource{folder / name}}); };
  const auto train = set("train");
  EXPECT_NO_THROW(check_same_classes(*train, *set("same"), "data.val"));
  EXPECT_EQ(message_of([&] { check_same_classes(*train, *set("less"), "data.val"); }),
            "data.val: no images of class \"cat\" of the training set");
  EXPECT_EQ(message_of([&] { check_same_classes(*train, *set("more"), "data.val"); }),
            "data.val: class \"ape\" is not in the training set");
  add_image(folder / "a.png");
  write_text(folder / "list.txt", "a.png 1\n");
  write_text(folder / "long.txt", "a.png 2\n");
  EXPECT_NO_THROW(
      check_same_classes(*train, *open({ListSource{folder / "list.txt", {}}}), "data.test"));
  EXPECT_EQ(message_of([&] {
              check_same_classes(*train, *open({ListSource{folder / "long.txt", {}}}), "data.test");
            }),
            "data.test: got labels of 3 classes, the training set has 2");
}

TEST(ImagesDataset, FindsWhatLiesBelowAFolderWithoutLabels) {
  TempFolder folder;
  for (const char* name : {"b.png", "a/x/2.png", "a/1.PNG", ".hidden/3.png"})
    add_image(folder / name);
  write_text(folder / "notes.txt", "no image");
  const auto dataset = open({ImagesSource{folder.path()}});
  EXPECT_EQ(names(*dataset, folder.path()),
            (std::vector<std::string>{"a/1.PNG", "a/x/2.png", "b.png"}));
  EXPECT_FALSE(dataset->labelled());
  EXPECT_EQ(dataset->labels(), (std::vector<int64_t>{-1, -1, -1}));
  EXPECT_TRUE(dataset->classes().empty());
  EXPECT_EQ(dataset->image(2).width, open({ImagesSource{folder.path()}})->image(0).width);
  EXPECT_EQ(open({ImagesSource{folder.path()}}, 3)->classes(),
            (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_EQ(open({.source = ImagesSource{folder.path()}, .limit = 2})->size(), 2);
  dataset->name_classes({"cat", "dog"}, "data.train");
  EXPECT_EQ(dataset->classes().size(), 2u);
}

TEST(ImagesDataset, SaysWhatIsWrong) {
  TempFolder folder;
  const std::string where = "data.train: " + folder.path().string() + ": ";
  EXPECT_EQ(failure({ImagesSource{folder.path()}}),
            where + "no images in it, wanted jpg, png, webp, bmp or tif");
  EXPECT_NE(failure({ImagesSource{folder / "none"}}).find("no such folder"), std::string::npos);
  write_text(folder / "file", "x");
  EXPECT_NE(failure({ImagesSource{folder / "file"}}).find("not a folder, wanted one with images"),
            std::string::npos);
  add_image(folder / "a.png");
  EXPECT_EQ(
      failure({.source = ImagesSource{folder.path()}, .per_class = 1}),
      "data.train: per_class: got images without labels, wanted limit, or a format with labels");
  const auto dataset = open({ImagesSource{folder.path()}});
  EXPECT_EQ(message_of([&] { require_labels(*dataset, "data.test", "to evaluate on"); }),
            "data.test: got images without labels, wanted labels to evaluate on");
}

TEST(BrokenImages, AreFoundByAnyNumberOfThreads) {
  TempFolder folder;
  for (int i = 0; i < 12; ++i) add_image(folder / ("a/" + std::to_string(10 + i) + ".png"));
  write_text(folder / "a/13.png", "no image");
  write_bytes(folder / "a/17.png", {});
  const auto dataset = open({FolderSource{folder.path()}});
  for (int workers : {1, 3}) {
    std::vector<int64_t> progress;
    const auto broken = find_broken_images(*dataset, workers, [&](int64_t done) {
      progress.push_back(done);
      return true;
    });
    ASSERT_EQ(broken.size(), 2u);
    EXPECT_EQ(broken[0].index, 3);
    EXPECT_EQ(broken[1].index, 7);
    EXPECT_EQ(broken[0].message.find((folder / "a/13.png").string() + ": not an image"), 0u);
    EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
    EXPECT_EQ(progress.back(), 12);
  }
}

}  // namespace
}  // namespace convpass
