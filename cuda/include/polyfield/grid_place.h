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
    const T inside = unit_clamp(x), scale = T(resolution - 1);
    low = min_of(i64(inside * scale), resolution - 2);
    fraction = multiply_add(inside, scale, T(-low));  // the product unrounded: its error would be that of many cells
    slope = x >= T(0) && x <= T(1) ? T(resolution - 1) : T(0);
  }
};

}  // namespace polyfield
