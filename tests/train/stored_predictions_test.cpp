#include "src/train/stored_predictions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "convpass/core/error.h"
#include "convpass/core/file.h"
#include "tests/core/temp_folder.h"

namespace convpass {
namespace {

namespace fs = std::filesystem;

class StoredPredictionsFile : public ::testing::Test {
 protected:
  StoredPredictionsFile() {
    at::manual_seed(0);
    first_ = at::randn({kRows, kClasses}) * 5;
    second_ = at::randn({kRows, kClasses}) * 5;
  }

  StoreConfig config(StoredType type = StoredType::f32, int64_t top_k = 0) const {
    return {.file = folder_ / "teacher.predictions", .type = type, .top_k = top_k};
  }
  PredictionShape shape() const { return {.rows = kRows, .teachers = 2, .classes = kClasses}; }
  MadeFrom made_from() const { return {{"teachers", "abc"}, {"view", "mix"}}; }

  bool write(const StoreConfig& config) const {
    return write_predictions(config, shape(), made_from(), [&](const PutBatch& put) {
      for (int64_t row = 0; row < kRows; row += kBatch)
        put(indices(row), {{.logits = first_.narrow(0, row, kBatch), .features = {}},
                           {.logits = second_.narrow(0, row, kBatch), .features = {}}});
      return true;
    });
  }
  std::vector<int64_t> rows(int64_t row) const { return {row, row + 1, row + 2, row + 3}; }
  std::vector<int64_t> indices(int64_t row) const {
    std::vector<int64_t> all;
    for (int64_t i = row; i < row + kBatch; ++i) all.push_back(100 - i);
    return all;
  }
  std::string refusal(const StoreConfig& config, const PredictionShape& shape,
                      const MadeFrom& made_from) const {
    try {
      StoredPredictions(config, shape, made_from);
    } catch (const FileError& error) {
      return error.what();
    }
    return "no error";
  }

  static constexpr int64_t kRows = 12, kBatch = 4, kClasses = 7;
  TempFolder folder_;
  at::Tensor first_, second_;
};

TEST_F(StoredPredictionsFile, GivesBackFloat32ToTheLastBit) {
  ASSERT_TRUE(write(config()));
  const StoredPredictions stored(config(), shape(), made_from());
  for (int64_t row = 0; row < kRows; row += kBatch) {
    const auto outputs = stored.rows(rows(row), indices(row));
    ASSERT_EQ(outputs.size(), 2u);
    EXPECT_TRUE(at::equal(outputs[0].logits, first_.narrow(0, row, kBatch)));
    EXPECT_TRUE(at::equal(outputs[1].logits, second_.narrow(0, row, kBatch)));
  }
}

TEST_F(StoredPredictionsFile, HalvesAreHalfTheSizeAndNear) {
  ASSERT_TRUE(write(config()));
  const auto whole = fs::file_size(config().file);
  const StoreConfig half = config(StoredType::f16);
  ASSERT_TRUE(write(half));
  EXPECT_EQ(whole - fs::file_size(half.file), uint64_t{kRows * 2 * kClasses * 2});
  const StoredPredictions stored(half, shape(), made_from());
  EXPECT_TRUE(at::equal(stored.rows(rows(0), indices(0))[0].logits,
                        first_.narrow(0, 0, kBatch).to(at::kHalf).to(at::kFloat)));
}

TEST_F(StoredPredictionsFile, TopKKeepsTheLargestAndTheMassOfTheRest) {
  const StoreConfig top = config(StoredType::f32, 3);
  ASSERT_TRUE(write(top));
  const StoredPredictions stored(top, shape(), made_from());
  const at::Tensor got = at::softmax(stored.rows(rows(0), indices(0))[0].logits, 1);
  const at::Tensor wanted = at::softmax(first_.narrow(0, 0, kBatch), 1);
  const at::Tensor largest = std::get<1>(wanted.topk(3, 1));
  EXPECT_TRUE(at::allclose(got.gather(1, largest), wanted.gather(1, largest), 1e-2, 1e-4));
  EXPECT_TRUE(at::equal(std::get<1>(got.topk(3, 1)), largest));
  const at::Tensor rest = got.scatter(1, largest, -1.0);
  for (int64_t row = 0; row < kBatch; ++row) {
    const at::Tensor others = rest[row].masked_select(rest[row].ge(0));
    EXPECT_EQ(others.min().item<float>(), others.max().item<float>());
  }
  // More than there are classes keeps them all.
  ASSERT_TRUE(write(config(StoredType::f32, 100)));
}

TEST_F(StoredPredictionsFile, RefusesWhatWasMadeFromSomethingElse) {
  ASSERT_TRUE(write(config()));
  EXPECT_NE(refusal(config(), shape(), {{"teachers", "abd"}, {"view", "mix"}})
                .find("made from something else: teachers: got \"abc\", wanted \"abd\""),
            std::string::npos);
  EXPECT_NE(refusal(config(), {.rows = kRows, .teachers = 2, .classes = 8}, made_from())
                .find("classes: got 7, wanted 8"),
            std::string::npos);
  EXPECT_NE(refusal(config(StoredType::f16), shape(), made_from())
                .find("type: got \"f32\", wanted \"f16\""),
            std::string::npos);
  const StoredPredictions stored(config(), shape(), made_from());
  EXPECT_THROW(stored.rows(rows(0), indices(4)), FileError);
}

TEST_F(StoredPredictionsFile, RefusesDamagedFiles) {
  ASSERT_TRUE(write(config()));
  const std::vector<uint8_t> bytes = read_file(config().file);
  for (size_t cut : {size_t{0}, size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
    std::ofstream(config().file, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(cut));
    const std::string text = refusal(config(), shape(), made_from());
    EXPECT_EQ(text.find(config().file.string()), 0u) << text;
  }
  TensorMap other;
  other.tensors["records"] = at::zeros({2});
  save_safetensors(config().file, other);
  EXPECT_NE(refusal(config(), shape(), made_from()).find("wanted stored predictions"),
            std::string::npos);
  // A number that was changed, finite as it is: found when it is read.
  ASSERT_TRUE(write(config()));
  std::vector<uint8_t> changed = read_file(config().file);
  changed[changed.size() - 20] ^= 1;
  std::ofstream(config().file, std::ios::binary)
      .write(reinterpret_cast<const char*>(changed.data()),
             static_cast<std::streamsize>(changed.size()));
  const StoredPredictions stored(config(), shape(), made_from());
  EXPECT_EQ(stored.rows(rows(0), indices(0)).size(), 2u);
  EXPECT_THROW(stored.rows(rows(8), indices(8)), FileError);
}

TEST_F(StoredPredictionsFile, RefusesALogitThatItsTypeCannotHold) {
  first_[5][2] = 70000;
  for (const auto& [type, top_k] : {std::pair{StoredType::f16, 0}, {StoredType::f32, 2}}) {
    std::string text = "no error";
    try {
      write(config(type, top_k));
    } catch (const FileError& error) {
      text = error.what();
    }
    if (top_k > 0)
      EXPECT_EQ(text, "no error");
    else
      EXPECT_NE(text.find("got a logit of 70000"), std::string::npos) << text;
    EXPECT_EQ(fs::exists(config().file), top_k > 0);
  }
}

TEST_F(StoredPredictionsFile, LeavesNothingWhenGivenUp) {
  EXPECT_FALSE(write_predictions(config(), shape(), made_from(), [&](const PutBatch& put) {
    put(indices(0), {{.logits = first_.narrow(0, 0, kBatch), .features = {}},
                     {.logits = second_.narrow(0, 0, kBatch), .features = {}}});
    return false;
  }));
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace convpass
