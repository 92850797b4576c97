// Ray/box intersection: one thread a ray.
#include "polyfield/ray_box.h"
#include "prelude.h"

using namespace polyfield;

#define PF_INTERSECT_BOX(T, SUFFIX)                                                                               \
  PF_KERNEL(pf_intersect_box_##SUFFIX,                                                                            \
            (const T* origins, const T* directions, const T* lower, const T* upper, i64 rays, T* near, T* far)) { \
    const i64 r = thread_number();                                                                                \
    if (r >= rays) return;                                                                                        \
    const RayInterval<T> hit = intersect_box<T>(origins + 3 * r, directions + 3 * r, lower, upper);               \
    near[r] = hit.near;                                                                                           \
    far[r] = hit.far;                                                                                             \
  }

PF_INTERSECT_BOX(float, f32)
PF_INTERSECT_BOX(double, f64)
