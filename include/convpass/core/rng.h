#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace convpass {

/// What a random stream is used for. Values are part of the reproducibility contract: never
/// renumber.
enum class Purpose : uint64_t {
  shuffle = 1,    ///< order of an epoch
  subset = 2,     ///< which images `per_class` and `limit` keep
  augment = 3,    ///< crops, flips and colours of one image
  model = 4,      ///< dropout and stochastic depth of one step
  init = 5,       ///< initial values of trainable parameters
  mix = 6,        ///< mixup and CutMix of one batch
  view = 7,       ///< further views of one image, and further copies of it in a batch
  resample = 8,   ///< which images stand in a batch that is drawn with replacement
  erase = 9,      ///< random erasing of one view
  hold_out = 10,  ///< which images of the training set are held out of it
  search = 11,    ///< which settings a random search tries
};

/// The finaliser of SplitMix64 (Steele, Lea & Flood, 2014): a bijection of 64-bit words.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// One word for (seed, epoch or step, index, purpose): all randomness of a run starts from such
/// words, so worker count, resuming and device cannot change it.
constexpr uint64_t random_key(uint64_t seed, uint64_t epoch, uint64_t index, Purpose purpose) {
  return mix64(mix64(mix64(mix64(seed) ^ epoch) ^ index) ^ static_cast<uint64_t>(purpose));
}

/// SplitMix64 stream. The same key gives the same numbers on every machine and compiler.
class Rng {
 public:
  explicit Rng(uint64_t key) : state_(key) {}
  Rng(uint64_t seed, uint64_t epoch, uint64_t index, Purpose purpose)
      : state_(random_key(seed, epoch, index, purpose)) {}

  uint64_t next() {
    uint64_t word = mix64(state_);
    state_ += 0x9e3779b97f4a7c15ULL;
    return word;
  }
  /// Uniform in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  /// Uniform in [low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Uniform integer in [0, n), n > 0, without modulo bias worth naming (n << 2^64).
  int64_t below(int64_t n) {
    return static_cast<int64_t>(
        (static_cast<unsigned __int128>(next()) * static_cast<uint64_t>(n)) >> 64);
  }
  bool coin(double probability) { return uniform() < probability; }
  /// Normal with mean 0 and deviation 1: Box-Muller; the other half is thrown away, which keeps a
  /// draw free of state.
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

 private:
  uint64_t state_;
};

}  // namespace convpass
