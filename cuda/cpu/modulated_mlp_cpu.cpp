// A network whose hidden layers are normalised per row and modulated (polyfield/modulated_mlp.h), tile by tile in
// cache: z = W h + b, zhat = (z - mean) / deviation, h = relu(scale zhat + shift). Forward keeps zhat of every layer
// and the inverse deviations of its rows, as the precision stores activations; backward makes h of them again, so that
// it reads half of what keeping both would make it read. What is stored is what is gone on with, kept or not: training
// and inference agree.
#include "api.h"
#include "channels.h"
#include "mlp_rows.h"
#include "polyfield/modulated_mlp.h"

namespace polyfield {
namespace {

// What forward leaves of a tile: (hidden, kTileRows, width) zhat, then (hidden, kTileRows) inverse deviations.
template <class P> struct KeptTile {
  using Stored = typename P::Stored;
  using Scalar = typename P::Scalar;
  Stored* normalised = nullptr;
  Scalar* inverse_deviations = nullptr;
  i64 layer_size = 0;

  static i64 bytes(const MlpShape& shape) {
    return shape.hidden * kTileRows * (shape.width * i64(sizeof(Stored)) + i64(sizeof(Scalar)));
  }
  KeptTile(void* kept, const MlpShape& shape, i64 tile) : layer_size(kTileRows * shape.width) {
    if (!kept) return;
    char* here = static_cast<char*>(kept) + tile * bytes(shape);
    normalised = reinterpret_cast<Stored*>(here);
    inverse_deviations = reinterpret_cast<Scalar*>(here + shape.hidden * layer_size * i64(sizeof(Stored)));
  }
  Stored* layer(i64 l) const { return normalised + l * layer_size; }
  Scalar* deviations(i64 l) const { return inverse_deviations + l * kTileRows; }
};

template <class P> struct Workbench {  // one thread's
  MlpState<P> state;
  Workspace<typename P::Scalar> rows;
  Scratch<typename P::Scalar> sums, deviations;
  Scratch<typename P::Stored> normalised, value;

  void reserve(const MlpShape& shape) {
    state.reserve(shape, kTileRows);
    sums.reserve(kTileRows * shape.width);
    deviations.reserve(kTileRows);
    normalised.reserve(kTileRows * shape.width);
    value.reserve(kTileRows * (shape.width + shape.padded_inputs()));
  }
};

constexpr int kGroup = 4;  // rows side by side: a row alone waits for its own sums

template <class T> struct Group {
  T of[kGroup];
};

template <class T> PF_INLINE Group<T> totals_of(const Vec<T>* sums) {
  Group<T> out;
  PF_UNROLL for (int i = 0; i < kGroup; ++i) out.of[i] = total<T>(sums[i]);
  return out;
}

// h of rows from zhat.
template <class P>
PF_INLINE void modulate_rows(const typename P::Stored* normalised, i64 width, const Moduli<typename P::Scalar>& moduli,
                             i64 row, i64 layer, typename P::Stored* value, i64 ld) {
  for (i64 r = row; r < row + kGroup; ++r) {
    const typename P::Scalar scale = moduli.scale(r, layer), shift = moduli.shift(r, layer);
    for (i64 c = 0; c < width; c += kLanesOf<P>)
      P::store_stored(value + r * ld + c, modulated_value(P::load_stored(normalised + r * width + c), scale, shift));
  }
}

template <class P>
PF_INLINE void normalise_rows(const typename P::Scalar* z, i64 width, typename P::Stored* normalised,
                              typename P::Scalar* inverse_deviations) {
  using T = typename P::Scalar;
  VecOf<P> sums[kGroup]{}, squares[kGroup]{};
  for (i64 c = 0; c < width; c += kLanesOf<P>) {
    PF_UNROLL for (int i = 0; i < kGroup; ++i) sums[i] += load(z + i * width + c);
  }
  Group<T> mean = totals_of<T>(sums);
  PF_UNROLL for (int i = 0; i < kGroup; ++i) mean.of[i] /= T(width);
  for (i64 c = 0; c < width; c += kLanesOf<P>) {
    PF_UNROLL for (int i = 0; i < kGroup; ++i) {
      const VecOf<P> off = load(z + i * width + c) - mean.of[i];
      squares[i] += off * off;
    }
  }
  const Group<T> spread = totals_of<T>(squares);
  PF_UNROLL for (int i = 0; i < kGroup; ++i) {
    const T inverse = inverse_deviations[i] = inverse_deviation(spread.of[i], width);
    for (i64 c = 0; c < width; c += kLanesOf<P>)
      P::store_stored(normalised + i * width + c, (load(z + i * width + c) - mean.of[i]) * inverse);
  }
}

// From the gradient of h to that of z, stored; the rows' gradients of scale and shift on the way.
template <class P>
PF_INLINE void backward_rows(typename P::Scalar* gradient, const typename P::Stored* normalised, i64 width,
                             const ModulatedRow<typename P::Scalar>* rows, typename P::Stored* z_gradient,
                             Group<typename P::Scalar>& d_scale, Group<typename P::Scalar>& d_shift) {
  using T = typename P::Scalar;
  VecOf<P> scales[kGroup]{}, shifts[kGroup]{};
  for (i64 c = 0; c < width; c += kLanesOf<P>) {
    PF_UNROLL for (int i = 0; i < kGroup; ++i) {
      const i64 at = i * width + c;
      const VecOf<P> zhat = P::load_stored(normalised + at);
      const VecOf<P> g = modulated_mask(zhat, rows[i].scale, rows[i].shift, load(gradient + at));
      store<T>(gradient + at, g);
      scales[i] += g * zhat;
      shifts[i] += g;
    }
  }
  d_scale = totals_of<T>(scales), d_shift = totals_of<T>(shifts);
  PF_UNROLL for (int i = 0; i < kGroup; ++i) {
    const ModulatedGradient<T> at(rows[i], d_scale.of[i], d_shift.of[i], width);
    for (i64 c = i * width; c < (i + 1) * width; c += kLanesOf<P>)
      P::store_stored(z_gradient + c, at(load(gradient + c), P::load_stored(normalised + c)));
  }
}

template <class P>
void modulated_forward_tile(const MlpWeights<P>& weights, Workbench<P>& bench, const typename P::Scalar* x,
                            const Moduli<typename P::Scalar>& moduli, typename P::Scalar* y, const KeptTile<P>& kept) {
  const MlpShape& shape = weights.shape();
  const i64 width = shape.width, inputs = shape.padded_inputs();
  i64 first_ld = inputs;
  const typename P::Stored* first = stored_rows<P>(x, first_ld, inputs, bench.state.tile(0));
  const typename P::Stored* input = first;
  i64 ld = first_ld;
  for (i64 l = 0; l < shape.hidden; ++l) {
    multiply<P>(input, ld, kTileRows, weights.forward(l), width, width, weights.steps_of(shape.layer_inputs(l)),
                weights.bias(l), StoreScalar<P>{bench.sums.data, width});
    typename P::Stored* normalised = kept.normalised ? kept.layer(l) : bench.normalised.data;
    typename P::Scalar* deviations = kept.normalised ? kept.deviations(l) : bench.deviations.data;
    typename P::Stored* value = bench.state.tile(1 + (l & 1));
    ld = bench.state.stride(l);
    for (i64 r = 0; r < kTileRows; r += kGroup) {
      normalise_rows<P>(bench.sums.data + r * width, width, normalised + r * width, deviations + r);
      modulate_rows<P>(normalised, width, moduli, r, l, value, ld);
    }
    if (shape.skip && l + 1 == shape.skip) append_rows(first, first_ld, kTileRows, inputs, value, width);
    input = value;
  }
  last_layer(weights, input, ld, y, shape.padded_outputs());
}

// dy: gradient before the output activation. d_moduli: as `moduli`, or null; dx (kTileRows, padded inputs) or null.
template <class P>
void modulated_backward_tile(const MlpWeights<P>& weights, Workbench<P>& bench, const typename P::Scalar* x,
                             const Moduli<typename P::Scalar>& moduli, const typename P::Scalar* dy,
                             typename P::Scalar* dx, typename P::Scalar* d_moduli, typename P::Scalar* gradient,
                             const KeptTile<P>& kept) {
  using T = typename P::Scalar;
  const MlpShape& shape = weights.shape();
  const i64 width = shape.width, inputs = shape.padded_inputs(), hidden = shape.hidden;
  i64 ldd = shape.padded_outputs(), first_ld = inputs;
  const typename P::Stored* d = stored_rows<P>(dy, ldd, ldd, bench.state.tile(2));
  const typename P::Stored* first = stored_rows<P>(x, first_ld, inputs, bench.state.tile(0));
  for (i64 l = hidden; l >= 0; --l) {
    const i64 outputs = shape.layer_outputs(l), steps = weights.steps_of(outputs);
    const i64 columns = l ? bench.state.stride(l - 1) : inputs;
    typename P::Stored* value = bench.value.data;
    if (l && gradient) {
      for (i64 r = 0; r < kTileRows; r += kGroup)
        modulate_rows<P>(kept.layer(l - 1), width, moduli, r, l - 1, value, columns);
      if (l == shape.skip) append_rows(first, first_ld, kTileRows, inputs, value, width);
    }
    if (gradient) {
      T* weight = gradient + shape.padded_offset(l);
      add_weight_gradient<P>(bench.state, d, ldd, outputs, l ? value : first, l ? columns : first_ld, columns,
                             kTileRows, weight);
      if (shape.bias) add_bias_gradient<P>(d, ldd, outputs, kTileRows, weight + MlpShape::padded(outputs) * columns);
    }
    if (l == 0) {
      auto into = [&](auto sink) {
        multiply<P>(d, ldd, kTileRows, weights.backward(0), columns, columns, steps, nullptr, sink);
      };
      if (dx && shape.skip)
        into(StoreTotal<P>{dx, inputs, bench.state.skipped(), inputs});
      else if (dx)
        into(StoreScalar<P>{dx, inputs});
      return;
    }
    const StoreScalar<P> sums{bench.sums.data, width};
    if (l == shape.skip)
      multiply<P>(d, ldd, kTileRows, weights.backward(l), columns, dx ? columns : width, steps, nullptr,
                  StoreSplit<P, StoreScalar<P>>{sums, width, bench.state.skipped(), inputs});
    else
      multiply<P>(d, ldd, kTileRows, weights.backward(l), columns, columns, steps, nullptr, sums);
    typename P::Stored* next = bench.state.tile(1 + ((hidden - l) & 1));
    for (i64 r = 0; r < kTileRows; r += kGroup) {
      ModulatedRow<T> rows[kGroup];
      for (int i = 0; i < kGroup; ++i)
        rows[i] = {T(0), kept.deviations(l - 1)[r + i], moduli.scale(r + i, l - 1), moduli.shift(r + i, l - 1)};
      Group<T> d_scale, d_shift;
      backward_rows<P>(bench.sums.data + r * width, kept.layer(l - 1) + r * width, width, rows, next + r * width,
                       d_scale, d_shift);
      for (i64 i = 0; d_moduli && i < min_of(i64(kGroup), moduli.count - r); ++i) {
        d_moduli[2 * (r + i) * hidden + l - 1] = d_scale.of[i];
        d_moduli[(2 * (r + i) + 1) * hidden + l - 1] = d_shift.of[i];
      }
    }
    d = next;
    ldd = width;
  }
}

template <class P>
void modulated_forward(const typename P::Scalar* x, const typename P::Scalar* parameters,
                       const typename P::Scalar* moduli, typename P::Scalar* y, void* kept, i64 rows,
                       const MlpShape& shape, i64 threads) {
  using T = typename P::Scalar;
  const MlpWeights<P>& weights = packed_weights<P>(shape, parameters);
  parallel_chunks(threads, rows, kChunkTiles * kTileRows, [&](i64 begin, i64 end) {
    thread_local Workbench<P> bench;
    bench.reserve(shape);
    for (i64 r = begin; r < end; r += kTileRows) {
      const i64 count = min_of(kTileRows, end - r);
      const T* tile = tile_of(x + r * shape.inputs, count, shape.inputs, shape.padded_inputs(), bench.rows.x);
      T* out = bench.rows.y.reserve(kTileRows * shape.padded_outputs());
      modulated_forward_tile<P>(weights, bench, tile, {moduli + 2 * r * shape.hidden, count, shape.hidden}, out,
                                {kept, shape, r / kTileRows});
      mlp_output_activation(shape, out, count);
      store_rows(y + r * shape.outputs, shape.outputs, count, shape.outputs, out, shape.padded_outputs());
    }
  });
}

template <class P>
void modulated_backward(const typename P::Scalar* x, const typename P::Scalar* parameters,
                        const typename P::Scalar* moduli, const typename P::Scalar* y, const typename P::Scalar* dy,
                        typename P::Scalar* dx, typename P::Scalar* d_moduli, typename P::Scalar* gradient, void* kept,
                        i64 rows, const MlpShape& shape, i64 threads) {
  using T = typename P::Scalar;
  const MlpWeights<P>& weights = packed_weights<P>(shape, parameters);
  const i64 inputs = shape.inputs, padded = shape.padded_inputs(), outputs = shape.outputs;
  for_tiles_with_gradient((rows + kTileRows - 1) / kTileRows, shape, gradient, threads, [&](i64 tile, T* sum) {
    thread_local Workbench<P> bench;
    bench.reserve(shape);
    const i64 r = tile * kTileRows, count = min_of(kTileRows, rows - r);
    const T* rows_x = tile_of(x + r * inputs, count, inputs, padded, bench.rows.x);
    T* out = bench.rows.y.reserve(kTileRows * shape.padded_outputs());
    T* d = bench.rows.dy.reserve(kTileRows * shape.padded_outputs());
    load_rows(y + r * outputs, outputs, count, outputs, out, shape.padded_outputs());
    load_rows(dy + r * outputs, outputs, count, outputs, d, shape.padded_outputs());
    mlp_output_activation_backward(shape, out, d, count);
    T* rows_dx = dx ? bench.rows.dx.reserve(kTileRows * padded) : nullptr;
    const i64 at = 2 * r * shape.hidden;
    modulated_backward_tile<P>(weights, bench, rows_x, {moduli + at, count, shape.hidden}, d, rows_dx,
                               d_moduli ? d_moduli + at : nullptr, sum, {kept, shape, tile});
    if (dx) store_rows(dx + r * inputs, inputs, count, inputs, rows_dx, padded);
  });
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// x (rows, inputs), parameters (parameter_count), moduli (rows, 2, hidden), y and dy (rows, outputs), y after the
// output activation; dx, d_moduli and gradient may be null, and forward's `kept`, of so many bytes, where no backward
// follows.
#define DEFINE_MODULATED(SUFFIX, P, T)                                                                               \
  PF_API i64 pf_modulated_mlp_kept_bytes_##SUFFIX(i64 rows, MLP_SHAPE_ARGUMENTS) {                                   \
    (void)threads;                                                                                                   \
    return (rows + kTileRows - 1) / kTileRows * KeptTile<P>::bytes(MLP_SHAPE);                                       \
  }                                                                                                                  \
  PF_API void pf_modulated_mlp_forward_##SUFFIX(const T* x, const T* parameters, const T* moduli, T* y, void* kept,  \
                                                i64 rows, MLP_SHAPE_ARGUMENTS) {                                     \
    modulated_forward<P>(x, parameters, moduli, y, kept, rows, MLP_SHAPE, threads);                                  \
  }                                                                                                                  \
  PF_API void pf_modulated_mlp_backward_##SUFFIX(const T* x, const T* parameters, const T* moduli, const T* y,       \
                                                 const T* dy, T* dx, T* d_moduli, T* gradient, void* kept, i64 rows, \
                                                 MLP_SHAPE_ARGUMENTS) {                                              \
    modulated_backward<P>(x, parameters, moduli, y, dy, dx, d_moduli, gradient, kept, rows, MLP_SHAPE, threads);     \
  }
DEFINE_MODULATED(f32, F32, float)
DEFINE_MODULATED(f64, F64, double)
DEFINE_MODULATED(bf16, BF16, float)
