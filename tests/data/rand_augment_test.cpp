#include "src/data/rand_augment.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "convpass/core/error.h"
#include "data/image_files.h"

namespace convpass {
namespace {

TEST(RandAugment, ReadsTheStringsOfTimm) {
  const RandAugment usual = parse_rand_augment("rand-m7-mstd0.5-inc1");
  EXPECT_EQ(usual.operations, 2);
  EXPECT_EQ(usual.probability, 0.5);
  EXPECT_EQ(usual.magnitude, 7);
  EXPECT_EQ(usual.deviation, 0.5);
  EXPECT_EQ(usual.max_magnitude, 10);
  EXPECT_TRUE(usual.increasing);

  const RandAugment plain = parse_rand_augment("rand");
  EXPECT_EQ(plain.operations, 2);
  EXPECT_EQ(plain.magnitude, 10);
  EXPECT_EQ(plain.deviation, 0);
  EXPECT_FALSE(plain.increasing);

  const RandAugment all = parse_rand_augment("rand-inc0-p0.75-mmax20-n3-mstd101-m12");
  EXPECT_EQ(all.operations, 3);
  EXPECT_EQ(all.probability, 0.75);
  EXPECT_EQ(all.magnitude, 12);
  EXPECT_TRUE(std::isinf(all.deviation));
  EXPECT_EQ(all.max_magnitude, 20);
  EXPECT_FALSE(all.increasing);
}

std::string refusal(const std::string& text) {
  return test::message_of([&] { parse_rand_augment(text); });
}

TEST(RandAugment, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(refusal("augmix-m5"), "got \"augmix-m5\", wanted it to begin with \"rand\"");
  EXPECT_EQ(refusal("rand-m7-w0"),
            "got \"rand-m7-w0\" with the part \"w0\", wanted \"rand\" and any of mM, nN, mstdS, "
            "mmaxX, incI, pP, joined by \"-\", as in \"rand-m7-mstd0.5-inc1\" (no weights w, no "
            "other sets of operations t)");
  EXPECT_EQ(refusal("rand-m7.5"),
            "got \"rand-m7.5\" with the part \"m7.5\", wanted a whole number from 0 to 1000 after "
            "its letters");
  EXPECT_EQ(refusal("rand-m7-m9"),
            "got \"rand-m7-m9\" with the part \"m9\", wanted each part once");
  for (const char* text : {"",
                           "rand-",
                           "-rand",
                           "random-m9",
                           "rand-t3a",
                           "rand-tweights",
                           "rand-m",
                           "rand-inc",
                           "rand-mstdinf",
                           "rand-p1.5",
                           "rand-n0",
                           "rand-m7x",
                           "rand-mmax0",
                           "rand-M7",
                           "rand-m7--n2",
                           "rand-7",
                           "rand m7",
                           "rand-m99999999999999999999",
                           "rand-mstd0.5.5",
                           "3a"}) {
    EXPECT_NE(refusal(text), "") << text;
  }
}

// tests/reference/rand_augment.py.
TEST(RandAugment, ArgumentsAreThoseOfTimm) {
  std::ifstream in(std::filesystem::path(CONVPASS_TEST_DATA) / "rand_augment.txt");
  int operation = 0, lines = 0;
  bool increasing = false, negative = false;
  double magnitude = 0, wanted = 0;
  for (; in >> operation >> increasing >> negative >> magnitude >> wanted; ++lines) {
    EXPECT_EQ(argument_of(static_cast<Operation>(operation), magnitude, increasing, negative),
              wanted)
        << operation << " " << increasing << " " << negative << " " << magnitude;
  }
  EXPECT_EQ(lines, 2 * 15 * 2 * 11);
}

constexpr int kDraws = 60000;

TEST(RandAugment, DrawsEachOperationAlikeAndAppliesHalf) {
  const RandAugment augment = parse_rand_augment("rand-m7-mstd0.5-inc1");
  std::array<int, 15> counts{};
  std::array<int, 3> lengths{};
  int twice = 0;
  Rng rng(11);
  for (int i = 0; i < kDraws; ++i) {
    const std::vector<Change> changes = augment.draw(rng);
    ++lengths.at(changes.size());
    for (const Change& change : changes) ++counts.at(static_cast<size_t>(change.operation));
    twice += changes.size() == 2 && changes[0].operation == changes[1].operation;
  }
  // A binomial count lies within five of its deviations.
  auto expect = [](int count, double p) {
    EXPECT_NEAR(count, kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)));
  };
  for (int count : counts) expect(count, 1.0 / 15);
  expect(lengths[0], 0.25);
  expect(lengths[1], 0.5);
  expect(lengths[2], 0.25);
  expect(twice, 0.25 / 15);
}

// The degrees of rotations, which show the magnitude and the sign.
std::vector<double> degrees(const std::string& text) {
  const RandAugment augment = parse_rand_augment(text);
  std::vector<double> result;
  Rng rng(12);
  for (int i = 0; i < kDraws; ++i) {
    for (const Change& change : augment.draw(rng)) {
      if (change.operation == Operation::rotate) result.push_back(change.argument);
    }
  }
  return result;
}

struct Moments {
  double mean, deviation, largest, negative;
};

Moments magnitudes(const std::string& text) {
  double sum = 0, squares = 0, largest = 0, negative = 0;
  const std::vector<double> drawn = degrees(text);
  for (double value : drawn) {
    const double magnitude = std::abs(value) / 3;
    sum += magnitude;
    squares += magnitude * magnitude;
    largest = std::max(largest, magnitude);
    negative += value < 0;
  }
  const auto count = static_cast<double>(drawn.size());
  return {sum / count, std::sqrt(squares / count - sum * sum / (count * count)), largest,
          negative / count};
}

TEST(RandAugment, MagnitudesAreNormalAndHalfOfThemNegative) {
  const Moments moments = magnitudes("rand-m7-mstd0.5-p1");  // about 8000 rotations
  EXPECT_NEAR(moments.mean, 7, 5 * 0.5 / std::sqrt(8000));
  EXPECT_NEAR(moments.deviation, 0.5, 5 * 0.5 / std::sqrt(16000));
  EXPECT_NEAR(moments.negative, 0.5, 5 * 0.5 / std::sqrt(8000));
}

TEST(RandAugment, MagnitudesAreClipped) {
  const Moments ten = magnitudes("rand-m9-mstd1-p1");
  EXPECT_EQ(ten.largest, 10);
  // A normal clipped one deviation above its mean: 9 + 1 - (Phi(1) + phi(1)).
  EXPECT_NEAR(ten.mean, 8.9167, 5 / std::sqrt(8000));
  EXPECT_GT(magnitudes("rand-m9-mstd1-mmax20-p1").largest, 11);
  EXPECT_EQ(magnitudes("rand-m15-p1").mean, 10);
}

TEST(RandAugment, LargeDeviationsAreUniform) {
  const Moments moments = magnitudes("rand-m8-mstd101-p1");
  EXPECT_NEAR(moments.mean, 4, 5 * 8 / std::sqrt(12 * 8000));
  EXPECT_NEAR(moments.deviation, 8 / std::sqrt(12), 0.1);
  EXPECT_LT(moments.largest, 8);
}

TEST(RandAugment, SameKeySameDraw) {
  const RandAugment augment = parse_rand_augment("rand-m7-mstd0.5-inc1-n4");
  Rng a(5), b(5), c(6);
  EXPECT_EQ(augment.draw(a), augment.draw(b));
  EXPECT_NE(augment.draw(a), augment.draw(c));
}

}  // namespace
}  // namespace convpass
