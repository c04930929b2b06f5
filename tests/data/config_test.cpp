#include <gtest/gtest.h>

#include <string>
#include <variant>

#include "convpass/core/error.h"
#include "convpass/core/json.h"
#include "convpass/data/dataset.h"
#include "convpass/data/pipeline.h"
#include "data/image_files.h"

namespace convpass {
namespace {

template <class Config>
Config parsed(const std::string& text) {
  Config config;
  read_json_fields(text, config, "/recipes/r.json");
  return config;
}

TEST(DataConfig, ReadsEachFormat) {
  const auto config = parsed<DataConfig>(R"({
    "train": {"format": "list", "path": "train.txt", "per_class": 5, "seed": 3},
    "val": {"format": "cifar", "path": "c", "split": "test", "limit": 10},
    "test": {"format": "idx", "images": "i.gz", "labels": "l.gz"},
    "classes": 7, "on_error": "skip", "cache_mb": 0})");
  EXPECT_EQ(std::get<ListSource>(config.train->source).path, "/recipes/train.txt");
  EXPECT_TRUE(std::get<ListSource>(config.train->source).root.empty());
  EXPECT_EQ(config.train->per_class, 5);
  EXPECT_EQ(std::get<CifarSource>(config.val->source).split, "test");
  EXPECT_EQ(std::get<IdxSource>(config.test->source).labels, "/recipes/l.gz");
  EXPECT_EQ(config.on_error, OnError::skip);
  EXPECT_EQ(write_json_fields(parsed<DataConfig>(write_json_fields(config))),
            write_json_fields(config));
}

TEST(InputConfig, SizeIsOneNumberOrTwoOrAuto) {
  using Size = std::array<int64_t, 2>;
  EXPECT_EQ(parsed<InputConfig>(R"({"size": 224})").size, (Size{224, 224}));
  EXPECT_EQ(parsed<InputConfig>(R"({"size": [192, 256]})").size, (Size{192, 256}));
  EXPECT_EQ(parsed<InputConfig>(R"({"size": "auto"})").size, (Size{0, 0}));
  EXPECT_EQ(parsed<InputConfig>("{}").size, (Size{0, 0}));
  EXPECT_THROW(parsed<InputConfig>(R"({"size": [1, 2, 3]})"), Error);
  EXPECT_THROW(parsed<InputConfig>(R"({"size": 0})"), Error);
}

TEST(InputConfig, ReadsTheEvaluationViewOfFunMatch) {
  const auto input = parsed<InputConfig>(
      R"({"size": 224, "resize": "short_side", "resize_to": 256, "interpolation": "tf_area"})");
  EXPECT_EQ(input.resize_to, std::vector<int64_t>{256});
  EXPECT_EQ(input.interpolation, Interpolation::tf_area);
  EXPECT_EQ(write_json_fields(parsed<InputConfig>(write_json_fields(input))),
            write_json_fields(input));
  EXPECT_TRUE(parsed<InputConfig>(R"({"resize_to": "auto"})").resize_to.empty());
}

TEST(DataConfig, ReadsImagesWithoutLabels) {
  const auto config =
      parsed<DataConfig>(R"({"train": {"format": "images", "path": "pile"}, "classes": 10})");
  EXPECT_EQ(std::get<ImagesSource>(config.train->source).path, "/recipes/pile");
}

TEST(AugmentConfig, ReadsMixingBesideTheCrop) {
  const auto config = parsed<AugmentConfig>(
      R"({"crop": "inception", "mixup": 0.8, "cutmix": 1, "mix_mode": "pair", "mix_switch": 0.3})");
  EXPECT_EQ(config.crop, CropMode::inception);
  EXPECT_EQ(config.mix.mixup, 0.8);
  EXPECT_EQ(config.mix.mode, MixMode::pair);
  EXPECT_TRUE(config.mix.on());
  EXPECT_FALSE(parsed<AugmentConfig>(R"({"mixup": 1, "mix_style": "funmatch"})").any());
  EXPECT_EQ(write_json_fields(parsed<AugmentConfig>(write_json_fields(config))),
            write_json_fields(config));
  EXPECT_THROW(parsed<AugmentConfig>(R"({"mixup": -1})"), Error);
}

TEST(AugmentConfig, ReadsAndWrites) {
  const auto config =
      parsed<AugmentConfig>(R"({"crop": "random_resized", "crop_area": [0.5, 1], "flip": 0.5})");
  EXPECT_EQ(config.crop, CropMode::random_resized);
  EXPECT_TRUE(config.any());
  EXPECT_EQ(parsed<AugmentConfig>(write_json_fields(config)).crop_area, config.crop_area);
  EXPECT_THROW(parsed<AugmentConfig>(R"({"flip": 1.5})"), Error);
}

}  // namespace
}  // namespace convpass
