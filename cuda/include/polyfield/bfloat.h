// bfloat16 in memory: the upper half of a float32, rounded to the nearest, ties to even; NaN stays a quiet NaN.
#pragma once
#include "common.h"

namespace polyfield {

struct Bfloat {
  u16 bits;
};

// The upper halves of floats given by their bits, one or a vector of u32.
template <class U> PF_HD U rounded_to_bfloat(U bits) {
  const U nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U quiet = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > U{} + 0x7f800000u ? quiet : nearest;
}

}  // namespace polyfield
