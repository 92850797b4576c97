// Compositing, forward and backward, and early termination as kernels: a warp a ray.
#include "composite_warp.h"

using namespace polyfield;

// A warp a ray, and at least one block, which zeroes the samples of no ray.
#define PF_COMPOSITE(T, SUFFIX)                                                                                        \
  PF_KERNEL(                                                                                                           \
      pf_composite_forward_##SUFFIX,                                                                                   \
      (const T* raw, const T* rgb, const T* distances, const T* deltas, const i32* offsets, const T* background,       \
       i64 rays, i64 samples, i64 activation, double limit, T* rgb_out, T* alpha, T* depth, T* median, T* weights)) {  \
    clear_outside(weights, offsets, rays, samples, 1);                                                                 \
    const i64 ray = warp_number();                                                                                     \
    if (ray >= rays) return;                                                                                           \
    const CompositeInput<T> in{raw, rgb, distances, deltas, offsets, background, rays, samples, T(limit)};             \
    const CompositeOutput<T> out{rgb_out, alpha, depth, median, weights};                                              \
    with_activation(activation, [&](auto a) { composite<decltype(a)::value, T>(in, ray, out); });                      \
  }                                                                                                                    \
  PF_KERNEL(pf_composite_backward_##SUFFIX,                                                                            \
            (const T* raw, const T* rgb, const T* distances, const T* deltas, const i32* offsets, const T* background, \
             const T* g_rgb, const T* g_alpha, const T* g_depth, const T* g_weights, i64 rays, i64 samples,            \
             i64 activation, double limit, T* raw_out, T* rgb_out, T* background_out)) {                               \
    clear_outside(raw_out, offsets, rays, samples, 1);                                                                 \
    clear_outside(rgb_out, offsets, rays, samples, 3);                                                                 \
    const i64 ray = warp_number();                                                                                     \
    if (ray >= rays) return;                                                                                           \
    const CompositeInput<T> in{raw, rgb, distances, deltas, offsets, background, rays, samples, T(limit)};             \
    const CompositeGradients<T> g{g_rgb, g_alpha, g_depth, g_weights, raw_out, rgb_out, background_out};               \
    with_activation(activation, [&](auto a) { composite_backward<decltype(a)::value, T>(in, ray, g); });               \
  }                                                                                                                    \
  PF_KERNEL(pf_trim_samples_##SUFFIX,                                                                                  \
            (const T* raw, const T* deltas, const i32* offsets, const T* carried, i64 rays, i64 samples,               \
             i64 activation, double limit, i32* live, T* optical_depth, u8* finished)) {                               \
    const i64 ray = warp_number();                                                                                     \
    if (ray >= rays) return;                                                                                           \
    const RayRows rows(offsets, ray, samples);                                                                         \
    with_activation(activation, [&](auto a) {                                                                          \
      trim<decltype(a)::value, T>(raw, 1, deltas, rows, T(limit), carried[ray], ray, live, optical_depth, finished);   \
    });                                                                                                                \
  }

PF_COMPOSITE(float, f32)
PF_COMPOSITE(double, f64)
