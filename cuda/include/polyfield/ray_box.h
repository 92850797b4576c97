// Where does a ray enter and leave an axis-aligned box? The slab test (Kay and Kajiya 1986), one ray, host and device.
//
// A direction component of exactly zero never divides: the ray stays in that slab or misses it. Rays that touch a face
// or a corner hit with an empty interval. Rays that are not finite, or have no direction, miss.
#pragma once
#include "common.h"

namespace polyfield {

template <class T> struct RayInterval {
  T near, far;  // 0 <= near <= far; both infinity where the ray misses
};

template <class T> PF_HD RayInterval<T> intersect_box(const T* origin, const T* direction, const T* lower,
                                                      const T* upper) {
  const T infinity = T(1e300) * T(1e300);
  const RayInterval<T> miss{infinity, infinity};
  T near = T(0), far = infinity, sum = T(0);
  for (int a = 0; a < 3; ++a) {
    const T o = origin[a], d = direction[a];
    sum += fabs(d);
    if (!(fabs(o) < infinity)) return miss;
    if (d == T(0)) {
      if (!(o >= lower[a] && o <= upper[a])) return miss;
      continue;
    }
    const T t0 = (lower[a] - o) / d, t1 = (upper[a] - o) / d;
    near = max_of(near, min_of(t0, t1));
    far = min_of(far, max_of(t0, t1));
  }
  if (!(sum > T(0) && sum < infinity) || !(near <= far)) return miss;
  return {near, far};
}

}  // namespace polyfield
