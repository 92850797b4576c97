// Where a coordinate of the unit interval lies among values at equal distances from end to end: what grids blend by.
// Outside, the nearest end with slope zero; NaN counts as 0.
#pragma once
#include "common.h"

namespace polyfield {

// Where a coordinate lies among `resolution` texels.
template <class T> struct GridPlace {
  i64 low;
  T fraction, slope;  // slope: d fraction / d x
  PF_HD GridPlace(T x, i64 resolution) {
    const T p = unit_clamp(x) * T(resolution - 1);
    low = min_of(i64(p), resolution - 2);
    fraction = p - T(low);
    slope = x >= T(0) && x <= T(1) ? T(resolution - 1) : T(0);
  }
};

}  // namespace polyfield
