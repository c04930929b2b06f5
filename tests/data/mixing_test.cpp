#include "convpass/data/mixing.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numbers>
#include <set>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "convpass/core/tensor_map.h"
#include "data/image_files.h"

namespace convpass {
namespace {

std::vector<double> beta_numbers(double a, double b, int count) {
  std::vector<double> numbers;
  Rng rng(5);
  for (int i = 0; i < count; ++i) numbers.push_back(sample_beta(a, b, rng));
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

// E[x^k] = (a)_k / (a + b)_k, rising factorials.
double beta_moment(double a, double b, int k) {
  double moment = 1;
  for (int i = 0; i < k; ++i) moment *= (a + i) / (a + b + i);
  return moment;
}

TEST(Beta, HasItsMomentsForSmallAndLargeParameters) {
  constexpr int kCount = 40000;
  for (const auto& [a, b] : {std::pair{0.1, 0.1},
                             {0.3, 0.3},
                             {1.0, 1.0},
                             {0.8, 0.8},
                             {3.0, 3.0},
                             {0.5, 2.0},
                             {40.0, 10.0}}) {
    const std::vector<double> numbers = beta_numbers(a, b, kCount);
    for (int k = 1; k <= 4; ++k) {
      double sum = 0;
      for (double x : numbers) sum += std::pow(x, k);
      const double moment = beta_moment(a, b, k);
      const double error = std::sqrt((beta_moment(a, b, 2 * k) - moment * moment) / kCount);
      EXPECT_NEAR(sum / kCount, moment, 4.5 * error) << a << " " << b << " " << k;
    }
  }
}

// Kolmogorov's distance; above 1.95 / sqrt(n) one time in a thousand.
template <class Distribution>
double distance(const std::vector<double>& sorted, Distribution distribution) {
  double largest = 0;
  const auto count = static_cast<double>(sorted.size());
  for (size_t i = 0; i < sorted.size(); ++i) {
    const double wanted = distribution(sorted[i]);
    largest = std::max({largest, std::abs(wanted - static_cast<double>(i) / count),
                        std::abs(wanted - static_cast<double>(i + 1) / count)});
  }
  return largest;
}

TEST(Beta, HasItsQuantiles) {
  constexpr int kCount = 40000;
  const double limit = 1.95 / std::sqrt(kCount);
  EXPECT_LT(distance(beta_numbers(1, 1, kCount), [](double x) { return x; }), limit);
  EXPECT_LT(distance(beta_numbers(2, 2, kCount), [](double x) { return x * x * (3 - 2 * x); }),
            limit);
  EXPECT_LT(distance(beta_numbers(0.5, 0.5, kCount),
                     [](double x) { return 2 / std::numbers::pi * std::asin(std::sqrt(x)); }),
            limit);
  EXPECT_LT(distance(beta_numbers(0.2, 1, kCount), [](double x) { return std::pow(x, 0.2); }),
            limit);
}

// Near 0 the distribution function of Beta(a, a) is x^a / (a B(a, a)).
TEST(Beta, ReachesIntoTheTailsOfSmallParameters) {
  constexpr int kCount = 40000;
  const double a = 0.1, beta = std::exp(2 * std::lgamma(a) - std::lgamma(2 * a));
  const std::vector<double> numbers = beta_numbers(a, a, kCount);
  for (double x : {1e-3, 1e-6, 1e-12, 1e-30}) {
    const double wanted = std::pow(x, a) / (a * beta);
    const auto below = std::lower_bound(numbers.begin(), numbers.end(), x) - numbers.begin();
    EXPECT_NEAR(static_cast<double>(below) / kCount, wanted,
                4.5 * std::sqrt(wanted * (1 - wanted) / kCount))
        << x;
  }
  EXPECT_GE(numbers.front(), 0);
  EXPECT_LE(numbers.back(), 1);
}

class MixingReference : public testing::Test {
 protected:
  at::Tensor operator[](const std::string& name) const { return map_.at(name); }
  int64_t whole(const std::string& name, int64_t i) const {
    return map_.at(name)[i].item<int64_t>();
  }
  int64_t batch() const { return map_.at("images").size(0); }
  MixRow row(int64_t draw) const {
    MixRow row;
    row.lambda = map_.at("lambdas")[draw].item<double>();
    row.cutmix = whole("cutmix", draw) != 0;
    return row;
  }
  /// What timm's case `name` drew for its `i`-th thing; boxes come in the order of the draws.
  MixRow drawn(const std::string& name, int64_t i, int64_t& boxes) const {
    const int64_t draw = whole(name + ".draws", i);
    MixRow result = row(draw);
    if (!result.cutmix) return result;
    const at::Tensor images = map_.at("images"), centre = map_.at("centres")[draw];
    result.box = cutmix_box(images.size(2), images.size(3), result.lambda,
                            {centre[0].item<int64_t>(), centre[1].item<int64_t>()});
    const at::Tensor wanted = map_.at(name + ".boxes")[boxes++];
    EXPECT_EQ(result.box, (MixBox{wanted[0].item<int64_t>(), wanted[1].item<int64_t>(),
                                  wanted[2].item<int64_t>(), wanted[3].item<int64_t>()}));
    const auto area = static_cast<double>((result.box.bottom - result.box.top) *
                                          (result.box.right - result.box.left));
    result.lambda = 1 - area / static_cast<double>(images.size(2) * images.size(3));
    return result;
  }
  void expect_timm(const std::string& name, const MixDraw& draw) const {
    const at::Tensor images = map_.at("images");
    const at::Tensor before = images.clone();
    expect_close(mix_images(images, draw), map_.at(name + ".mixed"), name);
    EXPECT_TRUE(at::equal(images, before)) << name;
    const at::Tensor target = map_.at(name + ".target");
    expect_close(mix_targets(soft_targets(map_.at("labels"), target.size(1), 0.1), draw), target,
                 name);
  }
  static void expect_close(const at::Tensor& got, const at::Tensor& wanted,
                           const std::string& name) {
    ASSERT_EQ(got.sizes(), wanted.sizes()) << name;
    EXPECT_LT((got - wanted).abs().max().item<double>(), 1e-6) << name;
  }

 private:
  TensorMap map_ = load_tensors(std::filesystem::path(CONVPASS_TEST_DATA) / "mixing.safetensors");
};

TEST_F(MixingReference, BatchModeEqualsTimm) {
  for (const std::string name : {"batch_mixup", "batch_cutmix"}) {
    int64_t boxes = 0;
    MixDraw draw(static_cast<size_t>(batch()), drawn(name, 0, boxes));
    for (int64_t i = 0; i < batch(); ++i) draw[static_cast<size_t>(i)].partner = batch() - 1 - i;
    expect_timm(name, draw);
  }
}

TEST_F(MixingReference, PairAndElemModesEqualTimm) {
  for (const std::string name : {"pair", "elem"}) {
    int64_t boxes = 0;
    MixDraw draw(static_cast<size_t>(batch()));
    for (int64_t i = 0; i < (*this)[name + ".draws"].size(0); ++i) {
      const MixRow row = drawn(name, i, boxes);
      draw[static_cast<size_t>(i)] = row;
      if (name == "pair") draw[static_cast<size_t>(batch() - 1 - i)] = row;
    }
    for (int64_t i = 0; i < batch(); ++i) draw[static_cast<size_t>(i)].partner = batch() - 1 - i;
    expect_timm(name, draw);
  }
}

TEST_F(MixingReference, FunMatchRollsByOne) {
  const MixConfig config{.mixup = 1.0, .style = MixStyle::funmatch};
  MixDraw draw = draw_mix(config, (*this)["images"].sizes(), {.seed = 1});
  for (MixRow& row : draw) row.lambda = 0.7;
  expect_close(mix_images((*this)["images"], draw), (*this)["funmatch.mixed"], "funmatch");
}

TEST_F(MixingReference, BitsTwoCrossEntropiesAreOneOfMixedTargets) {
  MixDraw draw;
  for (int64_t i = 0; i < batch(); ++i)
    draw.push_back({.partner = whole("bit.order", i), .lambda = 0.15});
  expect_close(mix_images((*this)["images"], draw), (*this)["bit.mixed"], "bit");
  const at::Tensor targets = mix_targets(soft_targets((*this)["labels"], 5, 0.0), draw);
  expect_close(at::cross_entropy_loss((*this)["bit.logits"], targets).reshape(1),
               (*this)["bit.loss"], "bit loss");
}

const std::vector<int64_t> kShape{8, 3, 20, 30};

TEST(Mixing, IsAPureFunctionOfSeedStepAndMicroBatch) {
  const MixConfig config{.mixup = 0.8, .cutmix = 1.0};
  const MixKey key{.seed = 3, .step = 7, .micro = 1};
  auto lambda = [&](const MixKey& k) { return draw_mix(config, kShape, k).front().lambda; };
  EXPECT_EQ(lambda(key), lambda(key));
  EXPECT_NE(lambda(key), lambda({.seed = 4, .step = 7, .micro = 1}));
  EXPECT_NE(lambda(key), lambda({.seed = 3, .step = 8, .micro = 1}));
  EXPECT_NE(lambda(key), lambda({.seed = 3, .step = 7, .micro = 2}));
}

TEST(Mixing, MicroBatchesOfAStepShareTheLambdaOfBitAndFunMatch) {
  for (MixStyle style : {MixStyle::bit, MixStyle::funmatch}) {
    const MixConfig config{.mixup = 0.1, .style = style};
    double sum = 0;
    for (int64_t step = 0; step < 50; ++step) {
      const MixDraw first = draw_mix(config, kShape, {.seed = 1, .step = step});
      const MixDraw second = draw_mix(config, kShape, {.seed = 1, .step = step, .micro = 1});
      for (const MixDraw& draw : {first, second})
        for (const MixRow& row : draw) ASSERT_EQ(row.lambda, first.front().lambda);
      sum += first.front().lambda;
      if (style == MixStyle::funmatch) {
        ASSERT_GE(first.front().lambda, 0.5);
      }
    }
    // No maximum is taken: about half lie near 0.
    if (style == MixStyle::bit) {
      EXPECT_LT(sum, 40);
    }
  }
}

TEST(Mixing, BitPermutesWithinEachMicroBatchAnew) {
  const MixConfig config{.mixup = 0.1, .style = MixStyle::bit};
  auto partners = [&](int64_t micro) {
    std::vector<int64_t> rows;
    for (const MixRow& row : draw_mix(config, kShape, {.seed = 1, .step = 2, .micro = micro}))
      rows.push_back(row.partner);
    return rows;
  };
  EXPECT_NE(partners(0), partners(1));
  const std::vector<int64_t> rows = partners(0);
  EXPECT_EQ(std::set<int64_t>(rows.begin(), rows.end()).size(), 8u);
}

TEST(Mixing, TimmSwitchesAndLeavesOutAsOftenAsAsked) {
  const MixConfig config{
      .mixup = 0.8, .cutmix = 1.0, .probability = 0.6, .switch_probability = 0.25};
  constexpr int kSteps = 6000;
  int mixup = 0, cutmix = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    const MixDraw draw = draw_mix(config, kShape, {.seed = 2, .step = step});
    const MixRow& row = draw.front();
    for (size_t i = 0; i < draw.size(); ++i) {
      ASSERT_EQ(draw[i].partner, 7 - static_cast<int64_t>(i));
      ASSERT_EQ(draw[i].lambda, row.lambda);
      ASSERT_EQ(draw[i].box, row.box);
    }
    if (row.cutmix) {
      ++cutmix;
      const int64_t area = (row.box.bottom - row.box.top) * (row.box.right - row.box.left);
      ASSERT_EQ(row.lambda, 1.0 - static_cast<double>(area) / 600.0);
    } else if (row.lambda != 1) {
      ++mixup;
    }
  }
  EXPECT_NEAR(mixup, kSteps * 0.45, 5 * std::sqrt(kSteps * 0.45 * 0.55));
  EXPECT_NEAR(cutmix, kSteps * 0.15, 5 * std::sqrt(kSteps * 0.15 * 0.85));
}

TEST(Mixing, PairsShareADrawAndElemsDoNot) {
  MixConfig config{.mixup = 0.8, .cutmix = 1.0, .mode = MixMode::pair};
  const MixDraw pairs = draw_mix(config, kShape, {.seed = 2});
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(pairs[i].lambda, pairs[7 - i].lambda);
    EXPECT_EQ(pairs[i].box, pairs[7 - i].box);
  }
  EXPECT_NE(pairs[0].lambda, pairs[1].lambda);
  config.mode = MixMode::elem;
  const MixDraw elems = draw_mix(config, kShape, {.seed = 2});
  std::set<double> lambdas;
  for (const MixRow& row : elems) lambdas.insert(row.lambda);
  EXPECT_GE(lambdas.size(), 7u);
}

TEST(Mixing, LeavesABatchAloneWhenNothingIsDrawn) {
  const at::Tensor images = at::rand(kShape);
  EXPECT_TRUE(draw_mix({}, kShape, {}).empty());
  EXPECT_TRUE(mix_images(images, {}).is_same(images));
  const MixConfig never{.mixup = 1.0, .probability = 0.0};
  EXPECT_TRUE(mix_images(images, draw_mix(never, kShape, {})).is_same(images));
}

TEST(Mixing, OfTimmNeedsAnEvenBatch) {
  const MixConfig config{.mixup = 1.0};
  EXPECT_EQ(test::message_of([&] {
              draw_mix(config, {7, 3, 8, 8}, {});
            }),
            "augment.mix_style \"timm\" pairs the images of a batch: got 7, wanted an even number");
}

}  // namespace
}  // namespace convpass
