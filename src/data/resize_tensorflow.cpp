#include "src/data/resize_tensorflow.h"

#include <algorithm>
#include <cmath>
#include <vector>

// Every sum is taken in the order and the precision of TensorFlow's kernels: the result is
// truncated, so that 200.99999 and 201 are a level apart.

namespace convpass {
namespace {

uint8_t truncated(float value) { return static_cast<uint8_t>(std::clamp(value, 0.0f, 255.0f)); }

float scale_of(int64_t in, int64_t out) { return static_cast<float>(in) / static_cast<float>(out); }

// Rows of the image after the horizontal pass. What is asked for moves down the image and needs two
// neighbours at most twice, so one slot for even and one for odd rows is enough.
class WideRows {
 public:
  explicit WideRows(int64_t width) {
    for (auto& row : rows_) row.resize(static_cast<size_t>(width * 3));
  }

  template <class Make>
  const std::vector<float>& get(int64_t y, Make make) {
    const auto slot = static_cast<size_t>(y & 1);
    if (held_[slot] != y) make(rows_[slot].data());
    held_[slot] = y;
    return rows_[slot];
  }

 private:
  std::vector<float> rows_[2];
  int64_t held_[2] = {-1, -1};
};

// Output i lies `weight` of the way from input `lower` to input `upper`.
struct Between {
  int64_t lower, upper;
  float weight;
};

std::vector<Between> between(int64_t in, int64_t out) {
  const float scale = scale_of(in, out);
  std::vector<Between> all;
  all.reserve(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) {
    const float at = (static_cast<float>(i) + 0.5f) * scale - 0.5f;
    const float floor = std::floor(at);
    all.push_back({std::clamp<int64_t>(static_cast<int64_t>(floor), 0, in - 1),
                   std::clamp<int64_t>(static_cast<int64_t>(std::ceil(at)), 0, in - 1),
                   at - floor});
  }
  return all;
}

// Output i covers the inputs from `first` on with these weights.
struct Covers {
  std::vector<int64_t> first;
  std::vector<std::vector<float>> weights;
};

Covers covers(int64_t in, int64_t out) {
  const float scale = scale_of(in, out);
  auto weight = [scale](int64_t v, float from, float to) {
    const auto left = static_cast<float>(v), right = static_cast<float>(v + 1);
    if (left < from) return right > to ? scale : right - from;
    return right > to ? to - left : 1.0f;
  };
  Covers all;
  for (int64_t i = 0; i < out; ++i) {
    const float from = static_cast<float>(i) * scale, to = static_cast<float>(i + 1) * scale;
    const auto first = static_cast<int64_t>(std::floor(from));
    const auto end = std::max(static_cast<int64_t>(std::ceil(to)), first + 1);
    std::vector<float> weights;
    for (int64_t v = first; v < end; ++v) weights.push_back(weight(v, from, to));
    all.first.push_back(first);
    all.weights.push_back(std::move(weights));
  }
  return all;
}

}  // namespace

Image tf_bilinear(const Image& image, int64_t height, int64_t width) {
  const std::vector<Between> across = between(image.width, width);
  const std::vector<Between> down = between(image.height, height);
  WideRows rows(width);
  auto row = [&](int64_t y) -> const std::vector<float>& {
    return rows.get(y, [&](float* to) {
      const uint8_t* from = image.pixels.data() + y * image.width * 3;
      for (const Between& x : across) {
        for (int64_t c = 0; c < 3; ++c) {
          const float left = from[x.lower * 3 + c], right = from[x.upper * 3 + c];
          *to++ = left + (right - left) * x.weight;
        }
      }
    });
  };
  Image result{height, width, {}};
  result.pixels.resize(static_cast<size_t>(height * width * 3));
  uint8_t* to = result.pixels.data();
  for (const Between& y : down) {
    const std::vector<float>&top = row(y.lower), &bottom = row(y.upper);
    for (size_t i = 0; i < top.size(); ++i) {
      *to++ = truncated(top[i] + (bottom[i] - top[i]) * y.weight);
    }
  }
  return result;
}

Image tf_area(const Image& image, int64_t height, int64_t width) {
  const Covers across = covers(image.width, width), down = covers(image.height, height);
  WideRows rows(width);
  auto row = [&](int64_t y) -> const std::vector<float>& {
    return rows.get(y, [&](float* to) {
      const uint8_t* from = image.pixels.data() + y * image.width * 3;
      for (size_t x = 0; x < across.first.size(); ++x, to += 3) {
        to[0] = to[1] = to[2] = 0;
        int64_t at = across.first[x];
        for (const float weight : across.weights[x]) {
          // The last cell can end a rounding error beyond the image.
          const uint8_t* pixel = from + std::min(at++, image.width - 1) * 3;
          for (int64_t c = 0; c < 3; ++c) to[c] += static_cast<float>(pixel[c]) * weight;
        }
      }
    });
  };
  const float area = scale_of(image.height, height) * scale_of(image.width, width);
  const auto share = static_cast<float>(1.0 / static_cast<double>(area));
  Image result{height, width, {}};
  result.pixels.resize(static_cast<size_t>(height * width * 3));
  uint8_t* to = result.pixels.data();
  std::vector<float> sum(static_cast<size_t>(width * 3));
  for (size_t y = 0; y < down.first.size(); ++y) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    int64_t at = down.first[y];
    for (const float weight : down.weights[y]) {
      const std::vector<float>& wide = row(std::min(at++, image.height - 1));
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += wide[i] * weight;
    }
    for (const float value : sum) *to++ = truncated(value * share);
  }
  return result;
}

}  // namespace convpass
