// Counter-based randomness: a value depends on (seed, step, ray, sample) alone, never on threads, tiles or devices.
// The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), applied once per counter.
#pragma once
#include "common.h"

namespace polyfield {

PF_HD u64 mix64(u64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// 64 random bits for one counter.
PF_HD u64 random_bits(u64 seed, u64 step, u64 ray, u64 sample) {
  const u64 golden = 0x9e3779b97f4a7c15ull;
  u64 z = mix64(seed + golden);
  z = mix64(z + golden * (step + 1));
  z = mix64(z + golden * (ray + 1));
  return mix64(z + golden * (sample + 1));
}

// Uniform in [0, 1) with 24 bits, exact in float.
PF_HD float uniform_from(u64 bits) { return float(bits >> 40) * (1.0f / 16777216.0f); }

PF_HD float random_uniform(u64 seed, u64 step, u64 ray, u64 sample) {
  return uniform_from(random_bits(seed, step, ray, sample));
}

}  // namespace polyfield
