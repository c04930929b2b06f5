#include "src/data/color_jitter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

namespace convpass {
namespace {

constexpr int kDraws = 24000;

// The arguments of each operation over many draws.
std::map<Operation, std::vector<double>> arguments(const std::vector<double>& strengths) {
  std::map<Operation, std::vector<double>> result;
  Rng rng(3);
  for (int i = 0; i < kDraws; ++i) {
    for (const Change& change : draw_color_jitter(strengths, rng)) {
      result[change.operation].push_back(change.argument);
    }
  }
  return result;
}

void expect_uniform(const std::vector<double>& numbers, double low, double high) {
  ASSERT_EQ(numbers.size(), static_cast<size_t>(kDraws));
  double sum = 0, squares = 0;
  for (double x : numbers) {
    ASSERT_GE(x, low);
    ASSERT_LT(x, high);
    sum += x;
    squares += x * x;
  }
  const double mean = sum / kDraws, variance = (high - low) * (high - low) / 12;
  EXPECT_NEAR(mean, (low + high) / 2, 5 * std::sqrt(variance / kDraws));
  EXPECT_NEAR(squares / kDraws - mean * mean, variance, 0.05 * variance);
}

TEST(ColorJitter, OneNumberStandsForThreeOperations) {
  const auto drawn = arguments({0.4});
  ASSERT_EQ(drawn.size(), 3u);
  for (Operation operation : {Operation::brightness, Operation::contrast, Operation::color}) {
    expect_uniform(drawn.at(operation), 0.6, 1.4);
  }
}

TEST(ColorJitter, FourNumbersAreBrightnessContrastSaturationHue) {
  const auto drawn = arguments({0.1, 1.5, 0.3, 0.2});
  expect_uniform(drawn.at(Operation::brightness), 0.9, 1.1);
  expect_uniform(drawn.at(Operation::contrast), 0, 2.5);
  expect_uniform(drawn.at(Operation::color), 0.7, 1.3);
  expect_uniform(drawn.at(Operation::shift_hue), -0.2, 0.2);
}

TEST(ColorJitter, StrengthZeroLeavesAnOperationOut) {
  const auto drawn = arguments({0, 0.2, 0, 0});
  ASSERT_EQ(drawn.size(), 1u);
  expect_uniform(drawn.at(Operation::contrast), 0.8, 1.2);
  EXPECT_TRUE(arguments({}).empty());
  EXPECT_TRUE(arguments({0}).empty());
}

TEST(ColorJitter, EveryOrderIsAsLikely) {
  std::map<std::vector<Operation>, int> counts;
  Rng rng(9);
  for (int i = 0; i < kDraws; ++i) {
    std::vector<Operation> order;
    for (const Change& change : draw_color_jitter({0.4, 0.4, 0.4, 0.1}, rng)) {
      order.push_back(change.operation);
    }
    ++counts[order];
  }
  EXPECT_EQ(counts.size(), 24u);
  for (const auto& [order, count] : counts) EXPECT_NEAR(count, 1000, 5 * std::sqrt(1000));
}

TEST(ColorJitter, SameKeySameDraw) {
  Rng a(5), b(5), c(6);
  EXPECT_EQ(draw_color_jitter({0.4}, a), draw_color_jitter({0.4}, b));
  EXPECT_NE(draw_color_jitter({0.4}, a), draw_color_jitter({0.4}, c));
}

}  // namespace
}  // namespace convpass
