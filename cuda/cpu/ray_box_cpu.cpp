// Ray/box intersection on the CPU: one pass over the rays.
#include "parallel.h"
#include "polyfield/ray_box.h"

namespace polyfield {
namespace {

template <class T>
i64 intersect_rays(const T* origins, const T* directions, const T* lower, const T* upper, i64 rays, T* near, T* far,
                   i64 threads) {
  parallel_chunks(threads, rays, 4096, [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; ++r) {
      const RayInterval<T> hit = intersect_box<T>(origins + 3 * r, directions + 3 * r, lower, upper);
      near[r] = hit.near;
      far[r] = hit.far;
    }
  });
  return 0;
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

PF_API i64 pf_intersect_box_f32(const float* origins, const float* directions, const float* lower, const float* upper,
                                i64 rays, float* near, float* far, i64 threads) {
  return intersect_rays<float>(origins, directions, lower, upper, rays, near, far, threads);
}
PF_API i64 pf_intersect_box_f64(const double* origins, const double* directions, const double* lower,
                                const double* upper, i64 rays, double* near, double* far, i64 threads) {
  return intersect_rays<double>(origins, directions, lower, upper, rays, near, far, threads);
}
