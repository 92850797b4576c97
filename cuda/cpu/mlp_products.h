// The products of the fused-MLP engine (mlp_tile.h) on rows that lie in cache: the precisions, the register blocks, the
// weight gradients, what happens to a sum on its way to memory, and last layers of few outputs.
#pragma once
#include <type_traits>

#include "mlp_math.h"
#include "parallel.h"

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
  i64 ld, slope_ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    VecOf<P> f, d;
    activate<Activation>(sum, f, d);
    P::store_stored(value + row * ld + column, f);
    if (kHeavy && slope) P::store_stored(slope + row * slope_ld + column, d);
  }
};

// Backward: the gradient times the activation's slope, told by `kept` (ReLU: the value; others: the slope).
template <class P, int Activation> struct StoreGradient {
  static constexpr bool kHeavy = false;
  typename P::Stored* to;
  const typename P::Stored* kept;
  i64 ld, kept_ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    if constexpr (Activation == kHiddenRelu)
      sum = P::load_stored(kept + row * kept_ld + column) <= 0 ? VecOf<P>{} : sum;
    if constexpr (Activation == kHiddenSoftplus) sum = sum * P::load_stored(kept + row * kept_ld + column);
    P::store_stored(to + row * ld + column, sum);
  }
};

// Backward of a layer with a skip connection: the first `width` columns go to `inner`, the network inputs' to `to`.
template <class P, class Inner> struct StoreSplit {
  static constexpr bool kHeavy = false;
  Inner inner;
  i64 width;
  typename P::Scalar* to;
  i64 ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    if (column < width)
      inner(row, column, sum);
    else
      store<typename P::Scalar>(to + row * ld + (column - width), sum);
  }
};

// The sum and what a skip connection brought.
template <class P> struct StoreTotal {
  static constexpr bool kHeavy = false;
  typename P::Scalar* to;
  i64 ld;
  const typename P::Scalar* more;
  i64 more_ld;
  PF_INLINE void operator()(i64 row, i64 column, VecOf<P> sum) const {
    store<typename P::Scalar>(to + row * ld + column, sum + load(more + row * more_ld + column));
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

}  // namespace polyfield
