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
};

// The texels round a position and how they blend.
template <class T> struct FactorCell {
  i64 place[4];  // where the texels' values begin
  T weight[4];
  T along_a[4], along_b[4];  // d weight / d position along the two axes
  int corners;               // 4, or 2 on a line

  PF_HD FactorCell() {}
  PF_HD FactorCell(const GridFactor& f, const T* x) {
    const GridPlace<T> a(x[f.axis_a], f.resolution_a);
    const T wa[2] = {T(1) - a.fraction, a.fraction}, da[2] = {-a.slope, a.slope};
    corners = f.axis_b < 0 ? 2 : 4;
    if (f.axis_b < 0) {
      for (int k = 0; k < 2; ++k) {
        place[k] = f.first + (a.low + k) * f.channels;
        weight[k] = wa[k], along_a[k] = da[k], along_b[k] = T(0);
      }
      return;
    }
    const GridPlace<T> b(x[f.axis_b], f.resolution_b);
    const T wb[2] = {T(1) - b.fraction, b.fraction}, db[2] = {-b.slope, b.slope};
    for (int k = 0; k < 4; ++k) {
      const int i = k & 1, j = k >> 1;
      place[k] = f.first + ((b.low + j) * f.resolution_a + a.low + i) * f.channels;
      weight[k] = wa[i] * wb[j], along_a[k] = da[i] * wb[j], along_b[k] = wa[i] * db[j];
    }
  }
};

// Features of one channel, or of a vector of them: `read(place)` gives the texel's.
template <class V, class T, class Read> PF_HD V blend(const FactorCell<T>& cell, const T (&by)[4], const Read& read) {
  V sum = read(cell.place[0]) * by[0] + read(cell.place[1]) * by[1];
  if (cell.corners == 4) sum += read(cell.place[2]) * by[2] + read(cell.place[3]) * by[3];
  return sum;
}

}  // namespace polyfield
