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
#include <type_traits>

#include "mlp_math.h"
#include "parallel.h"
#include "polyfield/mlp.h"

namespace polyfield {

#if defined(__clang__)
#define PF_UNROLL _Pragma("clang loop unroll(full)")
#define PF_UNROLL_K _Pragma("clang loop unroll_count(2)")
#else
#define PF_UNROLL _Pragma("GCC unroll 24")
#define PF_UNROLL_K _Pragma("GCC unroll 2")
#endif
#define PF_NOINLINE __attribute__((noinline))

constexpr i64 kTileRows = 48;  // divisible by every row block below; 48 x 64 floats are 12 KiB of a 32 KiB L1

// Register block: 4 vectors x 6 rows fill the 32 registers of AVX-512, 2 x 6 the 16 of AVX and SSE.
#if defined(__AVX512F__)
constexpr int kPanelVectors = 4;
template <int Vectors> constexpr int kRowBlock = Vectors == 4 ? 6 : Vectors == 3 ? 8 : Vectors == 2 ? 12 : 16;
template <int Vectors> constexpr int kGradientBlock = Vectors == 4 ? 4 : Vectors == 1 ? 16 : 8;
#else
constexpr int kPanelVectors = 2;
template <int Vectors> constexpr int kRowBlock = 6;
template <int Vectors> constexpr int kGradientBlock = 6;
#endif

// ---- Precisions. Scalar: what callers see and sums are kept in. Stored: an activation in memory. Operand: what one
// step of a product consumes per column; kPack consecutive activations make one.

template <class T, bool Rounded> struct PlainPrecision {
  using Scalar = T;
  using Stored = T;
  using Operand = T;
  using Wide = Vec<T>;  // a vector of operands
  static constexpr int kPack = 1;
  static constexpr bool kConverts = Rounded;  // callers' rows must be rounded before use
  static PF_INLINE Wide load_wide(const Operand* p) { return load(p); }
  static PF_INLINE Wide spread(const Stored* row, i64 step) { return broadcast(row[step]); }
  static PF_INLINE Wide spread_operand(const Operand* p) { return broadcast(*p); }
  static PF_INLINE Vec<T> multiply_add(Vec<T> sum, Wide a, Wide b) { return sum + a * b; }
  static PF_INLINE Vec<T> load_stored(const Stored* p) { return load(p); }
  static PF_INLINE void store_stored(Stored* p, Vec<T> v) { store<T>(p, round(v)); }
  static PF_INLINE Vec<T> round(Vec<T> v) {
    if constexpr (Rounded) {  // to bf16, to nearest even; NaN stays NaN
      const auto bits = bits_of<T>(v);
      const auto nearest = bits_as<T>((bits + 0x7fff + ((bits >> 16) & 1)) & ~0xffff);
      v = v == v ? nearest : v;
    }
    return v;
  }
  static T make_operand(T first) { return round(broadcast(first))[0]; }
};
struct F32 : PlainPrecision<float, false> {};
struct F64 : PlainPrecision<double, false> {};

#if defined(__AVX512BF16__)
struct BF16 {
  using Scalar = float;
  using Stored = u16;
  using Operand = u32;  // two bf16: the even step in the low half
  using Wide = __m512i;
  static constexpr int kPack = 2;
  static constexpr bool kConverts = true;
  static PF_INLINE Wide load_wide(const Operand* p) { return _mm512_loadu_si512(p); }
  static PF_INLINE Wide spread(const Stored* row, i64 step) {
    i32 pair;
    std::memcpy(&pair, row + 2 * step, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static PF_INLINE Wide spread_operand(const Operand* p) { return _mm512_set1_epi32(i32(*p)); }
  static PF_INLINE Vec<float> multiply_add(Vec<float> sum, Wide a, Wide b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static PF_INLINE Vec<float> load_stored(const Stored* p) {
    typedef u16 Half __attribute__((vector_size(32)));  // (the widening intrinsic trips -Wmaybe-uninitialized)
    Half half;
    std::memcpy(&half, p, sizeof half);
    return bits_as<float>(__builtin_convertvector(half, VecType<float>::mask) << 16);
  }
  static PF_INLINE void store_stored(Stored* p, Vec<float> v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
  }
  // 16 pairs (even[c], odd[c]).
  static PF_INLINE void interleave(const Stored* even, const Stored* odd, Operand* to) {
    typedef u16 Halves __attribute__((vector_size(64)));
    const Halves order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    Halves both;
    std::memcpy(&both, even, 32);
    std::memcpy(reinterpret_cast<char*>(&both) + 32, odd, 32);
    both = (Halves)_mm512_permutexvar_epi16((__m512i)order, (__m512i)both);
    std::memcpy(to, &both, sizeof both);
  }
  static u16 nearest(float value) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    return value == value ? u16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : u16(0x7fc0);
  }
};
#else
struct BF16 : PlainPrecision<float, true> {};
#endif

template <class P> using VecOf = Vec<typename P::Scalar>;
template <class P> constexpr i64 kLanesOf = kLanes<typename P::Scalar>;
template <class P> constexpr i64 kPanelColumns = kPanelVectors * kLanesOf<P>;

// ---- Kernels.

// A long epilogue runs out of line over a copy of the sums: inlined, its constants would take the loop's registers.
template <class P, int Vectors, class Sink>
PF_NOINLINE void finish_block(const VecOf<P>* staged, i64 row, i64 column, const Sink& sink) {
  for (i64 i = 0; i < kRowBlock<Vectors>; ++i)
    for (i64 v = 0; v < Vectors; ++v) sink(row + i, column + v * kLanesOf<P>, staged[i * Vectors + v]);
}

// sink(row, column, sum) for `rows` x `Vectors` sums of X (row stride ldx) times one panel of weights (row stride ldw).
template <class P, int Vectors, class Sink>
PF_NOINLINE void multiply_panel(const typename P::Stored* x, i64 ldx, i64 rows, const typename P::Operand* w, i64 ldw,
                                i64 steps, const typename P::Scalar* initial, i64 column, const Sink& sink) {
  constexpr int kRows = kRowBlock<Vectors>;
  constexpr i64 kLane = kLanesOf<P>;
  for (i64 row = 0; row < rows; row += kRows, x += kRows * ldx) {
    VecOf<P> sum[kRows][Vectors];
    PF_UNROLL for (int v = 0; v < Vectors; ++v) {
      const VecOf<P> start = initial ? load(initial + v * kLane) : VecOf<P>{};
      PF_UNROLL for (int i = 0; i < kRows; ++i) sum[i][v] = start;
    }
    const typename P::Operand* wk = w;
    PF_UNROLL_K for (i64 k = 0; k < steps; ++k, wk += ldw) {
      typename P::Wide b[Vectors];
      PF_UNROLL for (int v = 0; v < Vectors; ++v) b[v] = P::load_wide(wk + v * kLane);
      PF_UNROLL for (int i = 0; i < kRows; ++i) {
        const typename P::Wide a = P::spread(x + i * ldx, k);
        PF_UNROLL for (int v = 0; v < Vectors; ++v) sum[i][v] = P::multiply_add(sum[i][v], a, b[v]);
      }
    }
    if constexpr (Sink::kHeavy) {
      VecOf<P> staged[kRows * Vectors];
      PF_UNROLL for (int i = 0; i < kRows; ++i) {
        PF_UNROLL for (int v = 0; v < Vectors; ++v) staged[i * Vectors + v] = sum[i][v];
      }
      finish_block<P, Vectors>(staged, row, column, sink);
    } else {
      PF_UNROLL for (int i = 0; i < kRows; ++i) {
        PF_UNROLL for (int v = 0; v < Vectors; ++v) sink(row + i, column + v * kLane, sum[i][v]);
      }
    }
  }
}

// The first `wanted` of `columns` columns of X times packed weights; both multiples of 16.
template <class P, class Sink>
void multiply(const typename P::Stored* x, i64 ldx, i64 rows, const typename P::Operand* w, i64 columns, i64 wanted,
              i64 steps, const typename P::Scalar* initial, const Sink& sink) {
  for (i64 c = 0; c < wanted; c += kPanelColumns<P>) {
    const i64 ldw = min_of(kPanelColumns<P>, columns - c);
    const i64 vectors = min_of(ldw, wanted - c) / kLanesOf<P>;
    const typename P::Scalar* start = initial ? initial + c : nullptr;
    const typename P::Operand* panel = w + c * steps;
    if constexpr (kPanelVectors == 4) {
      if (vectors == 4) multiply_panel<P, 4>(x, ldx, rows, panel, ldw, steps, start, c, sink);
      if (vectors == 3) multiply_panel<P, 3>(x, ldx, rows, panel, ldw, steps, start, c, sink);
      if (vectors == 1) multiply_panel<P, 1>(x, ldx, rows, panel, ldw, steps, start, c, sink);
    }
    if (vectors == 2) multiply_panel<P, 2>(x, ldx, rows, panel, ldw, steps, start, c, sink);
  }
}

// gradient[o][c] += sum over `steps` of d[step][o] x[step][c], for `Outputs` rows o and `Vectors` vectors of columns c.
// Summed from zero and added at the end: shorter chains of roundings than adding onto a long sum.
template <class P, int Vectors, int Outputs>
PF_NOINLINE void outer_block(const typename P::Operand* d, i64 ldd, const typename P::Operand* x, i64 ldx, i64 steps,
                             typename P::Scalar* gradient, i64 ldg) {
  constexpr i64 kLane = kLanesOf<P>;
  VecOf<P> sum[Outputs][Vectors];
  PF_UNROLL for (int o = 0; o < Outputs; ++o) { PF_UNROLL for (int v = 0; v < Vectors; ++v) sum[o][v] = VecOf<P>{}; }
  PF_UNROLL_K for (i64 k = 0; k < steps; ++k, d += ldd, x += ldx) {
    typename P::Wide b[Vectors];
    PF_UNROLL for (int v = 0; v < Vectors; ++v) b[v] = P::load_wide(x + v * kLane);
    PF_UNROLL for (int o = 0; o < Outputs; ++o) {
      const typename P::Wide a = P::spread_operand(d + o);
      PF_UNROLL for (int v = 0; v < Vectors; ++v) sum[o][v] = P::multiply_add(sum[o][v], a, b[v]);
    }
  }
  PF_UNROLL for (int o = 0; o < Outputs; ++o) {
    PF_UNROLL for (int v = 0; v < Vectors; ++v) {
      auto* target = gradient + o * ldg + v * kLane;
      store<typename P::Scalar>(target, load(target) + sum[o][v]);
    }
  }
}

// All columns of a panel, `outputs` rounded up to 2 (rows of the padding collect rubbish that nobody reads).
template <class P, int Vectors>
void outer_panel(const typename P::Operand* d, i64 ldd, const typename P::Operand* x, i64 ldx, i64 steps, i64 outputs,
                 typename P::Scalar* gradient, i64 ldg) {
  constexpr int kBlock = kGradientBlock<Vectors>;
  i64 o = 0;
  for (; o + kBlock <= outputs; o += kBlock)
    outer_block<P, Vectors, kBlock>(d + o, ldd, x, ldx, steps, gradient + o * ldg, ldg);
  for (; o + 2 < outputs; o += 4) outer_block<P, Vectors, 4>(d + o, ldd, x, ldx, steps, gradient + o * ldg, ldg);
  if (o < outputs) outer_block<P, Vectors, 2>(d + o, ldd, x, ldx, steps, gradient + o * ldg, ldg);
}

template <class P>
void outer(const typename P::Operand* d, i64 ldd, const typename P::Operand* x, i64 ldx, i64 steps, i64 outputs,
           i64 columns, typename P::Scalar* gradient) {
  for (i64 c = 0; c < columns; c += kPanelColumns<P>) {
    const i64 vectors = min_of(kPanelColumns<P>, columns - c) / kLanesOf<P>;
    if constexpr (kPanelVectors == 4) {
      if (vectors == 4) outer_panel<P, 4>(d, ldd, x + c, ldx, steps, outputs, gradient + c, columns);
      if (vectors == 3) outer_panel<P, 3>(d, ldd, x + c, ldx, steps, outputs, gradient + c, columns);
      if (vectors == 1) outer_panel<P, 1>(d, ldd, x + c, ldx, steps, outputs, gradient + c, columns);
    }
    if (vectors == 2) outer_panel<P, 2>(d, ldd, x + c, ldx, steps, outputs, gradient + c, columns);
  }
}

// Rows of the caller's scalars to rows of stored activations.
template <class P>
void convert_rows(const typename P::Scalar* from, i64 ldf, i64 rows, i64 columns, typename P::Stored* to) {
  for (i64 r = 0; r < rows; ++r)
    for (i64 c = 0; c < columns; c += kLanesOf<P>) P::store_stored(to + r * columns + c, load(from + r * ldf + c));
}

// Stored rows as operands of `outer`: themselves, or for packed precisions two rows interleaved into `scratch`.
template <class P>
const typename P::Operand* operand_rows(const typename P::Stored* from, i64 ld, i64 rows, i64 columns,
                                        typename P::Operand* scratch, i64& operand_ld) {
  if constexpr (P::kPack == 1) {
    (void)rows, (void)columns, (void)scratch;
    operand_ld = ld;
    return from;
  } else {
    operand_ld = columns;
    for (i64 r = 0; r < rows; r += 2)
      for (i64 c = 0; c < columns; c += 16) {
        P::interleave(from + r * ld + c, from + (r + 1) * ld + c, scratch + r / 2 * columns + c);
      }
    return scratch;
  }
}

// ---- What happens to a sum on its way to memory.

template <class P> struct StoreScalar {
  static constexpr bool kHeavy = false;
  typename P::Scalar* to;
  i64 ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    store<typename P::Scalar>(to + row * ld + column, sum);
  }
};

// Forward: value and, where backward needs it and `slope` is given, slope of the activation.
template <class P, int Activation> struct StoreActivated {
  static constexpr bool kHeavy = Activation == kHiddenSoftplus || Activation == kHiddenSine;
  typename P::Stored *value, *slope;
  i64 ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    VecOf<P> f, d;
    activate<Activation>(sum, f, d);
    P::store_stored(value + row * ld + column, f);
    if (kHeavy && slope) P::store_stored(slope + row * ld + column, d);
  }
};

// Backward: the gradient times the activation's slope, told by `kept` (ReLU: the value; others: the slope).
template <class P, int Activation> struct StoreGradient {
  static constexpr bool kHeavy = false;
  typename P::Stored* to;
  const typename P::Stored* kept;
  i64 ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    if constexpr (Activation == kHiddenRelu) sum = P::load_stored(kept + row * ld + column) <= 0 ? VecOf<P>{} : sum;
    if constexpr (Activation == kHiddenSoftplus) sum = sum * P::load_stored(kept + row * ld + column);
    P::store_stored(to + row * ld + column, sum);
  }
};

// ---- A last layer of few outputs. As columns of a panel they would be padded fourfold; as dot products along the rows
// they cost a third of that, sums across lanes included.

constexpr i64 kFewOutputs = 4;

#if defined(__AVX512F__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own _mm512_undefined_ps

// sums[4 r + o] of four rows and four outputs -> lane 4 r + o: the total of each.
PF_INLINE __m512 totals(const __m512* sums) {
  __m512 rows[4];
  PF_UNROLL for (int r = 0; r < 4; ++r) {
    const __m512* s = sums + 4 * r;
    const __m512 left = _mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
    const __m512 right = _mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
    const __m512d a = _mm512_castps_pd(left), b = _mm512_castps_pd(right);
    rows[r] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto halves = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  const __m512 first = halves(rows[0], rows[1]), second = halves(rows[2], rows[3]);
  return _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xdd));
}

// y[r][0..3] = x[r] . w[0..3] + bias, and zeros up to column 16. `vectors` of operands make a row of x and of w.
template <class P>
PF_NOINLINE void multiply_few(const typename P::Stored* x, i64 ldx, i64 rows, const typename P::Stored* w, i64 ldw,
                              i64 vectors, const float* bias, float* y, i64 ldy) {
  constexpr i64 kStep = kLanes<float> * P::kPack;  // scalars in a vector of operands
  const auto wide = [](const typename P::Stored* p) {
    return P::load_wide(reinterpret_cast<const typename P::Operand*>(p));
  };
  float start[kLanes<float>] = {};
  for (int k = 0; bias && k < kLanes<float>; ++k) start[k] = bias[k % kFewOutputs];
  const Vec<float> initial = load(start);
  for (i64 row = 0; row < rows; row += 4, x += 4 * ldx, y += 4 * ldy) {
    Vec<float> sums[16];
    PF_UNROLL for (int k = 0; k < 16; ++k) sums[k] = Vec<float>{};
    for (i64 v = 0; v < vectors; ++v) {
      typename P::Wide b[4];
      PF_UNROLL for (int o = 0; o < 4; ++o) b[o] = wide(w + o * ldw + v * kStep);
      PF_UNROLL for (int r = 0; r < 4; ++r) {
        const typename P::Wide a = wide(x + r * ldx + v * kStep);
        PF_UNROLL for (int o = 0; o < 4; ++o) sums[4 * r + o] = P::multiply_add(sums[4 * r + o], a, b[o]);
      }
    }
    alignas(64) float out[16];
    store<float>(out, totals(sums) + initial);
    PF_UNROLL for (int r = 0; r < 4; ++r) {
      Vec<float> padded{};
      std::memcpy(&padded, out + 4 * r, 16);
      store<float>(y + r * ldy, padded);
    }
  }
}
#pragma GCC diagnostic pop
template <class P> constexpr bool kHasFew = std::is_same_v<typename P::Scalar, float>;
#else
template <class P> constexpr bool kHasFew = false;
template <class P>
void multiply_few(const typename P::Stored*, i64, i64, const typename P::Stored*, i64, i64, const typename P::Scalar*,
                  typename P::Scalar*, i64) {}
#endif

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

// One thread's kept activations for a group of up to `rows` rows, and the temporaries of one tile.
template <class P> class MlpState {
 public:
  using Stored = typename P::Stored;

  void reserve(const MlpShape& shape, i64 rows) {
    const i64 widest = max_of(shape.width, max_of(shape.padded_inputs(), shape.padded_outputs()));
    rows_ = max_of(rows, kTileRows);
    width_ = shape.width;
    layers_ = max_of(shape.hidden, i64(2));
    kept_.reserve(layers_ * rows_ * width_ * (keeps_slope(shape.hidden_activation) ? 2 : 1));
    tiles_.reserve(3 * kTileRows * widest);
    if (P::kPack > 1) operands_.reserve(2 * kTileRows / P::kPack * widest);
    tile_ = kTileRows * widest;
  }
  Stored* value(i64 layer, i64 row) { return kept_.data + (layer * rows_ + row) * width_; }
  Stored* slope(i64 layer, i64 row) { return value(layers_ + layer, row); }
  Stored* tile(i64 k) { return tiles_.data + k * tile_; }  // 0: rounded inputs; 1, 2: gradients
  typename P::Operand* operands(i64 k) { return operands_.data + k * (tile_ / P::kPack); }

 private:
  i64 rows_ = 0, width_ = 0, layers_ = 0, tile_ = 0;
  Scratch<Stored> kept_, tiles_;
  Scratch<typename P::Operand> operands_;
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

template <class P, bool Keep>
void forward_tile(const MlpWeights<P>& weights, MlpState<P>& state, const typename P::Scalar* x, typename P::Scalar* y,
                  i64 row, i64 x_stride, i64 y_stride) {
  const MlpShape& shape = weights.shape();
  const bool slopes = Keep && keeps_slope(shape.hidden_activation);
  i64 ld = x_stride;
  const typename P::Stored* input = stored_rows<P>(x, ld, shape.padded_inputs(), state.tile(0));
  for (i64 l = 0; l < shape.hidden; ++l) {
    typename P::Stored* value = state.value(Keep ? l : l & 1, row);
    typename P::Stored* slope = slopes ? state.slope(l, row) : nullptr;
    with_activation(shape.hidden_activation, [&](auto tag) {
      multiply<P>(input, ld, kTileRows, weights.forward(l), shape.width, shape.width,
                  weights.steps_of(shape.layer_inputs(l)), weights.bias(l),
                  StoreActivated<P, decltype(tag)::value>{value, slope, shape.width});
    });
    input = value;
    ld = shape.width;
  }
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
    const i64 columns = l ? width : inputs;
    if (gradient) {
      typename P::Scalar* weight = gradient + shape.padded_offset(l);
      add_weight_gradient<P>(state, d, ldd, outputs, l ? state.value(l - 1, row) : first, l ? width : ldx, columns,
                             kTileRows, weight);
      if (shape.bias) add_bias_gradient<P>(d, ldd, outputs, kTileRows, weight + MlpShape::padded(outputs) * columns);
    }
    if (l == 0) {
      if (dx)
        multiply<P>(d, ldd, kTileRows, weights.backward(0), columns, dx_columns, steps, nullptr,
                    StoreScalar<P>{dx, strides.dx_stride});
      return;
    }
    typename P::Stored* next = state.tile(1 + ((shape.hidden - l) & 1));
    auto into = [&](auto sink) {
      multiply<P>(d, ldd, kTileRows, weights.backward(l), columns, columns, steps, nullptr, sink);
    };
    if (keeps_slope(shape.hidden_activation))
      into(StoreGradient<P, kHiddenSoftplus>{next, state.slope(l - 1, row), width});
    else if (shape.hidden_activation == kHiddenRelu)
      into(StoreGradient<P, kHiddenRelu>{next, state.value(l - 1, row), width});
    else
      into(StoreGradient<P, kHiddenNone>{next, nullptr, width});
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
