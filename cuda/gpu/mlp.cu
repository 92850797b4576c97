// The fused MLP on tensor cores, bfloat16 with float32 sums: a warp takes 16 or 32 rows through all layers in
// registers, since the sums of one layer are the A operand of the next (mma.h). After Mueller et al. 2021 (arXiv
// 2106.12372, section 4). 256 columns are too many for that: there, and with a skip
// connection, a block shares 64 rows.
//
// Weights are first packed into the order in which lanes read them as B operands, for both directions; they stay in
// the L1 cache, which is as fast as shared memory. The backward pass runs the network again, and leaves activations and
// gradients of sums ("deltas") of every layer as A operands in a scratch, from which a second kernel makes the
// gradients of the weights: slots of rows, each summed in order, so that results repeat exactly.
#include "mma.h"
#include "polyfield/activations.h"
#include "polyfield/mlp.h"

namespace polyfield {

// B operands of a layer: k tiles of 16, column blocks of 8, a lane's two blocks side by side.
struct PackedLayer {
  const OperandB* operands;
  i64 column_blocks;
  __device__ OperandB at(i64 k, i64 column_block) const {
    return operands[(k * column_blocks + column_block) * kWarp + lane_number()];
  }
};

// How many B operands (times 32 lanes) layers before `layer` take, in one direction.
__device__ inline i64 operands_before(const MlpShape& shape, i64 layer) {
  i64 sum = 0;
  for (i64 l = 0; l < layer; ++l)
    sum += MlpShape::padded(shape.layer_inputs(l)) * MlpShape::padded(shape.layer_outputs(l)) / 4;
  return sum;
}
__device__ inline PackedLayer forward_layer(const MlpShape& shape, const OperandB* packed, i64 layer) {
  return {packed + operands_before(shape, layer), MlpShape::padded(shape.layer_outputs(layer)) / 8};
}
__device__ inline PackedLayer backward_layer(const MlpShape& shape, const OperandB* packed, i64 layer) {
  const i64 first = operands_before(shape, shape.layers()) + operands_before(shape, layer);
  return {packed + first, MlpShape::padded(shape.layer_inputs(layer)) / 8};
}

// Element (row, column) of a tile's sums: sums[j] of column block `block`.
__device__ __forceinline__ int sum_row(int j) { return lane_number() / 4 + (j & 2 ? 8 : 0); }
__device__ __forceinline__ i64 sum_column(i64 block, int j) { return 8 * block + 2 * (lane_number() % 4) + (j & 1); }

// Rows of a (rows, columns) matrix of floats, 16 at a time, zero outside.
struct Matrix {
  const float* values;
  i64 rows, columns;
  __device__ float at(i64 row, i64 column) const {
    return row < rows && column < columns ? values[row * columns + column] : 0.0f;
  }
  __device__ OperandA operand(i64 tile, i64 k) const {
    float left[4], right[4];
    for (int j = 0; j < 4; ++j) {
      const i64 row = 16 * tile + sum_row(j);
      left[j] = at(row, sum_column(2 * k, j));
      right[j] = at(row, sum_column(2 * k + 1, j));
    }
    return as_operand(left, right);
  }
};

// Out of line: repeated for every element of unrolled loops, they would take a minute to compile.
__device__ PF_OUTLINE ValueAndSlope<float> smooth_activation(i64 activation, float z) {
  return activation == kHiddenSoftplus ? hidden_activation<kHiddenSoftplus>(z) : hidden_activation<kHiddenSine>(z);
}
__device__ __forceinline__ ValueAndSlope<float> activated(i64 activation, float z) {
  if (activation == kHiddenNone) return {z, 1.0f};
  return activation == kHiddenRelu ? hidden_activation<kHiddenRelu>(z) : smooth_activation(activation, z);
}

// Sums of one layer of `Tiles` row tiles, as wide as the hidden layers.
template <int Width, int Tiles> struct Sums {
  float values[Tiles][Width / 8][4];
  __device__ void clear() {
    for (int m = 0; m < Tiles; ++m)
      for (int n = 0; n < Width / 8; ++n)
        for (int j = 0; j < 4; ++j) values[m][n][j] = 0.0f;
  }
  __device__ void add(const OperandA (&a)[Tiles], i64 k, const PackedLayer& layer) {
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      const OperandB b = layer.at(k, n);
#pragma unroll
      for (int m = 0; m < Tiles; ++m) multiply_add(values[m][n], a[m], b);
    }
  }
};

template <int Width, int Tiles> struct Activations {
  OperandA values[Width / 16][Tiles];
};

// What a backward pass keeps of a hidden layer of one tile: operands in memory, k tiles in order.
struct Kept {
  OperandA *values, *slopes;  // slopes where the activation keeps them
};

// Turns sums into activations, with the bias where there is one; keeps them where `Keep`.
template <int Width, int Tiles, bool Keep>
__device__ void activate(Sums<Width, Tiles>& sums, i64 activation, const float* bias, Activations<Width, Tiles>& out,
                         const Kept& kept) {
#pragma unroll
  for (int k = 0; k < Width / 16; ++k)
#pragma unroll
    for (int m = 0; m < Tiles; ++m) {
      float slopes[2][4];
#pragma unroll
      for (int side = 0; side < 2; ++side)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& z = sums.values[m][2 * k + side][j];
          if (bias) z += bias[sum_column(2 * k + side, j)];
          const ValueAndSlope<float> both = activated(activation, z);
          z = both.value;
          slopes[side][j] = both.slope;
        }
      out.values[k][m] = as_operand(sums.values[m][2 * k], sums.values[m][2 * k + 1]);
      if (!Keep) continue;
      kept.values[k * kWarp + lane_number()] = out.values[k][m];
      if (kept.slopes) kept.slopes[k * kWarp + lane_number()] = as_operand(slopes[0], slopes[1]);
    }
}

// The hidden layers of `Tiles` row tiles from `tile` on; activations of the last are left in `h`.
template <int Width, int Tiles, bool Keep, class Keeper>
__device__ void hidden_layers(const MlpShape& shape, const Matrix& x, const OperandB* packed, const float* parameters,
                              i64 tile, Activations<Width, Tiles>& h, const Keeper& keeper) {
  Sums<Width, Tiles> sums;
  for (i64 l = 0; l < shape.hidden; ++l) {
    const PackedLayer layer = forward_layer(shape, packed, l);
    sums.clear();
    if (l == 0) {
      for (i64 k = 0; k < shape.padded_inputs() / 16; ++k) {
        OperandA a[Tiles];
        for (int m = 0; m < Tiles; ++m) {
          a[m] = x.operand(tile + m, k);
          if (Keep) keeper.input(k, a[m]);
        }
        sums.add(a, k, layer);
      }
    } else {
#pragma unroll
      for (int k = 0; k < Width / 16; ++k) sums.add(h.values[k], k, layer);
    }
    const float* bias = shape.bias ? parameters + shape.flat_offset(l) + Width * shape.layer_inputs(l) : nullptr;
    activate<Width, Tiles, Keep>(sums, shape.hidden_activation, bias, h, keeper.layer(l));
  }
}

struct KeepNothing {
  __device__ void input(i64, const OperandA&) const {}
  __device__ Kept layer(i64) const { return {nullptr, nullptr}; }
};

// One block of 8 columns of the outputs of tile m, after bias and activation.
template <int Width, int Tiles>
__device__ void output_block(const MlpShape& shape, const OperandB* packed, const float* parameters,
                             const Activations<Width, Tiles>& h, i64 block, float (&out)[Tiles][4]) {
  const PackedLayer layer = forward_layer(shape, packed, shape.hidden);
  const float* bias = parameters + shape.flat_offset(shape.hidden) + shape.outputs * Width;
#pragma unroll
  for (int m = 0; m < Tiles; ++m)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const i64 column = sum_column(block, j);
      out[m][j] = shape.bias && column < shape.outputs ? bias[column] : 0.0f;
    }
#pragma unroll
  for (int k = 0; k < Width / 16; ++k) {
    const OperandB b = layer.at(k, block);
#pragma unroll
    for (int m = 0; m < Tiles; ++m) multiply_add(out[m], h.values[k][m], b);
  }
#pragma unroll
  for (int m = 0; m < Tiles; ++m)
#pragma unroll
    for (int j = 0; j < 4; ++j) out[m][j] = output_activation(shape.output_activation, out[m][j]);
}

template <int Width>
__device__ void mlp_forward(const MlpShape& shape, const Matrix& x, const OperandB* packed, const float* parameters,
                            float* y) {
  constexpr int kTiles = Width == 128 ? 1 : 2;
  const i64 tile = warp_number() * kTiles;
  if (16 * tile >= x.rows) return;
  Activations<Width, kTiles> h;
  hidden_layers<Width, kTiles, false>(shape, x, packed, parameters, tile, h, KeepNothing());
  for (i64 block = 0; 8 * block < shape.outputs; ++block) {
    float out[kTiles][4];
    output_block<Width, kTiles>(shape, packed, parameters, h, block, out);
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const i64 row = 16 * (tile + m) + sum_row(j), column = sum_column(block, j);
        if (row < x.rows && column < shape.outputs) y[row * shape.outputs + column] = out[m][j];
      }
  }
}

// Where a backward pass leaves its operands: per tile, k tiles of the input, of the hidden layers' activations, then of
// the deltas of every layer; after all tiles the slopes, where they are kept. In operands of 32 lanes.
struct Scratch {
  OperandA* memory;
  MlpShape shape;
  i64 tiles;

  PF_HD i64 values_before(i64 layer) const {  // of what enters layer `layer`
    return layer == 0 ? 0 : shape.padded_inputs() / 16 + (layer - 1) * shape.width / 16;
  }
  PF_HD i64 deltas_before(i64 layer) const { return values_before(shape.layers()) + layer * shape.width / 16; }
  PF_HD i64 per_tile() const { return deltas_before(shape.hidden) + shape.padded_outputs() / 16; }
  PF_HD OperandA* values(i64 tile, i64 layer) const {
    return memory + (tile * per_tile() + values_before(layer)) * kWarp;
  }
  PF_HD OperandA* deltas(i64 tile, i64 layer) const {
    return memory + (tile * per_tile() + deltas_before(layer)) * kWarp;
  }
  // k tile `k` of what enters `layer`: behind the activations the inputs, where it has the skip connection.
  PF_HD const OperandA* entering(i64 tile, i64 layer, i64 k) const {
    const i64 own = shape.width / 16;
    const bool skipped = layer > 0 && k >= own;
    return values(tile, skipped ? 0 : layer) + (skipped ? k - own : k) * kWarp;
  }
  PF_HD OperandA* slopes(i64 tile, i64 layer) const {
    if (!keeps_slope(shape.hidden_activation)) return nullptr;
    return memory + (tiles * per_tile() + (tile * shape.hidden + layer) * shape.width / 16) * kWarp;
  }
};

struct KeepAll {
  const Scratch& scratch;
  i64 tile;
  __device__ void input(i64 k, const OperandA& a) const { scratch.values(tile, 0)[k * kWarp + lane_number()] = a; }
  __device__ Kept layer(i64 l) const { return {scratch.values(tile, l + 1), scratch.slopes(tile, l)}; }
};

// k tile `k` of the deltas: two column blocks of gradients of activations, times the slopes that were kept.
__device__ __forceinline__ OperandA chained(const float* left, const float* right, i64 activation, const Kept& kept,
                                            i64 k) {
  const OperandA held = (kept.slopes ? kept.slopes : kept.values)[k * kWarp + lane_number()];
  float product[2][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // block i holds sums (2 (i & 1), 2 (i & 1) + 1) of column block 2 k + i / 2
    const float pair[2] = {low_bf16(held.block[i]), high_bf16(held.block[i])};
    for (int e = 0; e < 2; ++e) {
      const float slope = activation == kHiddenRelu ? (pair[e] > 0.0f ? 1.0f : 0.0f) : kept.slopes ? pair[e] : 1.0f;
      product[i / 2][2 * (i & 1) + e] = (i / 2 ? right : left)[2 * (i & 1) + e] * slope;
    }
  }
  return as_operand(product[0], product[1]);
}

// gradients of activations, times the slopes of the layer, as operands.
template <int Width>
__device__ void chain_activation(const Sums<Width, 1>& gradient, i64 activation, const Kept& kept, OperandA* deltas,
                                 Activations<Width, 1>& out) {
#pragma unroll
  for (int k = 0; k < Width / 16; ++k) {
    out.values[k][0] = chained(gradient.values[0][2 * k], gradient.values[0][2 * k + 1], activation, kept, k);
    deltas[k * kWarp + lane_number()] = out.values[k][0];
  }
}

// What the skip connection brings to one block of columns of dx: from the deltas that the scratch holds.
__device__ inline void add_skipped(const MlpShape& shape, const OperandB* packed, const Scratch& scratch, i64 tile,
                                   i64 block, float (&sums)[4]) {
  const PackedLayer layer = backward_layer(shape, packed, shape.skip);
  const OperandA* deltas = scratch.deltas(tile, shape.skip);
  for (i64 k = 0; k < shape.width / 16; ++k)
    multiply_add(sums, deltas[k * kWarp + lane_number()], layer.at(k, shape.width / 8 + block));
}

template <int Width>
__device__ void mlp_backward(const MlpShape& shape, const Matrix& x, const OperandB* packed, const float* parameters,
                             const Matrix& dy, float* dx, const Scratch& scratch) {
  const i64 tile = warp_number();
  if (16 * tile >= x.rows) return;
  Activations<Width, 1> h;
  hidden_layers<Width, 1, true>(shape, x, packed, parameters, tile, h, KeepAll{scratch, tile});
  Sums<Width, 1> gradient;
  gradient.clear();
  for (i64 k = 0; k < shape.padded_outputs() / 16; ++k) {
    float delta[2][4];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const i64 block = 2 * k + side;
      float out[1][4] = {};
      if (shape.output_activation != kOutputNone) output_block<Width, 1>(shape, packed, parameters, h, block, out);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        delta[side][j] =
            dy.at(16 * tile + sum_row(j), sum_column(block, j)) * output_slope(shape.output_activation, out[0][j]);
    }
    const OperandA a[1] = {as_operand(delta[0], delta[1])};
    scratch.deltas(tile, shape.hidden)[k * kWarp + lane_number()] = a[0];
    gradient.add(a, k, backward_layer(shape, packed, shape.hidden));
  }
  for (i64 l = shape.hidden - 1; l >= 0; --l) {
    const Kept kept{scratch.values(tile, l + 1), scratch.slopes(tile, l)};
    chain_activation<Width>(gradient, shape.hidden_activation, kept, scratch.deltas(tile, l), h);
    if (l == 0) break;
    gradient.clear();
#pragma unroll
    for (int k = 0; k < Width / 16; ++k) gradient.add(h.values[k], k, backward_layer(shape, packed, l));
  }
  if (!dx) return;
  const PackedLayer layer = backward_layer(shape, packed, 0);
  for (i64 block = 0; 8 * block < shape.inputs; ++block) {
    float sums[4] = {};
#pragma unroll
    for (int k = 0; k < Width / 16; ++k) multiply_add(sums, h.values[k][0], layer.at(k, block));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const i64 row = 16 * tile + sum_row(j), column = sum_column(block, j);
      if (row < x.rows && column < shape.inputs) dx[row * shape.inputs + column] = sums[j];
    }
  }
}

// ---- 256 columns, or a skip connection at any width. A block takes 64 rows through all layers: their activations lie
// in shared memory as A operands, every warp makes 32 of 256 columns, 16 (or none) of fewer. A layer's weights are so
// read once per block, without repetition by its warps.

constexpr int kWideTiles = 4, kWideDepth = 16;            // tiles of 16 rows, k tiles of the 256 columns
constexpr int kWideWarps = kThreads / kWarp;              // of a block
constexpr int kWideBlocks = 2 * kWideDepth / kWideWarps;  // column blocks of a warp

struct WideRows {
  OperandA operands[kWideTiles][kWideDepth][kWarp];  // 32 KiB
};

__device__ __forceinline__ int warp_of_block() { return int(threadIdx.x) / kWarp; }
__device__ __forceinline__ i64 first_wide_tile() { return i64(blockIdx.x) * kWideTiles; }

// The k tiles of a hidden layer that this warp makes.
struct WideShare {
  int first, count;
  __device__ explicit WideShare(const MlpShape& shape) {
    const int all = int(shape.width / 16), each = all > kWideWarps ? all / kWideWarps : 1;
    first = each * warp_of_block();
    count = first < all ? each : 0;
  }
};

// Calls body(tile, k) of kWideTiles x depth, shared among the warps of the block.
template <class Body> __device__ __forceinline__ void for_wide_tiles(i64 depth, const Body& body) {
  for (i64 i = warp_of_block(); i < kWideTiles * depth; i += kWideWarps) body(int(i % kWideTiles), i / kWideTiles);
}

struct WideSums {
  float values[kWideTiles][kWideBlocks][4];
  __device__ void clear() {
    for (int m = 0; m < kWideTiles; ++m)
      for (int n = 0; n < kWideBlocks; ++n)
        for (int j = 0; j < 4; ++j) values[m][n][j] = 0.0f;
  }
  // The first `depth` k tiles of the rows times those of the layer from `first` on, this warp's columns.
  __device__ void add(const WideRows& rows, i64 depth, const PackedLayer& layer, i64 first, const WideShare& share) {
    if (!share.count) return;
    for (i64 k = 0; k < depth; ++k) {
      OperandA a[kWideTiles];
#pragma unroll
      for (int m = 0; m < kWideTiles; ++m) a[m] = rows.operands[m][k][lane_number()];
#pragma unroll
      for (int n = 0; n < kWideBlocks; ++n) {
        if (n >= 2 * share.count) break;
        const OperandB b = layer.at(first + k, 2 * share.first + n);
#pragma unroll
        for (int m = 0; m < kWideTiles; ++m) multiply_add(values[m][n], a[m], b);
      }
    }
  }
};

// The hidden layers; activations of the last are left in `rows`. Everything is kept in `scratch`, unless null.
__device__ inline void wide_hidden_layers(const MlpShape& shape, const Matrix& x, const OperandB* packed,
                                          const float* parameters, WideRows& rows, const Scratch* scratch) {
  const i64 tile = first_wide_tile(), inputs = shape.padded_inputs() / 16, own = shape.width / 16;
  const WideShare share(shape);
  WideSums sums;
  for (i64 l = 0; l < shape.hidden; ++l) {
    const PackedLayer layer = forward_layer(shape, packed, l);
    sums.clear();
    if (l > 0) sums.add(rows, own, layer, 0, share);
    for (i64 first = 0; (l == 0 || l == shape.skip) && first < inputs; first += kWideDepth) {
      const i64 depth = min_of(i64(kWideDepth), inputs - first);
      __syncthreads();
      for_wide_tiles(depth, [&](int m, i64 k) {
        const OperandA a = x.operand(tile + m, first + k);
        rows.operands[m][k][lane_number()] = a;
        if (scratch && l == 0 && tile + m < scratch->tiles)
          scratch->values(tile + m, 0)[(first + k) * kWarp + lane_number()] = a;
      });
      __syncthreads();
      sums.add(rows, depth, layer, (l ? own : 0) + first, share);
    }
    __syncthreads();
    const float* bias = shape.bias ? parameters + shape.flat_offset(l) + shape.width * shape.layer_inputs(l) : nullptr;
#pragma unroll
    for (int m = 0; m < kWideTiles; ++m)
#pragma unroll
      for (int half = 0; half < kWideBlocks / 2; ++half) {
        if (half >= share.count) break;
        const int k = share.first + half;
        float values[2][4], slopes[2][4];
#pragma unroll
        for (int side = 0; side < 2; ++side)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float z = sums.values[m][2 * half + side][j] + (bias ? bias[sum_column(2 * k + side, j)] : 0.0f);
            const ValueAndSlope<float> both = activated(shape.hidden_activation, z);
            values[side][j] = both.value;
            slopes[side][j] = both.slope;
          }
        const OperandA a = as_operand(values[0], values[1]);
        rows.operands[m][k][lane_number()] = a;
        if (!scratch || tile + m >= scratch->tiles) continue;
        scratch->values(tile + m, l + 1)[k * kWarp + lane_number()] = a;
        OperandA* kept = scratch->slopes(tile + m, l);
        if (kept) kept[k * kWarp + lane_number()] = as_operand(slopes[0], slopes[1]);
      }
    __syncthreads();
  }
}

// sums += the first `depth` k tiles of row tile m of `rows` times one block of columns of a layer.
__device__ inline void add_wide_block(const WideRows& rows, int m, i64 depth, const PackedLayer& layer, i64 block,
                                      float (&sums)[4]) {
  for (i64 k = 0; k < depth; ++k) multiply_add(sums, rows.operands[m][k][lane_number()], layer.at(k, block));
}

// One block of columns of the outputs of row tile m, after bias and activation.
__device__ inline void wide_output_block(const MlpShape& shape, const OperandB* packed, const float* parameters,
                                         const WideRows& rows, int m, i64 block, float (&out)[4]) {
  const float* bias = parameters + shape.flat_offset(shape.hidden) + shape.outputs * shape.width;
  for (int j = 0; j < 4; ++j) {
    const i64 column = sum_column(block, j);
    out[j] = shape.bias && column < shape.outputs ? bias[column] : 0.0f;
  }
  add_wide_block(rows, m, shape.width / 16, forward_layer(shape, packed, shape.hidden), block, out);
  for (int j = 0; j < 4; ++j) out[j] = output_activation(shape.output_activation, out[j]);
}

__device__ inline void wide_forward(const MlpShape& shape, const Matrix& x, const OperandB* packed,
                                    const float* parameters, float* y) {
  __shared__ WideRows rows;
  const i64 tile = first_wide_tile();
  if (16 * tile >= x.rows) return;
  wide_hidden_layers(shape, x, packed, parameters, rows, nullptr);
  for_wide_tiles((shape.outputs + 7) / 8, [&](int m, i64 block) {
    float out[4];
    wide_output_block(shape, packed, parameters, rows, m, block, out);
    for (int j = 0; j < 4; ++j) {
      const i64 row = 16 * (tile + m) + sum_row(j), column = sum_column(block, j);
      if (row < x.rows && column < shape.outputs) y[row * shape.outputs + column] = out[j];
    }
  });
}

// The deltas of the last layer, to the scratch.
__device__ inline void wide_output_deltas(const MlpShape& shape, const OperandB* packed, const float* parameters,
                                          const Matrix& dy, const WideRows& rows, const Scratch& scratch) {
  const i64 tile = first_wide_tile();
  for_wide_tiles(shape.padded_outputs() / 16, [&](int m, i64 k) {
    if (tile + m >= scratch.tiles) return;
    float delta[2][4];
    for (int side = 0; side < 2; ++side) {
      const i64 block = 2 * k + side;
      float out[4] = {};
      if (shape.output_activation != kOutputNone) wide_output_block(shape, packed, parameters, rows, m, block, out);
      for (int j = 0; j < 4; ++j)
        delta[side][j] =
            dy.at(16 * (tile + m) + sum_row(j), sum_column(block, j)) * output_slope(shape.output_activation, out[j]);
    }
    scratch.deltas(tile + m, shape.hidden)[k * kWarp + lane_number()] = as_operand(delta[0], delta[1]);
  });
}

__device__ inline void wide_backward(const MlpShape& shape, const Matrix& x, const OperandB* packed,
                                     const float* parameters, const Matrix& dy, float* dx, const Scratch& scratch) {
  __shared__ WideRows rows;
  const i64 tile = first_wide_tile(), own = shape.width / 16;
  const WideShare share(shape);
  if (16 * tile >= x.rows) return;
  wide_hidden_layers(shape, x, packed, parameters, rows, &scratch);
  wide_output_deltas(shape, packed, parameters, dy, rows, scratch);
  WideSums gradient;
  gradient.clear();
  for (i64 first = 0; first < shape.padded_outputs() / 16; first += kWideDepth) {
    const i64 depth = min_of(i64(kWideDepth), shape.padded_outputs() / 16 - first);
    __syncthreads();
    for_wide_tiles(depth, [&](int m, i64 k) {
      if (tile + m < scratch.tiles)
        rows.operands[m][k][lane_number()] =
            scratch.deltas(tile + m, shape.hidden)[(first + k) * kWarp + lane_number()];
    });
    __syncthreads();
    gradient.add(rows, depth, backward_layer(shape, packed, shape.hidden), first, share);
  }
  for (i64 l = shape.hidden - 1; l >= 0; --l) {
    __syncthreads();
#pragma unroll
    for (int m = 0; m < kWideTiles; ++m)
#pragma unroll
      for (int half = 0; half < kWideBlocks / 2; ++half) {
        if (tile + m >= scratch.tiles || half >= share.count) break;
        const int k = share.first + half;
        const Kept kept{scratch.values(tile + m, l + 1), scratch.slopes(tile + m, l)};
        const OperandA delta =
            chained(gradient.values[m][2 * half], gradient.values[m][2 * half + 1], shape.hidden_activation, kept, k);
        scratch.deltas(tile + m, l)[k * kWarp + lane_number()] = delta;
        rows.operands[m][k][lane_number()] = delta;
      }
    __syncthreads();
    if (l == 0) break;
    gradient.clear();
    gradient.add(rows, own, backward_layer(shape, packed, l), 0, share);
  }
  if (!dx) return;
  for_wide_tiles((shape.inputs + 7) / 8, [&](int m, i64 block) {
    if (tile + m >= scratch.tiles) return;
    float sums[4] = {};
    add_wide_block(rows, m, own, backward_layer(shape, packed, 0), block, sums);
    if (shape.skip) add_skipped(shape, packed, scratch, tile + m, block, sums);
    for (int j = 0; j < 4; ++j) {
      const i64 row = 16 * (tile + m) + sum_row(j), column = sum_column(block, j);
      if (row < x.rows && column < shape.inputs) dx[row * shape.inputs + column] = sums[j];
    }
  });
}

constexpr int kColumnBlocks = 8;  // of a weight gradient that one warp sums: 16 x 64 elements

// A warp: 16 outputs times up to 64 inputs of a layer over the tiles of a slot. `partial` is the slot's, in the padded
// layout of polyfield/mlp.h.
__device__ inline void weight_gradient(const Scratch& scratch, i64 layer, i64 first_output, i64 first_input, i64 begin,
                                       i64 end, float* partial) {
  const MlpShape& shape = scratch.shape;
  const i64 columns = MlpShape::padded(shape.layer_inputs(layer));
  const bool with_bias = shape.bias && first_input == 0;
  float sums[kColumnBlocks][4] = {}, bias[4] = {};
  for (i64 tile = begin; tile < end; ++tile) {
    const OperandA d = scratch.deltas(tile, layer)[first_output / 16 * kWarp + lane_number()];
    const OperandA a{{transposed(d.block[0]), transposed(d.block[2]), transposed(d.block[1]), transposed(d.block[3])}};
    if (with_bias) multiply_add(bias, a, OperandB{{0x3f803f80u, 0x3f803f80u}});  // ones
#pragma unroll
    for (int n = 0; n < kColumnBlocks; n += 2) {
      if (first_input + 8 * n >= columns) break;
      const OperandA h = scratch.entering(tile, layer, first_input / 16 + n / 2)[lane_number()];
      multiply_add(sums[n], a, OperandB{{transposed(h.block[0]), transposed(h.block[1])}});
      multiply_add(sums[n + 1], a, OperandB{{transposed(h.block[2]), transposed(h.block[3])}});
    }
  }
  float* weights = partial + shape.padded_offset(layer);
#pragma unroll
  for (int n = 0; n < kColumnBlocks; ++n) {
    if (first_input + 8 * n >= columns) break;
    for (int j = 0; j < 4; ++j)
      weights[(first_output + sum_row(j)) * columns + first_input + sum_column(n, j)] = sums[n][j];
  }
  if (!with_bias || lane_number() % 4) return;
  float* biases = weights + MlpShape::padded(shape.layer_outputs(layer)) * columns;
  for (int j = 0; j < 4; j += 2) biases[first_output + sum_row(j)] = bias[j];
}

}  // namespace polyfield

using namespace polyfield;

#define SHAPE_ARGUMENTS \
  i64 inputs, i64 outputs, i64 width, i64 hidden, i64 hidden_activation, i64 output_activation, i64 bias, i64 skip
#define SHAPE \
  MlpShape { inputs, outputs, width, hidden, hidden_activation, output_activation, bias, skip }

// A thread a B operand of a lane: both directions of all layers.
PF_KERNEL(pf_mlp_pack_bf16, (const float* parameters, OperandB* packed, SHAPE_ARGUMENTS)) {
  const MlpShape shape = SHAPE;
  const i64 half = operands_before(shape, shape.layers()), number = thread_number();
  if (number >= 2 * half) return;
  const bool backward = number >= half;
  i64 at = backward ? number - half : number, layer = 0;
  for (; at >= operands_before(shape, layer + 1); ++layer) {
  }
  at -= operands_before(shape, layer);
  const i64 rows = shape.layer_outputs(layer), columns = shape.layer_inputs(layer);
  const float* weight = parameters + shape.flat_offset(layer);
  const i64 blocks = MlpShape::padded(backward ? columns : rows) / 8;
  const i64 lane = at % kWarp, block = at / kWarp % blocks, k = at / kWarp / blocks;
  const i64 n = 8 * block + lane / 4;
  float values[4];
  for (int i = 0; i < 4; ++i) {
    const i64 depth = 16 * k + 8 * (i / 2) + 2 * (lane % 4) + i % 2;
    const i64 row = backward ? depth : n, column = backward ? n : depth;
    values[i] = row < rows && column < columns ? weight[row * columns + column] : 0.0f;
  }
  packed[number] = {{pack_bf16(values[0], values[1]), pack_bf16(values[2], values[3])}};
}

// x (rows, inputs), y and dy (rows, outputs); dx may be null.
#define PF_MLP(WIDTH, FORWARD, BACKWARD)                                                                             \
  PF_KERNEL(pf_mlp_forward_bf16_##WIDTH, (const float* x, const float* parameters, const OperandB* packed, float* y, \
                                          Number row_count, SHAPE_ARGUMENTS)) {                                      \
    const i64 rows = row_count;                                                                                      \
    FORWARD(SHAPE, Matrix{x, rows, inputs}, packed, parameters, y);                                                  \
  }                                                                                                                  \
  PF_KERNEL(pf_mlp_backward_bf16_##WIDTH,                                                                            \
            (const float* x, const float* parameters, const OperandB* packed, const float* dy, float* dx,            \
             OperandA* scratch, Number row_count, SHAPE_ARGUMENTS)) {                                                \
    const MlpShape shape = SHAPE;                                                                                    \
    const i64 rows = row_count;                                                                                      \
    BACKWARD(shape, Matrix{x, rows, inputs}, packed, parameters, Matrix{dy, rows, outputs}, dx,                      \
             Scratch{scratch, shape, (rows + 15) / 16});                                                             \
  }
PF_MLP(16, mlp_forward<16>, mlp_backward<16>)
PF_MLP(32, mlp_forward<32>, mlp_backward<32>)
PF_MLP(64, mlp_forward<64>, mlp_backward<64>)
PF_MLP(128, mlp_forward<128>, mlp_backward<128>)
PF_MLP(wide, wide_forward, wide_backward)

// partials (slots, padded parameters): a warp each (slot, layer, 16 outputs, 64 inputs); `tasks` of them a slot.
PF_KERNEL(pf_mlp_weight_gradient_bf16,
          (OperandA * memory, float* partials, i64 slots, i64 tasks, Number rows, SHAPE_ARGUMENTS)) {
  const MlpShape shape = SHAPE;
  const Scratch scratch{memory, shape, (rows + 15) / 16};
  const i64 slot = warp_number() / tasks;
  if (slot >= slots) return;
  i64 task = warp_number() % tasks, layer = 0;
  for (;; ++layer) {
    const i64 here = MlpShape::padded(shape.layer_outputs(layer)) / 16 * ((shape.layer_inputs(layer) + 63) / 64);
    if (task < here) break;
    task -= here;
  }
  const i64 groups = (shape.layer_inputs(layer) + 63) / 64;
  weight_gradient(scratch, layer, task / groups * 16, task % groups * 64, scratch.tiles * slot / slots,
                  scratch.tiles * (slot + 1) / slots, partials + slot * shape.padded_offset(shape.layers()));
}

// The slots in order, from the padded to the flat layout: a thread a parameter.
PF_KERNEL(pf_mlp_reduce, (const float* partials, i64 slots, float* gradient, SHAPE_ARGUMENTS)) {
  const MlpShape shape = SHAPE;
  const i64 number = thread_number();
  if (number >= shape.parameter_count()) return;
  i64 at = number, layer = 0;
  for (; at >= shape.layer_parameters(layer); ++layer) at -= shape.layer_parameters(layer);
  const i64 columns = shape.layer_inputs(layer), weights = columns * shape.layer_outputs(layer);
  const i64 padded = MlpShape::padded(columns);
  const i64 place = at < weights ? at / columns * padded + at % columns
                                 : MlpShape::padded(shape.layer_outputs(layer)) * padded + (at - weights);
  float sum = 0.0f;
  for (i64 slot = 0; slot < slots; ++slot)
    sum += partials[slot * shape.padded_offset(shape.layers()) + shape.padded_offset(layer) + place];
  gradient[number] = sum;
}
