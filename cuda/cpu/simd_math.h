// Elementary functions on whole vectors, where calling libm lane by lane would cost more than the arithmetic around it.
// Polynomials of the Cephes library (Moshier); errors stay below 2 ulp over the stated range.
#pragma once
#include "simd.h"

namespace polyfield {

// exp(x). Saturates at exp(88.72) and 0 below -87.3 (subnormals flush); NaN stays NaN.
inline __attribute__((always_inline)) Vec<float> vec_exp(Vec<float> x) {
  using V = Vec<float>;
  using I = typename VecType<float>::mask;
  const V high = splat(88.72f), low = splat(-87.33f), round = splat(12582912.0f);  // 1.5 * 2^23
  x = x > high ? high : x;
  const I underflow = x < low;
  const V bounded = underflow ? low : x;
  const V n = (bounded * 1.44269504088896341f + round) - round;
  const V r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Two factors, since 2^128 alone is not a float.
  const I power = __builtin_convertvector(n, I);
  const I half = power >> 1;
  V first, second;
  const I first_bits = (half + 127) << 23, second_bits = (power - half + 127) << 23;
  std::memcpy(&first, &first_bits, sizeof first);
  std::memcpy(&second, &second_bits, sizeof second);
  const V result = p * first * second;
  return underflow ? V{} : result;
}

}  // namespace polyfield
