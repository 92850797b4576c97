// A factored grid: features of a position as products of features read from planes and lines (tri-planes; TensoRF, Chen
// et al. 2022; K-Planes, Fridovich-Keil et al. 2023).
//
// A factor is a plane (two axes) or a line (one axis) of texels with C channels each, channels side by side. A term is
// the product of its factors, channel by channel; the encoding is the terms side by side. Texels lie on the ends of the
// unit interval: x in [0, 1] is at x (resolution - 1), blended linearly between neighbours. Positions outside are taken
// at the nearest point inside and have derivative zero along that axis; NaN counts as 0.
#pragma once
#include "grid_place.h"

namespace polyfield {

constexpr int kMostFactors = 3;  // of a term

// One factor, as `FactoredGridSpec.layout` (ops/factored_encode.py) lists it.
struct GridFactor {
  i64 axis_a, axis_b;              // axis_b is -1 for a line
  i64 resolution_a, resolution_b;  // texels; resolution_b is 1 for a line
  i64 first;                       // of its values in the parameters; texel (b, a) begins at (b resolution_a + a) C
  i64 channels;
  i64 column;  // of its term in the encoding; factors of one term follow one another

  PF_HD int corners() const { return axis_b < 0 ? 2 : 4; }      // texels round a position
  PF_HD i64 across() const { return resolution_a * channels; }  // from a row of texels to the next
  // From the lowest texel round a position to another.
  PF_HD i64 texel(int corner) const { return (corner & 1) * channels + (corner >> 1) * across(); }
};

// Where the texels round a position begin, the lowest of them, and how they blend: corner k is k & 1 along axis a and
// k >> 1 along axis b.
template <class T> struct FactorCell {
  i64 first;
  T weight[4];  // of a line two, here and below

  PF_HD FactorCell() {}
  PF_HD FactorCell(const GridFactor& f, const T* x) {
    const GridPlace<T> a(x[f.axis_a], f.resolution_a);
    first = f.first + a.low * f.channels;
    weight[0] = T(1) - a.fraction, weight[1] = a.fraction;
    if (f.axis_b < 0) return;
    const GridPlace<T> b(x[f.axis_b], f.resolution_b);
    first += b.low * f.across();
    weight[2] = weight[0] * b.fraction, weight[3] = weight[1] * b.fraction;
    weight[0] *= T(1) - b.fraction, weight[1] *= T(1) - b.fraction;
  }
};

// d weight / d position along the two axes.
template <class T> struct FactorSlopes {
  T along_a[4], along_b[4];

  PF_HD FactorSlopes() {}
  PF_HD FactorSlopes(const GridFactor& f, const T* x) {
    const GridPlace<T> a(x[f.axis_a], f.resolution_a);
    const T wa[2] = {T(1) - a.fraction, a.fraction}, da[2] = {-a.slope, a.slope};
    if (f.axis_b < 0) {
      for (int k = 0; k < 2; ++k) along_a[k] = da[k], along_b[k] = T(0);
      return;
    }
    const GridPlace<T> b(x[f.axis_b], f.resolution_b);
    const T wb[2] = {T(1) - b.fraction, b.fraction}, db[2] = {-b.slope, b.slope};
    for (int k = 0; k < 4; ++k) along_a[k] = da[k & 1] * wb[k >> 1], along_b[k] = wa[k & 1] * db[k >> 1];
  }
};

// Features of one channel, or of a vector of them: `read(place)` gives the texel's.
template <class V, class T, class Read>
PF_HD V blend(const GridFactor& f, i64 first, const T (&by)[4], const Read& read) {
  V sum = read(first) * by[0] + read(first + f.texel(1)) * by[1];
  if (f.corners() == 4) sum += read(first + f.texel(2)) * by[2] + read(first + f.texel(3)) * by[3];
  return sum;
}

}  // namespace polyfield
