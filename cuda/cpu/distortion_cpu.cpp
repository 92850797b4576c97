// Distortion loss on the CPU: rays in chunks, one pass each (distortion.h).
#include "parallel.h"
#include "polyfield/distortion.h"

namespace polyfield {
namespace {

bool offsets_ascend(const i32* offsets, i64 rays, i64 samples) {
  if (offsets[0] < 0 || offsets[rays] > samples) return false;
  for (i64 r = 0; r < rays; ++r)
    if (offsets[r + 1] < offsets[r]) return false;
  return true;
}

template <class T>
i64 distortion(const T* w, const T* t, const T* delta, const i32* offsets, i64 rays, i64 samples, T* loss,
               i64 threads) {
  if (!offsets_ascend(offsets, rays, samples)) return -1;
  parallel_chunks(threads, rays, 256, [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; ++r) {
      const i64 at = offsets[r];
      loss[r] = distortion_ray<T>(offsets[r + 1] - at, w + at, t + at, delta + at);
    }
  });
  return 0;
}

template <class T>
i64 distortion_backward(const T* w, const T* t, const T* delta, const i32* offsets, const T* gradient, i64 rays,
                        i64 samples, T* out, i64 threads) {
  if (!offsets_ascend(offsets, rays, samples)) return -1;
  for (i64 i = 0; i < offsets[0]; ++i) out[i] = T(0);
  for (i64 i = offsets[rays]; i < samples; ++i) out[i] = T(0);
  parallel_chunks(threads, rays, 256, [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; ++r) {
      const i64 at = offsets[r];
      distortion_ray_backward<T>(offsets[r + 1] - at, w + at, t + at, delta + at, gradient[r], out + at);
    }
  });
  return 0;
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// All return 0, or -1 where the offsets do not ascend within [0, samples].
PF_API i64 pf_distortion_forward_f32(const float* w, const float* t, const float* delta, const i32* offsets, i64 rays,
                                     i64 samples, float* loss, i64 threads) {
  return distortion<float>(w, t, delta, offsets, rays, samples, loss, threads);
}
PF_API i64 pf_distortion_forward_f64(const double* w, const double* t, const double* delta, const i32* offsets,
                                     i64 rays, i64 samples, double* loss, i64 threads) {
  return distortion<double>(w, t, delta, offsets, rays, samples, loss, threads);
}
PF_API i64 pf_distortion_backward_f32(const float* w, const float* t, const float* delta, const i32* offsets,
                                      const float* gradient, i64 rays, i64 samples, float* out, i64 threads) {
  return distortion_backward<float>(w, t, delta, offsets, gradient, rays, samples, out, threads);
}
PF_API i64 pf_distortion_backward_f64(const double* w, const double* t, const double* delta, const i32* offsets,
                                      const double* gradient, i64 rays, i64 samples, double* out, i64 threads) {
  return distortion_backward<double>(w, t, delta, offsets, gradient, rays, samples, out, threads);
}
