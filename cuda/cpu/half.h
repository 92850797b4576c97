// IEEE binary16 in memory, float32 in registers: conversions to the nearest, ties to even, at every CPU level.
#pragma once
#include <cstring>

#include "polyfield/common.h"
#include "simd.h"

namespace polyfield {

struct Half {
  u16 bits;
};

inline float float_of_bits(u32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline u32 bits_of_float(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

#if defined(__F16C__)
inline float half_to_float(Half half) { return _cvtsh_ss(half.bits); }
inline Half float_to_half(float value) { return {u16(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))}; }
#else
inline float half_to_float(Half half) {
  const u32 sign = u32(half.bits & 0x8000u) << 16, rest = u32(half.bits & 0x7fffu) << 13;
  const u32 least_normal = 0x38800000u;                                        // 2^-14
  if (rest >= 0x0f800000u) return float_of_bits(sign | (rest + 0x70000000u));  // Inf and NaN
  if (rest >= 0x00800000u) return float_of_bits(sign | (rest + 0x38000000u));  // 127 - 15 onto the exponent
  const float magnitude = float_of_bits(rest + least_normal) - float_of_bits(least_normal);  // subnormal: exact
  return sign ? -magnitude : magnitude;
}
inline Half float_to_half(float value) {
  const u32 bits = bits_of_float(value), sign = bits >> 16 & 0x8000u;
  u32 rest = bits & 0x7fffffffu;
  if (rest >= 0x47800000u) return {u16(sign | (rest > 0x7f800000u ? 0x7e00u : 0x7c00u))};  // NaN, else Inf
  if (rest < 0x38800000u)  // subnormal: at 0.5 one unit in the last place of a float is that of such a half
    return {u16(sign | (bits_of_float(float_of_bits(rest) + 0.5f) - 0x3f000000u))};
  rest += 0xfffu + (rest >> 13 & 1u) - 0x38000000u;
  return {u16(sign | rest >> 13)};
}
#endif

}  // namespace polyfield
