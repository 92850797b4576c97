// Upkeep of the occupancy grid: bits and the coarse mip, decay and maximum, the choice of cells to look at. Compiled
// without contracting products into FMA, so that it chooses the cells and positions that the CPU does.
#include "polyfield/occupancy.h"
#include "prelude.h"

using namespace polyfield;

// Bits of one cascade, a thread a byte; the bits of the cascade below must be finished. `threshold` is (1,).
PF_KERNEL(pf_occupancy_bits_f32, (const float* grid, const float* threshold, i64 cascade, i64 resolution, u8* bits)) {
  const i64 cells = resolution * resolution * resolution, byte = thread_number();
  if (byte >= cells / 8) return;
  const i64 first = 8 * byte, x = first % resolution, y = first / resolution % resolution;
  const i64 z = first / (resolution * resolution);
  u8* own = bits + cascade * cells / 8;
  const u8* finer = cascade > 0 ? own - cells / 8 : nullptr;
  u32 value = 0;
  for (i64 k = 0; k < 8; ++k) {
    const float held = grid[cascade * cells + first + k];
    value |= u32(cell_is_occupied(held, *threshold, finer, resolution, x + k, y, z)) << k;
  }
  own[byte] = u8(value);
}

// A thread a block of 8^3 cells: 0 where any of them is occupied, else 255.
PF_KERNEL(pf_occupancy_blocks, (const u8* bits, i64 cascades, i64 resolution, u8* coarse)) {
  const i64 blocks = resolution / kOccupancyBlock, block = thread_number();
  if (block >= cascades * blocks * blocks * blocks) return;
  const i64 bx = block % blocks, by = block / blocks % blocks, bz = block / (blocks * blocks);  // bz over all cascades
  u32 any = 0;
  for (i64 z = 0; z < kOccupancyBlock; ++z)
    for (i64 y = 0; y < kOccupancyBlock; ++y) {
      const i64 row = (bz * kOccupancyBlock + z) * resolution + by * kOccupancyBlock + y;
      any |= bits[row * blocks + bx];  // eight cells a byte: one byte a block
    }
  coarse[block] = any ? 0 : 255;
}

// Distances in the maximum norm along one axis (its stride in blocks), a thread a block: of all blocks of the line, the
// smallest of max(how far that block is, what it holds).
PF_KERNEL(pf_occupancy_spread, (const u8* held, i64 cascades, i64 blocks, i64 stride, u8* distances)) {
  const i64 block = thread_number();
  if (block >= cascades * blocks * blocks * blocks) return;
  const i64 i = block / stride % blocks;
  i64 best = min_of(blocks, i64(255));
  for (i64 j = 0; j < blocks; ++j) {
    const i64 apart = i < j ? j - i : i - j;
    best = min_of(best, max_of(apart, i64(held[block + (j - i) * stride])));
  }
  distances[block] = u8(best);
}

PF_KERNEL(pf_occupancy_decay_f32, (float* grid, i64 count, double decay)) {
  const i64 i = thread_number();
  if (i < count && grid[i] >= 0.0f) grid[i] *= float(decay);
}

// Raises cells to what was seen. Cells outside [0, count) are skipped, NaN is ignored; order does not matter.
PF_KERNEL(pf_occupancy_max_f32, (float* grid, i64 count, const i64* cells, const float* values, i64 samples)) {
  const i64 i = thread_number();
  if (i < samples && cells[i] >= 0 && cells[i] < count) atomic_raise(grid + cells[i], values[i]);
}

// Which cells may be chosen: flags (2, count), seen by a camera, and occupied besides.
PF_KERNEL(pf_occupancy_flags, (const float* grid, const u8* bits, i64 count, u8* flags)) {
  const i64 i = thread_number();
  if (i >= count) return;
  const bool seen = grid[i] >= 0.0f;
  flags[i] = seen;
  flags[count + i] = seen && (bits[i >> 3] >> (i & 7) & 1);
}

namespace polyfield {

// The cell of rank `rank` (from 0) among those whose running count is `ranks` (count,).
__device__ inline i64 cell_of_rank(const i32* ranks, i64 count, i64 rank) {
  i64 low = 0, high = count - 1;
  while (low < high) {
    const i64 middle = (low + high) / 2;
    if (ranks[middle] > rank) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace polyfield

// `ranks` (2, count) are the running counts of the flags.
PF_KERNEL(pf_occupancy_sample_f32, (const i32* ranks, i64 count, i64 resolution, i64 uniform, i64 occupied, i64 seed,
                                    i64 step, i64* cells, float* positions)) {
  const i64 j = thread_number();
  if (j >= uniform + occupied) return;
  const i64 seen = ranks[count - 1], full = ranks[2 * count - 1];
  const bool from_full = j >= uniform && full > 0;
  const i64 choices = from_full ? full : seen;
  cells[j] = -1;
  for (int a = 0; a < 3; ++a) positions[3 * j + a] = 0.0f;
  if (choices == 0) return;
  const i64 pick = j < uniform ? stratified_pick(u64(seed), u64(step), j, j, uniform, choices)
                               : stratified_pick(u64(seed), u64(step), j, j - uniform, occupied, choices);
  cells[j] = cell_of_rank(from_full ? ranks + count : ranks, count, pick);
  jittered_position(u64(seed), u64(step), j, cells[j], resolution, positions + 3 * j);
}
