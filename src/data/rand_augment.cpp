#include "src/data/rand_augment.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>
#include <string_view>

#include "convpass/core/error.h"
#include "convpass/core/json.h"

namespace convpass {
namespace {

constexpr int64_t kKinds = static_cast<int64_t>(Operation::translate_y) + 1;
constexpr double kFullMagnitude = 10;  // timm's _LEVEL_DENOM

/// Reads the parts of one string; each error quotes all of it.
class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  RandAugment parse() const {
    const std::vector<std::string_view> parts = split();
    if (parts.front() != "rand") fail("", "it to begin with \"rand\"");
    RandAugment result;
    std::set<std::string_view> seen;
    for (size_t i = 1; i < parts.size(); ++i) {
      const size_t digit = std::min(parts[i].find_first_of("0123456789"), parts[i].size());
      const std::string_view key = parts[i].substr(0, digit), value = parts[i].substr(digit);
      if (!seen.insert(key).second) fail(parts[i], "each part once");
      read(key, value, result);
    }
    return result;
  }

 private:
  std::vector<std::string_view> split() const {
    std::vector<std::string_view> parts;
    const std::string_view text = text_;
    for (size_t from = 0;;) {
      const size_t to = text.find('-', from);
      parts.push_back(text.substr(from, to == text.npos ? to : to - from));
      if (to == text.npos) return parts;
      from = to + 1;
    }
  }

  void read(std::string_view key, std::string_view value, RandAugment& result) const {
    const std::string part = std::string(key) + std::string(value);
    if (key == "m") {
      result.magnitude = number(part, value, true, {0, 1000});
    } else if (key == "n") {
      result.operations = static_cast<int64_t>(number(part, value, true, {1, 100}));
    } else if (key == "mstd") {
      result.deviation = number(part, value, false, {0, 1e6});
      if (result.deviation > 100) result.deviation = std::numeric_limits<double>::infinity();
    } else if (key == "mmax") {
      result.max_magnitude = number(part, value, true, {1, 1000});
    } else if (key == "inc") {
      result.increasing = number(part, value, true, {0, 9}) != 0;
    } else if (key == "p") {
      result.probability = number(part, value, false, {0, 1});
    } else {
      fail(part,
           "\"rand\" and any of mM, nN, mstdS, mmaxX, incI, pP, joined by \"-\", as in "
           "\"rand-m7-mstd0.5-inc1\" (no weights w, no other sets of operations t)");
    }
  }

  struct Limits {
    double min, max;
  };
  double number(const std::string& part, std::string_view value, bool whole,
                const Limits& limits) const {
    double result = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
    const bool read = error == std::errc{} && end == value.data() + value.size();
    if (!read || result < limits.min || result > limits.max ||
        (whole && value.find_first_not_of("0123456789") != value.npos)) {
      fail(part, std::string(whole ? "a whole number" : "a number") + " from " +
                     std::to_string(static_cast<int64_t>(limits.min)) + " to " +
                     std::to_string(static_cast<int64_t>(limits.max)) + " after its letters");
    }
    return result;
  }

  [[noreturn]] void fail(std::string_view part, const std::string& wanted) const {
    throw Error("got " + json_quote(text_) +
                (part.empty() ? "" : " with the part " + json_quote(std::string(part))) +
                ", wanted " + wanted);
  }

  const std::string& text_;
};

}  // namespace

RandAugment parse_rand_augment(const std::string& text) { return Parser(text).parse(); }

double argument_of(Operation operation, double magnitude, bool increasing, bool negative) {
  const double level = magnitude / kFullMagnitude;
  const double sign = negative ? -1 : 1;
  switch (operation) {
    case Operation::rotate:
      return sign * (level * 30);
    case Operation::shear_x:
    case Operation::shear_y:
      return sign * (level * 0.3);
    case Operation::translate_x:
    case Operation::translate_y:
      return sign * (level * 0.45);
    case Operation::posterize: {
      const double bits = std::trunc(level * 4);
      return increasing ? 4 - bits : bits;
    }
    case Operation::solarize: {
      const double threshold = std::min(256.0, std::trunc(level * 256));
      return increasing ? 256 - threshold : threshold;
    }
    case Operation::solarize_add:
      return std::min(128.0, std::trunc(level * 110));
    case Operation::color:
    case Operation::contrast:
    case Operation::brightness:
    case Operation::sharpness:
      return increasing ? std::max(0.1, 1.0 + sign * (level * 0.9)) : level * 1.8 + 0.1;
    default:
      return 0;
  }
}

std::vector<Change> RandAugment::draw(Rng& rng) const {
  std::vector<Change> changes;
  for (int64_t i = 0; i < operations; ++i) {
    const auto operation = static_cast<Operation>(rng.below(kKinds));
    if (!rng.coin(probability)) continue;
    double drawn = magnitude;
    if (std::isinf(deviation)) {
      drawn = rng.uniform(0, magnitude);
    } else if (deviation > 0) {
      drawn += deviation * rng.normal();
    }
    drawn = std::clamp(drawn, 0.0, max_magnitude);
    changes.push_back({operation, argument_of(operation, drawn, increasing, rng.coin(0.5))});
  }
  return changes;
}

}  // namespace convpass
