// Where may there be density? Nested occupancy grids: layout, lookup and the rules of their upkeep. Host and device.
//
// Cascade k spans [-2^k, 2^k]^3 of the scene frame with G^3 cells (G a multiple of 8). Cell (x, y, z) of a cascade has
// the linear index x + G (y + G z). Bits: cell i of a cascade is bit i & 7 of byte i >> 3. The coarse mip has one byte
// for each block of 8^3 cells: 0 where any of its cells is occupied, else how many blocks (in the maximum norm, within
// the cascade) it is to the nearest such block, so that marching leaps over the whole cube that is known to be empty.
// Rules as instant-ngp (Mueller et al. 2022, appendix E.2): decay and maximum; -1 marks cells no camera sees and never
// revives; finer cascades are OR-pooled into the inner part of coarser ones, so that a lookup in a coarser cascade
// never misses what a finer one holds.
#pragma once
#include "common.h"
#include "random.h"

namespace polyfield {

constexpr int kOccupancyBlock = 8;  // cells along the edge of a block of the coarse mip
constexpr int kMaxCascades = 16;
// Random streams of occupancy refresh and marching: the "sample" counter of random_bits, apart from 0, 1, 2, ...
constexpr u64 kCellStream = 0x63656c6cull << 16;
constexpr u64 kJitterStream = 0x6a697474ull << 16;

struct OccupancyView {
  const u8 *bits, *coarse;  // (K, G^3 / 8), (K, (G / 8)^3)
  i64 cascades, resolution;

  PF_HD int empty_blocks(i64 cascade, i64 bx, i64 by, i64 bz) const {
    const i64 b = resolution / kOccupancyBlock;
    return coarse[((cascade * b + bz) * b + by) * b + bx];
  }
  PF_HD bool cell(i64 cascade, i64 x, i64 y, i64 z) const {
    const i64 i = ((cascade * resolution + z) * resolution + y) * resolution + x;
    return (bits[i >> 3] >> (i & 7)) & 1;
  }
};

// Smallest k >= 0 with value < 2^k, at most `last`. NaN gives `last`.
PF_HD int cascade_of(float value, int last) {
  int k = 0;
  for (float side = 1.0f; k < last && !(value < side); side += side) ++k;
  return k;
}

// Whether the stored value makes cell (x, y, z) of cascade k occupied, or any of the eight finer cells it covers does.
// `bits` are those of cascade k - 1 (not read where k is 0).
PF_HD bool cell_is_occupied(float value, float threshold, const u8* finer, i64 resolution, i64 x, i64 y, i64 z) {
  if (value >= 0.0f && value > threshold) return true;
  const i64 quarter = resolution / 4;
  if (!finer || x < quarter || y < quarter || z < quarter) return false;
  if (x >= 3 * quarter || y >= 3 * quarter || z >= 3 * quarter) return false;
  for (int corner = 0; corner < 8; ++corner) {
    const i64 fx = 2 * (x - quarter) + (corner & 1), fy = 2 * (y - quarter) + (corner >> 1 & 1);
    const i64 fz = 2 * (z - quarter) + (corner >> 2);
    const i64 i = (fz * resolution + fy) * resolution + fx;
    if (finer[i >> 3] >> (i & 7) & 1) return true;
  }
  return false;
}

// Stratum j of `strata` over `count` items: a uniform pick in [j count / strata, (j + 1) count / strata).
PF_HD i64 stratified_pick(u64 seed, u64 step, i64 draw, i64 j, i64 strata, i64 count) {
  const double low = double(j) * double(count) / double(strata), width = double(count) / double(strata);
  const i64 pick = i64(low + width * double(random_uniform(seed, step, u64(draw), kCellStream)));
  return pick < count ? pick : count - 1;
}

// A uniform position inside a flat cell index (over all cascades), scene frame.
PF_HD void jittered_position(u64 seed, u64 step, i64 draw, i64 cell, i64 resolution, float* position) {
  const i64 per_cascade = resolution * resolution * resolution, local = cell % per_cascade;
  const float side = float(i64(1) << (cell / per_cascade));
  const i64 index[3] = {local % resolution, local / resolution % resolution, local / (resolution * resolution)};
  for (int a = 0; a < 3; ++a) {
    const float u = random_uniform(seed, step, u64(draw), kCellStream + 1 + u64(a));
    position[a] = ((float(index[a]) + u) * (2.0f / float(resolution)) - 1.0f) * side;
  }
}

}  // namespace polyfield
