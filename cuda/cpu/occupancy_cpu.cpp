// Upkeep of the occupancy grid on the CPU: packing into bits and the coarse mip, decay and maximum, and the choice of
// the cells to look at next. Results do not depend on the thread count. Products are not
// contracted into FMA, so that all builds choose the same cells and positions as the torch reference.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#include <cstring>

#include "parallel.h"
#include "polyfield/occupancy.h"

namespace polyfield {
namespace {

constexpr i64 kCells = 1 << 14;  // cells of a task

// Bits of one z slice of one cascade; `finer` is the finished bitfield of the cascade below, or null.
void pack_slice(const float* values, float threshold, const u8* finer, i64 resolution, i64 z, u8* bits) {
  for (i64 y = 0; y < resolution; ++y) {
    for (i64 x0 = 0; x0 < resolution; x0 += 8) {
      const i64 i = (z * resolution + y) * resolution + x0;
      u32 byte = 0;
      for (i64 k = 0; k < 8; ++k)
        byte |= u32(cell_is_occupied(values[i + k], threshold, finer, resolution, x0 + k, y, z)) << k;
      bits[i >> 3] = u8(byte);
    }
  }
}

// One layer of blocks: 0 where any cell is occupied, else 255.
void pool_blocks(const u8* bits, i64 resolution, i64 bz, u8* coarse) {
  const i64 blocks = resolution / kOccupancyBlock;
  std::memset(coarse + bz * blocks * blocks, 255, blocks * blocks);
  for (i64 z = bz * kOccupancyBlock; z < (bz + 1) * kOccupancyBlock; ++z)
    for (i64 y = 0; y < resolution; ++y) {
      const u8* row = bits + (z * resolution + y) * blocks;  // eight cells a byte: one byte a block
      u8* out = coarse + (bz * blocks + y / kOccupancyBlock) * blocks;
      for (i64 bx = 0; bx < blocks; ++bx) out[bx] = row[bx] ? 0 : out[bx];
    }
}

// From 0 and 255 to distances in the maximum norm. It is separable: along each axis in turn, the smallest over all
// blocks of the line of max(how far that block is, what it holds).
void spread_distances(i64 blocks, u8* coarse) {
  static thread_local Scratch<u8> scratch;
  u8* line = scratch.reserve(blocks);
  const i64 nothing = blocks < 255 ? blocks : 255;
  const i64 strides[3] = {1, blocks, blocks * blocks};
  for (int axis = 0; axis < 3; ++axis) {
    for (i64 start = 0; start < blocks * blocks * blocks; ++start) {
      if (start / strides[axis] % blocks != 0) continue;
      u8* values = coarse + start;
      for (i64 i = 0; i < blocks; ++i) line[i] = values[i * strides[axis]];
      for (i64 i = 0; i < blocks; ++i) {
        i64 best = nothing;
        for (i64 j = 0; j < blocks; ++j) {
          const i64 apart = i < j ? j - i : i - j;
          best = min_of(best, max_of(apart, i64(line[j])));
        }
        values[i * strides[axis]] = u8(best);
      }
    }
  }
}

// Raises *cell to `value` with other threads at it. The maximum does not depend on their order; NaN is ignored.
void raise(float* cell, float value) {
  float old;
  __atomic_load(cell, &old, __ATOMIC_RELAXED);
  while (old >= 0.0f && value > old)
    if (__atomic_compare_exchange(cell, &old, &value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
}

// Lists the cells of [0, count) for which `test` holds, ascending; returns how many. `list` has room for all.
template <class Test> i64 list_cells(i64 count, i32* list, i64 threads, const Test& test) {
  const i64 tasks = (count + kCells - 1) / kCells;
  static thread_local Scratch<i64> scratch;
  i64* begins = scratch.reserve(tasks + 1);
  begins[0] = 0;
  parallel_chunks(threads, count, kCells, [&](i64 begin, i64 end) {
    i64 sum = 0;
    for (i64 i = begin; i < end; ++i) sum += test(i) ? 1 : 0;
    begins[begin / kCells + 1] = sum;
  });
  for (i64 k = 0; k < tasks; ++k) begins[k + 1] += begins[k];
  parallel_chunks(threads, count, kCells, [&](i64 begin, i64 end) {
    i64 at = begins[begin / kCells];
    for (i64 i = begin; i < end && at < begins[begin / kCells + 1]; ++i)
      if (test(i)) list[at++] = i32(i);
  });
  return begins[tasks];
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

PF_API i64 pf_occupancy_pack_f32(const float* grid, double threshold, i64 cascades, i64 resolution, u8* bits,
                                 u8* coarse, i64 threads) {
  const i64 cells = resolution * resolution * resolution, blocks = resolution / kOccupancyBlock;
  for (i64 k = 0; k < cascades; ++k) {
    u8* own = bits + k * cells / 8;
    const u8* finer = k > 0 ? own - cells / 8 : nullptr;
    parallel_for(threads, blocks, [&](i64 bz) {  // cascade after cascade, since each reads the one below
      for (i64 z = bz * kOccupancyBlock; z < (bz + 1) * kOccupancyBlock; ++z)
        pack_slice(grid + k * cells, float(threshold), finer, resolution, z, own);
      pool_blocks(own, resolution, bz, coarse + k * blocks * blocks * blocks);
    });
  }
  parallel_for(threads, cascades, [&](i64 k) { spread_distances(blocks, coarse + k * blocks * blocks * blocks); });
  return 0;
}

// Returns 0, or -1 where a cell is past the grid (negative cells are skipped).
PF_API i64 pf_occupancy_decay_max_f32(float* grid, i64 count, const i64* cells, const float* values, i64 samples,
                                      double decay, i64 threads) {
  for (i64 i = 0; i < samples; ++i)
    if (cells[i] >= count) return -1;
  const float keep = float(decay);
  parallel_chunks(threads, count, kCells, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) grid[i] = grid[i] >= 0.0f ? grid[i] * keep : grid[i];
  });
  parallel_chunks(threads, samples, kCells, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i)
      if (cells[i] >= 0) raise(grid + cells[i], values[i]);
  });
  return 0;
}

PF_API i64 pf_occupancy_sample_f32(const float* grid, const u8* bits, i64 cascades, i64 resolution, i64 uniform,
                                   i64 occupied, i64 seed, i64 step, i64* cells, float* positions, i64 threads) {
  const i64 count = cascades * resolution * resolution * resolution;
  i32* seen = static_cast<i32*>(std::malloc(2 * count * sizeof(i32)));
  if (!seen) return -1;
  i32* full = seen + count;
  const i64 seen_count = list_cells(count, seen, threads, [&](i64 i) { return grid[i] >= 0.0f; });
  i64 full_count = 0;
  if (occupied > 0)
    full_count =
        list_cells(count, full, threads, [&](i64 i) { return (bits[i >> 3] >> (i & 7) & 1) && grid[i] >= 0.0f; });
  parallel_chunks(threads, uniform + occupied, kCells / 4, [&](i64 begin, i64 end) {
    for (i64 j = begin; j < end; ++j) {
      const bool from_full = j >= uniform && full_count > 0;
      const i64 choices = from_full ? full_count : seen_count;
      i64 cell = -1;
      if (choices > 0) {
        const i64 pick = j < uniform ? stratified_pick(u64(seed), u64(step), j, j, uniform, choices)
                                     : stratified_pick(u64(seed), u64(step), j, j - uniform, occupied, choices);
        cell = (from_full ? full : seen)[pick];
      }
      cells[j] = cell;
      if (cell >= 0) {
        jittered_position(u64(seed), u64(step), j, cell, resolution, positions + 3 * j);
      } else {
        positions[3 * j] = positions[3 * j + 1] = positions[3 * j + 2] = 0.0f;
      }
    }
  });
  std::free(seen);
  return 0;
}
