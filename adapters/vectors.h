#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

/// Vectors of any CPU, for code that is compiled for several (see widest_vectors.h). All of it is
/// force-inlined, so that each copy of a caller gets it for its own vector unit.
namespace convpass::kernels {
namespace {

#define CONVPASS_INLINE inline __attribute__((always_inline))

constexpr int64_t kLanes = 8;  // 16 sums of more lanes are more than AVX2 has registers for
using Vector = float __attribute__((vector_size(32), aligned(4), may_alias));
using Bits = uint32_t __attribute__((vector_size(32)));
using Whole = int32_t __attribute__((vector_size(32)));
using Halves = uint16_t __attribute__((vector_size(16), aligned(2), may_alias));

CONVPASS_INLINE Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
CONVPASS_INLINE void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
CONVPASS_INLINE Vector load(const uint16_t* from) {
  const Bits bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16;
  Vector value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
/// To the nearest bfloat16, ties to even; NaN stays NaN.
CONVPASS_INLINE void store(uint16_t* to, Vector value) {
  Bits bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Bits nan = reinterpret_cast<Bits>(value != value);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  bits = (nan & 0x7fc0) | (~nan & bits);
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(bits, Halves);
}
CONVPASS_INLINE Vector all(float value) { return Vector{} + value; }
CONVPASS_INLINE float total(Vector value) {
  value += __builtin_shuffle(value, Whole{4, 5, 6, 7});
  value += __builtin_shuffle(value, Whole{2, 3});
  return value[0] + value[1];
}

/// 1 / (1 + exp(-1.702 x)), to 3e-7 of it.
CONVPASS_INLINE Vector gate(Vector x) {
  Vector y = x * (-1.702f * 1.44269504f);  // exp(-1.702 x) = 2^y
  const Vector most = all(126.0f);
  y = y > most ? most : y;
  y = y < -most ? -most : y;
  const Vector to_whole = all(12582912.0f);  // 1.5 * 2^23: beyond it floats have no fraction
  const Vector whole = (y + to_whole) - to_whole;
  const Vector f = y - whole;         // in [-0.5, 0.5]
  Vector power = all(1.5403530e-4f);  // Taylor series of 2^f
  for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    power = power * f + c;
  const Whole exponent = (__builtin_convertvector(whole, Whole) + 127) << 23;
  return 1.0f / (1.0f + power * reinterpret_cast<Vector>(exponent));
}
CONVPASS_INLINE Vector quick_gelu(Vector x) { return x * gate(x); }
CONVPASS_INLINE Vector quick_gelu_slope(Vector x) {
  const Vector s = gate(x);
  return s + 1.702f * x * s * (1.0f - s);
}

/// Calls `work` with chunks of at most `kMost`, then of 4, 2 and 1, that make up `count`, and where
/// each begins.
template <int kMost, class Work>
CONVPASS_INLINE void in_chunks(int64_t count, const Work& work) {
  int64_t i = 0;
  for (; i + kMost <= count; i += kMost) work(std::integral_constant<int, kMost>(), i);
  if (kMost > 4 && i + 4 <= count) work(std::integral_constant<int, 4>(), std::exchange(i, i + 4));
  if (kMost > 2 && i + 2 <= count) work(std::integral_constant<int, 2>(), std::exchange(i, i + 2));
  if (i + 1 <= count) work(std::integral_constant<int, 1>(), i);
}

}  // namespace
}  // namespace convpass::kernels
