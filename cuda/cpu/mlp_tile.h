// The fused-MLP engine: small fully connected networks over tiles of 48 rows that stay in cache. Who needs a network
// inside a larger fused loop includes this; the operators of mlp_cpu.cpp stand on it too.
//
// Tiles are sample-major (a row is a sample), so that all three products are plain row-major kernels without
// transposes:
//   forward        Y[r][o] = sum_i X[r][i] W[o][i]     weights packed [i][o]
//   input gradient G[r][i] = sum_o D[r][o] W[o][i]     weights packed [o][i]
//   weight gradient  [o][i] += sum_r D[r][o] X[r][i]   summed in registers over a tile's rows
// Both packings are cut into column panels as wide as a register block, each panel contiguous.
//
// Precisions: F32, F64, and BF16 (fp32 master weights; weights, activations and their gradients rounded to bf16; sums
// in fp32), by `vdpbf16ps` where the level has it, elsewhere by rounding and the fp32 kernels, with nearly equal
// results. Padding columns (past `inputs`, `outputs`) of x and dy are read but never matter as long as they are finite.
#pragma once
#include "mlp_products.h"
#include "polyfield/mlp.h"

namespace polyfield {

// ---- Weights and state.

// Packed weights, shared by all threads.
template <class P> class MlpWeights {
 public:
  using Scalar = typename P::Scalar;
  using Operand = typename P::Operand;

  void pack(const MlpShape& shape, const Scalar* parameters) {
    shape_ = shape;
    i64 operands = 0, biases = 0;
    for (i64 l = 0; l < shape.layers(); ++l) {
      const i64 in = shape.layer_inputs(l), out = shape.layer_outputs(l);
      forward_at_[l] = operands;
      backward_at_[l] = operands += steps_of(in) * MlpShape::padded(out);
      operands += (steps_of(out) * MlpShape::padded(in) + 15) / 16 * 16;
      bias_at_[l] = biases;
      biases += MlpShape::padded(out);
    }
    packed_.reserve(operands);
    biases_.reserve(biases);
    for (i64 l = 0; l < shape.layers(); ++l) pack_layer(l, parameters + shape.flat_offset(l));
    if constexpr (kHasFew<P>) pack_few(parameters + shape.flat_offset(shape.hidden));
  }

  const MlpShape& shape() const { return shape_; }
  const Operand* forward(i64 layer) const { return packed_.data + forward_at_[layer]; }
  const Operand* backward(i64 layer) const { return packed_.data + backward_at_[layer]; }
  // The last layer (kFewOutputs, width) row-major, where it is computed by dot products; else null.
  const typename P::Stored* few() const { return few_used_ ? few_.data : nullptr; }
  const Scalar* bias(i64 layer) const { return shape_.bias ? biases_.data + bias_at_[layer] : nullptr; }
  static i64 steps_of(i64 count) { return (count + P::kPack - 1) / P::kPack; }

 private:
  MlpShape shape_{};
  Scratch<Operand> packed_;
  Scratch<Scalar> biases_;
  Scratch<typename P::Stored> few_;
  bool few_used_ = false;
  i64 forward_at_[kMlpMaxHidden + 1], backward_at_[kMlpMaxHidden + 1], bias_at_[kMlpMaxHidden + 1];

  void pack_layer(i64 l, const Scalar* weight) {
    const i64 in = shape_.layer_inputs(l), out = shape_.layer_outputs(l);
    pack_panels(packed_.data + forward_at_[l], weight, 1, in, in, out);
    pack_panels(packed_.data + backward_at_[l], weight, in, 1, out, in);
    const Scalar* bias = weight + in * out;
    for (i64 o = 0; o < MlpShape::padded(out); ++o)
      biases_.data[bias_at_[l] + o] = shape_.bias && o < out ? bias[o] : Scalar(0);
  }

  void pack_few(const Scalar* weight) {
    const i64 width = shape_.width;
    few_used_ = shape_.outputs <= kFewOutputs && width % (kLanesOf<P> * P::kPack) == 0;
    if (!few_used_) return;
    few_.reserve(kFewOutputs * width + kLanesOf<P>);
    for (i64 k = 0; k < kFewOutputs * width; k += kLanesOf<P>) {
      VecOf<P> row{};
      if (k / width < shape_.outputs) row = load(weight + k);
      P::store_stored(few_.data + k, row);
    }
  }

  // Panels of M[k][c] = from[k * k_stride + c * c_stride], zero past `count` (k) and `columns` (c).
  static void pack_panels(Operand* to, const Scalar* from, i64 k_stride, i64 c_stride, i64 count, i64 columns) {
    const i64 padded = MlpShape::padded(columns), steps = steps_of(count);
    auto at = [&](i64 k, i64 c) { return k < count && c < columns ? from[k * k_stride + c * c_stride] : Scalar(0); };
    for (i64 panel = 0; panel < padded; panel += kPanelColumns<P>) {
      const i64 end = min_of(panel + kPanelColumns<P>, padded);
      for (i64 step = 0; step < steps; ++step)
        for (i64 c = panel; c < end; ++c) {
          if constexpr (P::kPack == 1)
            *to++ = P::make_operand(at(step, c));
          else
            *to++ = u32(P::nearest(at(2 * step, c))) | u32(P::nearest(at(2 * step + 1, c))) << 16;
        }
    }
  }
};

// How many activations, and slopes where the activation needs them, are kept of one row.
inline i64 mlp_kept_columns(const MlpShape& shape) {
  const i64 slopes = keeps_slope(shape.hidden_activation) ? shape.hidden * shape.width : 0;
  return shape.hidden * shape.width + (shape.skip ? shape.padded_inputs() : 0) + slopes;
}

// One thread's kept activations for a group of up to `rows` rows, and the temporaries of one tile. What enters the
// layer with a skip connection is kept as one row [activations | inputs], so that it is a layer like all others.
template <class P> class MlpState {
 public:
  using Stored = typename P::Stored;

  // Activations are kept here, or in the caller's `kept`, mlp_kept_columns x rows; rows is then a multiple of
  // kTileRows.
  void reserve(const MlpShape& shape, i64 rows, Stored* kept = nullptr) {
    const i64 inputs = shape.padded_inputs();
    const i64 widest = max_of(shape.width + (shape.skip ? inputs : 0), max_of(inputs, shape.padded_outputs()));
    rows_ = max_of(rows, kTileRows);
    width_ = shape.width;
    hidden_ = shape.hidden;
    skip_ = shape.skip;
    extra_ = skip_ ? inputs : 0;
    at_ = kept ? kept : kept_.reserve(rows_ * mlp_kept_columns(shape));
    tiles_.reserve(3 * kTileRows * widest);
    if (P::kPack > 1) operands_.reserve(2 * kTileRows / P::kPack * widest);
    if (skip_) skipped_.reserve(kTileRows * inputs);
    tile_ = kTileRows * widest;
  }
  // Activations of a hidden layer, their row stride, and their slopes (row stride: width).
  Stored* value(i64 layer, i64 row) {
    return at_ + rows_ * (layer * width_ + (layer >= skip_ ? extra_ : 0)) + row * stride(layer);
  }
  i64 stride(i64 layer) const { return layer + 1 == skip_ ? width_ + extra_ : width_; }
  Stored* slope(i64 layer, i64 row) { return at_ + rows_ * ((hidden_ + layer) * width_ + extra_) + row * width_; }
  Stored* tile(i64 k) { return tiles_.data + k * tile_; }  // 0: rounded inputs; 1, 2: activations, or gradients
  typename P::Operand* operands(i64 k) { return operands_.data + k * (tile_ / P::kPack); }
  typename P::Scalar* skipped() {
    return skipped_.data;
  }  // (kTileRows, padded inputs): gradient by the skip connection

 private:
  i64 rows_ = 0, width_ = 0, hidden_ = 0, skip_ = 0, extra_ = 0, tile_ = 0;
  Stored* at_ = nullptr;
  Scratch<Stored> kept_, tiles_;
  Scratch<typename P::Operand> operands_;
  Scratch<typename P::Scalar> skipped_;
};

// Optional row strides in scalars (0: the padded size; y's also holds for dy), and how many leading input columns get a
// gradient (-1: all; rounded up to 16; columns past that are not written).
struct MlpRows {
  i64 x_stride = 0, y_stride = 0, dx_stride = 0, dx_columns = -1;
};

// Calls body(std::integral_constant-like tag) with the activation as a compile-time constant.
template <int Activation> struct ActivationTag {
  static constexpr int value = Activation;
};
template <class Body> PF_INLINE void with_activation(i64 activation, const Body& body) {
  if (activation == kHiddenRelu)
    body(ActivationTag<kHiddenRelu>{});
  else if (activation == kHiddenSoftplus)
    body(ActivationTag<kHiddenSoftplus>{});
  else if (activation == kHiddenSine)
    body(ActivationTag<kHiddenSine>{});
  else
    body(ActivationTag<kHiddenNone>{});
}

// ---- One tile.

// The caller's rows as stored activations: themselves, or rounded into `tile`.
template <class P>
const typename P::Stored* stored_rows(const typename P::Scalar* rows, i64& ld, i64 columns, typename P::Stored* tile) {
  if constexpr (P::kConverts) {
    convert_rows<P>(rows, ld, kTileRows, columns, tile);
    ld = columns;
    return tile;
  } else {
    (void)columns, (void)tile;
    return rows;
  }
}

// `rows` of `columns` behind `width` activations in `to`: what the layer with the skip connection is given.
template <class T> void append_rows(const T* from, i64 ldf, i64 rows, i64 columns, T* to, i64 width) {
  for (i64 r = 0; r < rows; ++r) std::memcpy(to + r * (width + columns) + width, from + r * ldf, columns * sizeof(T));
}

// The last layer, from the last hidden layer's activations.
template <class P>
void last_layer(const MlpWeights<P>& weights, const typename P::Stored* input, i64 ld, typename P::Scalar* y,
                i64 y_stride) {
  const MlpShape& shape = weights.shape();
  const i64 columns = shape.padded_outputs(), last = shape.hidden;
  if constexpr (kHasFew<P>) {
    if (weights.few()) {
      const i64 vectors = shape.width / (kLanes<float> * P::kPack);
      multiply_few<P>(input, ld, kTileRows, weights.few(), shape.width, vectors, weights.bias(last), y, y_stride);
      return;
    }
  }
  multiply<P>(input, ld, kTileRows, weights.forward(last), columns, columns, weights.steps_of(shape.width),
              weights.bias(last), StoreScalar<P>{y, y_stride});
}

template <class P, bool Keep>
void forward_tile(const MlpWeights<P>& weights, MlpState<P>& state, const typename P::Scalar* x, typename P::Scalar* y,
                  i64 row, i64 x_stride, i64 y_stride) {
  const MlpShape& shape = weights.shape();
  const bool slopes = Keep && keeps_slope(shape.hidden_activation);
  const i64 inputs = shape.padded_inputs();
  i64 first_ld = x_stride;
  const typename P::Stored* first = stored_rows<P>(x, first_ld, inputs, state.tile(0));
  const typename P::Stored* input = first;
  i64 ld = first_ld;
  for (i64 l = 0; l < shape.hidden; ++l) {
    typename P::Stored* value = Keep ? state.value(l, row) : state.tile(1 + (l & 1));
    typename P::Stored* slope = slopes ? state.slope(l, row) : nullptr;
    const i64 stride = state.stride(l);
    with_activation(shape.hidden_activation, [&](auto tag) {
      multiply<P>(input, ld, kTileRows, weights.forward(l), shape.width, shape.width,
                  weights.steps_of(shape.layer_inputs(l)), weights.bias(l),
                  StoreActivated<P, decltype(tag)::value>{value, slope, stride, shape.width});
    });
    if (shape.skip && l + 1 == shape.skip) append_rows(first, first_ld, kTileRows, inputs, value, shape.width);
    input = value;
    ld = stride;
  }
  last_layer(weights, input, ld, y, y_stride);
}

// Adds the gradient of one layer's weight: d is the gradient of its `outputs` sums, x (rows, columns) its input.
template <class P>
void add_weight_gradient(MlpState<P>& state, const typename P::Stored* d, i64 ldd, i64 outputs,
                         const typename P::Stored* x, i64 ldx, i64 columns, i64 rows, typename P::Scalar* gradient) {
  i64 operand_ldd, operand_ldx;
  const auto* left = operand_rows<P>(d, ldd, rows, MlpShape::padded(outputs), state.operands(0), operand_ldd);
  const auto* right = operand_rows<P>(x, ldx, rows, columns, state.operands(1), operand_ldx);
  outer<P>(left, operand_ldd, right, operand_ldx, rows / P::kPack, outputs, columns, gradient);
}

template <class P>
void add_bias_gradient(const typename P::Stored* d, i64 ldd, i64 outputs, i64 rows, typename P::Scalar* gradient) {
  for (i64 c = 0; c < MlpShape::padded(outputs); c += kLanesOf<P>) {
    VecOf<P> sum{};
    for (i64 r = 0; r < rows; ++r) sum += P::load_stored(d + r * ldd + c);
    store<typename P::Scalar>(gradient + c, load(gradient + c) + sum);
  }
}

template <class P>
void backward_tile(const MlpWeights<P>& weights, MlpState<P>& state, const typename P::Scalar* x,
                   const typename P::Scalar* dy, typename P::Scalar* dx, typename P::Scalar* gradient, i64 row,
                   const MlpRows& strides, i64 dx_columns) {
  const MlpShape& shape = weights.shape();
  const i64 inputs = shape.padded_inputs(), width = shape.width;
  i64 ldd = strides.y_stride, ldx = strides.x_stride;
  const typename P::Stored* d = stored_rows<P>(dy, ldd, shape.padded_outputs(), state.tile(2));
  const typename P::Stored* first = stored_rows<P>(x, ldx, inputs, state.tile(0));
  for (i64 l = shape.hidden; l >= 0; --l) {
    const i64 outputs = shape.layer_outputs(l), steps = weights.steps_of(outputs);
    const i64 columns = l ? state.stride(l - 1) : inputs;
    if (gradient) {
      typename P::Scalar* weight = gradient + shape.padded_offset(l);
      add_weight_gradient<P>(state, d, ldd, outputs, l ? state.value(l - 1, row) : first, l ? columns : ldx, columns,
                             kTileRows, weight);
      if (shape.bias) add_bias_gradient<P>(d, ldd, outputs, kTileRows, weight + MlpShape::padded(outputs) * columns);
    }
    if (l == 0) {
      auto into = [&](auto sink) {
        multiply<P>(d, ldd, kTileRows, weights.backward(0), columns, dx_columns, steps, nullptr, sink);
      };
      if (dx && shape.skip)
        into(StoreTotal<P>{dx, strides.dx_stride, state.skipped(), inputs});
      else if (dx)
        into(StoreScalar<P>{dx, strides.dx_stride});
      return;
    }
    typename P::Stored* next = state.tile(1 + ((shape.hidden - l) & 1));
    auto into = [&](auto sink) {
      const i64 wanted = dx ? columns : width;
      if (shape.skip == l)
        multiply<P>(d, ldd, kTileRows, weights.backward(l), columns, wanted, steps, nullptr,
                    StoreSplit<P, decltype(sink)>{sink, width, state.skipped(), inputs});
      else
        multiply<P>(d, ldd, kTileRows, weights.backward(l), columns, columns, steps, nullptr, sink);
    };
    if (keeps_slope(shape.hidden_activation))
      into(StoreGradient<P, kHiddenSoftplus>{next, state.slope(l - 1, row), width, width});
    else if (shape.hidden_activation == kHiddenRelu)
      into(StoreGradient<P, kHiddenRelu>{next, state.value(l - 1, row), width, columns});
    else
      into(StoreGradient<P, kHiddenNone>{next, nullptr, width, width});
    d = next;
    ldd = width;
  }
}

// ---- The interface.

inline MlpRows filled(MlpRows strides, const MlpShape& shape) {
  if (!strides.x_stride) strides.x_stride = shape.padded_inputs();
  if (!strides.y_stride) strides.y_stride = shape.padded_outputs();
  if (!strides.dx_stride) strides.dx_stride = shape.padded_inputs();
  strides.dx_columns = strides.dx_columns < 0 ? shape.padded_inputs()
                                              : min_of(MlpShape::padded(strides.dx_columns), shape.padded_inputs());
  return strides;
}

// x (rows, padded_inputs) -> y (rows, padded_outputs) before the output activation. Vectors load fastest from 64-byte
// aligned rows. first_row and rows: multiples of kTileRows. The state keeps the activations of rows
// [first_row, first_row + rows) for mlp_backward.
template <class P>
void mlp_forward(const MlpWeights<P>& weights, MlpState<P>& state, const typename P::Scalar* x, typename P::Scalar* y,
                 i64 first_row, i64 rows, const MlpRows& strides = {}) {
  const MlpRows s = filled(strides, weights.shape());
  for (i64 r = 0; r < rows; r += kTileRows)
    forward_tile<P, true>(weights, state, x + r * s.x_stride, y + r * s.y_stride, first_row + r, s.x_stride,
                          s.y_stride);
}

// y as mlp_forward gives it, from the activations that it left in the state.
template <class P>
void mlp_last_layer(const MlpWeights<P>& weights, MlpState<P>& state, typename P::Scalar* y, i64 first_row, i64 rows,
                    const MlpRows& strides = {}) {
  const MlpRows s = filled(strides, weights.shape());
  const i64 last = weights.shape().hidden - 1;
  for (i64 r = 0; r < rows; r += kTileRows)
    last_layer(weights, state.value(last, first_row + r), state.stride(last), y + r * s.y_stride, s.y_stride);
}

// The same where no backward follows: one tile of state serves all rows (reserve(shape, kTileRows)).
template <class P>
void mlp_infer(const MlpWeights<P>& weights, MlpState<P>& state, const typename P::Scalar* x, typename P::Scalar* y,
               i64 rows, const MlpRows& strides = {}) {
  const MlpRows s = filled(strides, weights.shape());
  for (i64 r = 0; r < rows; r += kTileRows)
    forward_tile<P, false>(weights, state, x + r * s.x_stride, y + r * s.y_stride, 0, s.x_stride, s.y_stride);
}

// After mlp_forward on the same rows and x. dy (rows, padded_outputs): gradient with respect to y before the output
// activation. dx: (rows, padded_inputs) or null. gradient: mlp_gradient_size scalars in the padded layout, added to, or
// null.
template <class P>
void mlp_backward(const MlpWeights<P>& weights, MlpState<P>& state, const typename P::Scalar* x,
                  const typename P::Scalar* dy, typename P::Scalar* dx, typename P::Scalar* gradient, i64 first_row,
                  i64 rows, const MlpRows& strides = {}) {
  const MlpRows s = filled(strides, weights.shape());
  for (i64 r = 0; r < rows; r += kTileRows)
    backward_tile<P>(weights, state, x + r * s.x_stride, dy + r * s.y_stride, dx ? dx + r * s.dx_stride : nullptr,
                     gradient, first_row + r, s, s.dx_columns);
}

inline i64 mlp_gradient_size(const MlpShape& shape) { return shape.padded_offset(shape.layers()); }

// flat[parameter_count] += padded[mlp_gradient_size], without the padding.
template <class T> void mlp_add_gradient(const MlpShape& shape, const T* padded, T* flat) {
  for (i64 l = 0; l < shape.layers(); ++l) {
    const i64 in = shape.layer_inputs(l), out = shape.layer_outputs(l), ld = MlpShape::padded(in);
    const T* from = padded + shape.padded_offset(l);
    for (i64 o = 0; o < out; ++o, flat += in)
      for (i64 i = 0; i < in; ++i) flat[i] += from[o * ld + i];
    if (!shape.bias) continue;
    from += MlpShape::padded(out) * ld;
    for (i64 o = 0; o < out; ++o) *flat++ += from[o];
  }
}

// The output activation in place over the `outputs` columns of y (rows, stride; 0: padded_outputs).
template <class T> void mlp_output_activation(const MlpShape& shape, T* y, i64 rows, i64 stride = 0) {
  if (shape.output_activation == kOutputNone) return;
  if (!stride) stride = shape.padded_outputs();
  const i64 outputs = shape.outputs, batch = outputs < 64 ? 64 / outputs : 1;
  T dense[64];
  for (i64 r = 0; r < rows; r += batch) {  // few outputs: several rows make full vectors
    const i64 here = min_of(batch, rows - r);
    if (outputs >= 64) {
      output_activation_all(shape.output_activation, y + r * stride, outputs);
      continue;
    }
    for (i64 k = 0; k < here; ++k)
      for (i64 o = 0; o < outputs; ++o) dense[k * outputs + o] = y[(r + k) * stride + o];
    output_activation_all(shape.output_activation, dense, here * outputs);
    for (i64 k = 0; k < here; ++k)
      for (i64 o = 0; o < outputs; ++o) y[(r + k) * stride + o] = dense[k * outputs + o];
  }
}

// dy with respect to the activated output becomes dy with respect to y before it, in place.
template <class T>
void mlp_output_activation_backward(const MlpShape& shape, const T* activated, T* dy, i64 rows, i64 stride = 0) {
  if (shape.output_activation == kOutputNone) return;
  if (!stride) stride = shape.padded_outputs();
  for (i64 r = 0; r < rows; ++r)
    for (i64 o = 0; o < shape.outputs; ++o)
      dy[r * stride + o] *= output_slope(shape.output_activation, activated[r * stride + o]);
}

}  // namespace polyfield
