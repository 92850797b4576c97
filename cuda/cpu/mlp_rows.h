// The rows of a batch as the tiles of the fused-MLP engine (mlp_tile.h), and the sum of its tiles' weight gradients:
// what the operators of mlp_cpu.cpp and modulated_mlp_cpu.cpp share.
//
// Weight gradients are summed in a number of slots that depends on the row count and the shape only, each slot a
// contiguous range of tiles, and the slots are added in order: results do not depend on the thread count.
#pragma once
#include "mlp_tile.h"
#include "parallel.h"

namespace polyfield {

constexpr i64 kSlots = 64;              // partial gradients: balance for many threads, a small share of the work to add
constexpr i64 kSmallNetwork = 1 << 16;  // parameters: 4 layers of 128
constexpr i64 kChunkTiles = 16;         // forward: rows handed to a thread at once

template <class T> struct Workspace {  // one thread's tiles in the caller's scalars
  Scratch<T> x, y, dy, dx;
};

// How many partial gradients. Clearing, filling from DRAM and adding those of a large network (wide: 2 MiB) takes as
// long as 2 of its tiles, so there are few of them; a power of two, since all take equally long.
inline i64 slots_of(const MlpShape& shape, i64 tiles) {
  if (mlp_gradient_size(shape) <= kSmallNetwork || tiles >= 64 * kSlots) return min_of(kSlots, tiles);
  return min_of(i64(16), (tiles + 3) / 4);
}

// Copies `count` rows of `columns` into a zero-padded tile of `tile_rows` x `padded`; rows lie `stride` apart.
template <class T>
void load_rows(const T* from, i64 stride, i64 count, i64 columns, T* tile, i64 padded) {
  for (i64 r = 0; r < kTileRows; ++r) {
    const i64 here = r < count ? columns : 0;
    for (i64 c = 0; c < here; ++c) tile[r * padded + c] = from[r * stride + c];
    for (i64 c = here; c < padded; ++c) tile[r * padded + c] = T(0);
  }
}
template <class T>
void store_rows(T* to, i64 stride, i64 count, i64 columns, const T* tile, i64 padded) {
  for (i64 r = 0; r < count; ++r)
    for (i64 c = 0; c < columns; ++c) to[r * stride + c] = tile[r * padded + c];
}

// The rows themselves where they already are a tile, else a padded copy.
template <class T> const T* tile_of(const T* rows, i64 count, i64 columns, i64 padded, Scratch<T>& scratch) {
  if (count == kTileRows && columns == padded) return rows;
  T* tile = scratch.reserve(kTileRows * padded);
  load_rows(rows, columns, count, columns, tile, padded);
  return tile;
}

template <class P> MlpWeights<P>& packed_weights(const MlpShape& shape, const typename P::Scalar* parameters) {
  thread_local MlpWeights<P> weights;  // of the calling thread; workers get a reference
  weights.pack(shape, parameters);
  return weights;
}

// Calls body(tile, gradient) for every tile with the padded accumulator of the tile's slot, and adds the slots into the
// flat `gradient` (set, not added to). With a null gradient body gets null.
template <class T, class Body>
void for_tiles_with_gradient(i64 tiles, const MlpShape& shape, T* gradient, i64 threads, const Body& body) {
  const i64 slots = slots_of(shape, tiles), size = mlp_gradient_size(shape);
  thread_local Scratch<T> scratch;
  T* partial = gradient ? scratch.reserve(max_of(slots, i64(1)) * size) : nullptr;
  parallel_for(threads, slots, [&](i64 slot) {
    T* own = gradient ? partial + slot * size : nullptr;
    if (own) std::memset(own, 0, size * sizeof(T));
    for (i64 tile = slot * tiles / slots; tile < (slot + 1) * tiles / slots; ++tile) body(tile, own);
  });
  if (!gradient) return;
  std::memset(gradient, 0, shape.parameter_count() * sizeof(T));
  if (!slots) return;
  parallel_chunks(threads, size, 4096, [&](i64 begin, i64 end) {
    for (i64 slot = 1; slot < slots; ++slot)
      for (i64 k = begin; k < end; ++k) partial[k] += partial[slot * size + k];
  });
  mlp_add_gradient(shape, partial, gradient);
}

}  // namespace polyfield

// How the functions of the C ABI are given a network.
#define MLP_SHAPE_ARGUMENTS                                                                                         \
  i64 inputs, i64 outputs, i64 width, i64 hidden, i64 hidden_activation, i64 output_activation, i64 bias, i64 skip, \
      i64 threads
#define MLP_SHAPE \
  MlpShape { inputs, outputs, width, hidden, hidden_activation, output_activation, bias, skip }
