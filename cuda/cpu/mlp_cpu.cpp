// The operators of the fused MLP: forward, backward, and value with Jacobian (three tangents) with its backward.
//
// Rows are cut into tiles of 48. Backward recomputes each tile's forward, so that no activation ever leaves the cache;
// or it reads what the forward pass kept, tile after tile as MlpState lays it out: for wide networks the arithmetic
// that this saves costs more than the memory traffic.
#include <type_traits>

#include "api.h"
#include "mlp_rows.h"

namespace polyfield {
namespace {

constexpr i64 kBlocks = 4;  // Jacobian: value and three tangents, stacked as row blocks of one tile
constexpr i64 kStacked = kBlocks * kTileRows;

template <class T> using PlainOf = std::conditional_t<std::is_same_v<T, double>, F64, F32>;

template <class P> typename P::Stored* tile_kept(void* kept, const MlpShape& shape, i64 tile) {
  return kept ? static_cast<typename P::Stored*>(kept) + tile * kTileRows * mlp_kept_columns(shape) : nullptr;
}

// `kept`: what backward would recompute, tiles x kTileRows x mlp_kept_columns, or null.
template <class P>
void forward(const typename P::Scalar* x, const typename P::Scalar* parameters, typename P::Scalar* y, void* kept,
             i64 rows, const MlpShape& shape, i64 threads) {
  using T = typename P::Scalar;
  const MlpWeights<P>& weights = packed_weights<P>(shape, parameters);
  parallel_chunks(threads, rows, kChunkTiles * kTileRows, [&](i64 begin, i64 end) {
    thread_local MlpState<P> state;
    thread_local Workspace<T> work;
    for (i64 r = begin; r < end; r += kTileRows) {
      state.reserve(shape, kTileRows, tile_kept<P>(kept, shape, r / kTileRows));
      const i64 count = min_of(kTileRows, end - r);
      const T* tile = tile_of(x + r * shape.inputs, count, shape.inputs, shape.padded_inputs(), work.x);
      const bool direct = count == kTileRows && shape.outputs == shape.padded_outputs();
      T* out = direct ? y + r * shape.outputs : work.y.reserve(kTileRows * shape.padded_outputs());
      if (kept)
        mlp_forward(weights, state, tile, out, 0, kTileRows);
      else
        mlp_infer(weights, state, tile, out, kTileRows);
      mlp_output_activation(shape, out, count);
      if (!direct) store_rows(y + r * shape.outputs, shape.outputs, count, shape.outputs, out, shape.padded_outputs());
    }
  });
}

template <class P>
void backward(const typename P::Scalar* x, const typename P::Scalar* parameters, const typename P::Scalar* dy,
              typename P::Scalar* dx, typename P::Scalar* gradient, void* kept, i64 rows, const MlpShape& shape,
              i64 threads) {
  using T = typename P::Scalar;
  const MlpWeights<P>& weights = packed_weights<P>(shape, parameters);
  const i64 inputs = shape.inputs, padded = shape.padded_inputs(), tiles = (rows + kTileRows - 1) / kTileRows;
  for_tiles_with_gradient(tiles, shape, gradient, threads, [&](i64 tile, T* sum) {
    thread_local MlpState<P> state;
    thread_local Workspace<T> work;
    state.reserve(shape, kTileRows, tile_kept<P>(kept, shape, tile));
    const i64 r = tile * kTileRows, count = min_of(kTileRows, rows - r);
    const T* rows_x = tile_of(x + r * inputs, count, inputs, padded, work.x);
    T* out = work.y.reserve(kTileRows * shape.padded_outputs());
    T* d = work.dy.reserve(kTileRows * shape.padded_outputs());
    if (!kept)
      mlp_forward(weights, state, rows_x, out, 0, kTileRows);
    else if (shape.output_activation != kOutputNone)
      mlp_last_layer(weights, state, out, 0, kTileRows);
    mlp_output_activation(shape, out, count);
    load_rows(dy + r * shape.outputs, shape.outputs, count, shape.outputs, d, shape.padded_outputs());
    mlp_output_activation_backward(shape, out, d, count);
    const bool direct = count == kTileRows && inputs == padded;
    T* rows_dx = !dx ? nullptr : direct ? dx + r * inputs : work.dx.reserve(kTileRows * padded);
    mlp_backward(weights, state, rows_x, d, rows_dx, sum, 0, kTileRows);
    if (dx && !direct) store_rows(dx + r * inputs, inputs, count, inputs, rows_dx, padded);
  });
}

// ---- Value and Jacobian. A stacked tile is [value rows | tangent 0 | tangent 1 | tangent 2], so that every product of
// the network is one call over 192 rows, and only the passes over activations couple the blocks.

template <class T> struct Stack {
  Scratch<T> input, output, gradient[2], skipped, value[kMlpMaxHidden], slope[kMlpMaxHidden];

  void reserve(const MlpShape& shape) {
    input.reserve(kStacked * shape.padded_inputs());
    output.reserve(kStacked * shape.padded_outputs());
    for (auto& g : gradient) g.reserve(kStacked * max_of(shape.width, shape.padded_inputs()));
    if (shape.skip) skipped.reserve(kStacked * shape.padded_inputs());  // gradient by the skip connection
    for (i64 l = 0; l < shape.hidden; ++l) {
      value[l].reserve(kStacked * stride(shape, l));  // f(z), then f'(z) times the tangents of z
      slope[l].reserve(kStacked * shape.width);       // f'(z), then the tangents of z
    }
  }
  // Of value[l]: the activations, and behind them the inputs where the next layer is given them.
  static i64 stride(const MlpShape& shape, i64 l) { return MlpShape::padded(shape.layer_inputs(l + 1)); }
};

template <class T>
void load_stack(const T* rows, const T* tangents, i64 r, i64 count, i64 columns, T* tile, i64 padded) {
  load_rows(rows + r * columns, columns, count, columns, tile, padded);
  for (i64 k = 0; k < 3; ++k)
    load_rows(tangents + (3 * r + k) * columns, 3 * columns, count, columns, tile + (k + 1) * kTileRows * padded,
              padded);
}
template <class T>
void store_stack(T* rows, T* tangents, i64 r, i64 count, i64 columns, const T* tile, i64 padded) {
  if (rows) store_rows(rows + r * columns, columns, count, columns, tile, padded);
  if (!tangents) return;
  for (i64 k = 0; k < 3; ++k)
    store_rows(tangents + (3 * r + k) * columns, 3 * columns, count, columns, tile + (k + 1) * kTileRows * padded,
               padded);
}

// slope holds the sums of a layer without bias; afterwards value and slope hold what Stack says.
template <int Activation, class T> void activate_stack(T* value, i64 ldv, T* slope, const T* bias, i64 width) {
  for (i64 r = 0; r < kTileRows; ++r)
    for (i64 c = 0; c < width; c += kLanes<T>) {
      const i64 at = r * width + c;
      Vec<T> f, d, z = load(slope + at);
      if (bias) z += load(bias + c);
      activate<Activation>(z, f, d);
      store<T>(value + r * ldv + c, f);
      store<T>(slope + at, d);
      for (i64 k = 1; k < kBlocks; ++k)
        store<T>(value + (k * kTileRows + r) * ldv + c, d * load(slope + at + k * kTileRows * width));
    }
}

// g: gradients of the stacked activations, turned into gradients of the stacked sums.
template <int Activation, class T>
void activate_stack_backward(const T* value, i64 ldv, const T* slope, T* g, i64 width) {
  for (i64 r = 0; r < kTileRows; ++r)
    for (i64 c = 0; c < width; c += kLanes<T>) {
      const i64 at = r * width + c;
      const Vec<T> f = load(value + r * ldv + c), d = load(slope + at);
      Vec<T> coupled{};
      for (i64 k = 1; k < kBlocks; ++k) {
        const i64 tangent = at + k * kTileRows * width;
        const Vec<T> dt = load(g + tangent);
        coupled += dt * load(slope + tangent);
        store<T>(g + tangent, d * dt);
      }
      Vec<T> dz = d * load(g + at);
      if (Activation == kHiddenSoftplus) dz += T(kSoftplusBeta) * d * (T(1) - d) * coupled;
      if (Activation == kHiddenSine) dz -= f * coupled;
      store<T>(g + at, dz);
    }
}

template <class P> void forward_stack(const MlpWeights<P>& weights, Stack<typename P::Scalar>& stack) {
  using T = typename P::Scalar;
  const MlpShape& shape = weights.shape();
  const i64 width = shape.width, last = shape.hidden, outputs = shape.padded_outputs();
  const T* input = stack.input.data;
  i64 ld = shape.padded_inputs();
  for (i64 l = 0; l < shape.hidden; ++l) {
    T *value = stack.value[l].data, *slope = stack.slope[l].data;
    multiply<P>(input, ld, kStacked, weights.forward(l), width, width, shape.layer_inputs(l), nullptr,
                StoreScalar<P>{slope, width});
    const i64 stride = stack.stride(shape, l);
    with_activation(shape.hidden_activation, [&](auto tag) {
      activate_stack<decltype(tag)::value>(value, stride, slope, weights.bias(l), width);
    });
    if (shape.skip && l + 1 == shape.skip)
      append_rows(stack.input.data, shape.padded_inputs(), kStacked, shape.padded_inputs(), value, width);
    input = value;
    ld = stride;
  }
  T* out = stack.output.data;
  multiply<P>(input, ld, kStacked, weights.forward(last), outputs, outputs, width, nullptr,
              StoreScalar<P>{out, outputs});
  if (shape.bias)
    for (i64 r = 0; r < kTileRows; ++r)
      for (i64 c = 0; c < outputs; ++c) out[r * outputs + c] += weights.bias(last)[c];
}

// stack.output holds the gradients of value and Jacobian; stack.gradient[0] gets those of the inputs.
template <class P>
void backward_stack(const MlpWeights<P>& weights, Stack<typename P::Scalar>& stack, typename P::Scalar* gradient) {
  using T = typename P::Scalar;
  const MlpShape& shape = weights.shape();
  static thread_local MlpState<P> unused;  // plain precisions interleave nothing
  const T* d = stack.output.data;
  const i64 width = shape.width, inputs = shape.padded_inputs();
  i64 ld = shape.padded_outputs();
  for (i64 l = shape.hidden; l >= 0; --l) {
    const i64 outputs = shape.layer_outputs(l), columns = l ? stack.stride(shape, l - 1) : inputs;
    if (gradient) {
      T* weight = gradient + shape.padded_offset(l);
      add_weight_gradient<P>(unused, d, ld, outputs, l ? stack.value[l - 1].data : stack.input.data, columns, columns,
                             kStacked, weight);
      if (shape.bias) add_bias_gradient<P>(d, ld, outputs, kTileRows, weight + MlpShape::padded(outputs) * columns);
    }
    T* next = stack.gradient[l & 1].data;
    auto into = [&](auto sink) {
      multiply<P>(d, ld, kStacked, weights.backward(l), columns, columns, outputs, nullptr, sink);
    };
    const i64 next_ld = l ? width : inputs;
    if (shape.skip && l == shape.skip)
      into(StoreSplit<P, StoreScalar<P>>{{next, width}, width, stack.skipped.data, inputs});
    else if (shape.skip && l == 0)
      into(StoreTotal<P>{next, inputs, stack.skipped.data, inputs});
    else
      into(StoreScalar<P>{next, next_ld});
    if (l)
      with_activation(shape.hidden_activation, [&](auto tag) {
        activate_stack_backward<decltype(tag)::value>(stack.value[l - 1].data, columns, stack.slope[l - 1].data, next,
                                                      width);
      });
    d = next;
    ld = next_ld;
  }
}

template <class T>
void jacobian(const T* x, const T* tangents, const T* parameters, T* value, T* out, i64 rows, const MlpShape& shape,
              i64 threads) {
  using P = PlainOf<T>;
  const MlpWeights<P>& weights = packed_weights<P>(shape, parameters);
  parallel_chunks(threads, rows, kTileRows, [&](i64 r, i64 end) {
    thread_local Stack<T> stack;
    stack.reserve(shape);
    load_stack(x, tangents, r, end - r, shape.inputs, stack.input.data, shape.padded_inputs());
    forward_stack(weights, stack);
    store_stack(value, out, r, end - r, shape.outputs, stack.output.data, shape.padded_outputs());
  });
}

template <class T>
void jacobian_backward(const T* x, const T* tangents, const T* parameters, const T* dvalue, const T* djacobian, T* dx,
                       T* dtangents, T* gradient, i64 rows, const MlpShape& shape, i64 threads) {
  using P = PlainOf<T>;
  const MlpWeights<P>& weights = packed_weights<P>(shape, parameters);
  const i64 tiles = (rows + kTileRows - 1) / kTileRows;
  for_tiles_with_gradient(tiles, shape, gradient, threads, [&](i64 tile, T* sum) {
    thread_local Stack<T> stack;
    stack.reserve(shape);
    const i64 r = tile * kTileRows, count = min_of(kTileRows, rows - r);
    load_stack(x, tangents, r, count, shape.inputs, stack.input.data, shape.padded_inputs());
    forward_stack(weights, stack);
    load_stack(dvalue, djacobian, r, count, shape.outputs, stack.output.data, shape.padded_outputs());
    backward_stack(weights, stack, sum);
    store_stack(dx, dtangents, r, count, shape.inputs, stack.gradient[0].data, shape.padded_inputs());
  });
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// x (rows, inputs), parameters (parameter_count), y and dy (rows, outputs); dx and gradient may be null, and `kept`,
// of so many bytes, which holds what the forward pass leaves for the backward pass.
#define DEFINE_MLP(SUFFIX, P, T)                                                                                  \
  PF_API i64 pf_fused_mlp_kept_bytes_##SUFFIX(i64 rows, MLP_SHAPE_ARGUMENTS) {                                    \
    (void)threads;                                                                                                \
    return (rows + kTileRows - 1) / kTileRows * kTileRows * mlp_kept_columns(MLP_SHAPE) * i64(sizeof(P::Stored)); \
  }                                                                                                               \
  PF_API void pf_fused_mlp_forward_##SUFFIX(const T* x, const T* parameters, T* y, void* kept, i64 rows,          \
                                            MLP_SHAPE_ARGUMENTS) {                                                \
    forward<P>(x, parameters, y, kept, rows, MLP_SHAPE, threads);                                                 \
  }                                                                                                               \
  PF_API void pf_fused_mlp_backward_##SUFFIX(const T* x, const T* parameters, const T* dy, T* dx, T* gradient,    \
                                             void* kept, i64 rows, MLP_SHAPE_ARGUMENTS) {                         \
    backward<P>(x, parameters, dy, dx, gradient, kept, rows, MLP_SHAPE, threads);                                 \
  }
DEFINE_MLP(f32, F32, float)
DEFINE_MLP(f64, F64, double)
DEFINE_MLP(bf16, BF16, float)

// tangents (rows, 3, inputs), value (rows, outputs), jacobian (rows, 3, outputs); dx, dtangents, gradient may be null.
// The output activation is not applied: callers use networks that have none.
#define DEFINE_JACOBIAN(SUFFIX, T)                                                                              \
  PF_API void pf_fused_mlp_jacobian_##SUFFIX(const T* x, const T* tangents, const T* parameters, T* value,      \
                                             T* out_jacobian, i64 rows, MLP_SHAPE_ARGUMENTS) {                  \
    jacobian<T>(x, tangents, parameters, value, out_jacobian, rows, MLP_SHAPE, threads);                        \
  }                                                                                                             \
  PF_API void pf_fused_mlp_jacobian_backward_##SUFFIX(const T* x, const T* tangents, const T* parameters,       \
                                                      const T* dvalue, const T* djacobian, T* dx, T* dtangents, \
                                                      T* gradient, i64 rows, MLP_SHAPE_ARGUMENTS) {             \
    jacobian_backward<T>(x, tangents, parameters, dvalue, djacobian, dx, dtangents, gradient, rows, MLP_SHAPE,  \
                         threads);                                                                              \
  }
DEFINE_JACOBIAN(f32, float)
DEFINE_JACOBIAN(f64, double)
