// Compositing and early termination on the CPU: rays in chunks; the exponentials of a chunk are taken on whole vectors,
// then each ray is one scalar pass (composite.h).
#include <cstring>
#include <type_traits>

#include "parallel.h"
#include "polyfield/composite.h"
#include "simd_math.h"

namespace polyfield {
namespace {

constexpr i64 kRays = 64;  // rays of a task: a few thousand samples, whose scratch stays in the L2 cache

// optical[i] = density(raw[i]) deltas[i] and, where asked for, pass[i] = exp(-optical[i]).
template <int Activation, class T> void optical_thickness(const T* raw, const T* deltas, i64 count, T* optical,
                                                          T* pass) {
  i64 i = 0;
  if constexpr (sizeof(T) == 4) {
    constexpr int kWide = kLanes<float>;
    for (; i + kWide <= count; i += kWide) {
      Vec<float> density;
      if constexpr (Activation == kDensityExp) {
        density = vec_exp(load(raw + i));
      } else {
        for (int k = 0; k < kWide; ++k) density[k] = density_value<Activation>(raw[i + k]);
      }
      const Vec<float> x = density * load(deltas + i);
      store(optical + i, x);
      if (pass) store(pass + i, vec_exp(-x));
    }
  }
  if (i == count) return;
  if constexpr (sizeof(T) == 4) {  // the tail by the same functions, so that a sample does not depend on its neighbours
    constexpr int kWide = kLanes<float>;
    float raws[kWide] = {}, widths[kWide] = {}, thick[kWide], left[kWide];
    std::memcpy(raws, raw + i, (count - i) * sizeof(float));
    std::memcpy(widths, deltas + i, (count - i) * sizeof(float));
    optical_thickness<Activation, float>(raws, widths, kWide, thick, left);
    std::memcpy(optical + i, thick, (count - i) * sizeof(float));
    if (pass) std::memcpy(pass + i, left, (count - i) * sizeof(float));
  } else {
    for (; i < count; ++i) {
      optical[i] = density_value<Activation>(raw[i]) * deltas[i];
      if (pass) pass[i] = exp(-optical[i]);
    }
  }
}

template <int Activation, class T> void chain_density(const T* raw, const T* deltas, i64 count, T* gradient) {
  i64 i = 0;
  if constexpr (sizeof(T) == 4 && Activation == kDensityExp) {
    const Vec<float> high = splat(float(kDensityExpClamp));
    for (; i + kLanes<float> <= count; i += kLanes<float>) {
      Vec<float> x = load(raw + i);
      x = x > high ? high : x;
      x = x < -high ? -high : x;
      store(gradient + i, load(gradient + i) * load(deltas + i) * vec_exp(x));
    }
  }
  for (; i < count; ++i) gradient[i] *= deltas[i] * density_derivative<Activation>(raw[i]);
}

template <class T> struct CompositeInput {
  const T *raw, *rgb, *distances, *deltas;
  const i32* offsets;
  const T* background;  // (R,3) or null
  T depth_limit;
};

template <class T> struct CompositeScratch {
  Scratch<T> data;
  T *optical, *pass, *after;
  void reserve(i64 count) {
    const i64 stride = (count + 31) / 16 * 16;
    optical = data.reserve(3 * stride);
    pass = optical + stride;
    after = pass + stride;
  }
};

template <int Activation, class T>
void composite(const CompositeInput<T>& in, i64 rays, T* rgb, T* alpha, T* depth, T* median, T* weights, i64 threads) {
  parallel_chunks(threads, rays, kRays, [&](i64 begin, i64 end) {
    static thread_local CompositeScratch<T> scratch;
    const i64 first = in.offsets[begin], count = in.offsets[end] - first;
    scratch.reserve(count);
    optical_thickness<Activation, T>(in.raw + first, in.deltas + first, count, scratch.optical, scratch.pass);
    for (i64 r = begin; r < end; ++r) {
      const i64 at = in.offsets[r], local = at - first;
      const RayColor<T> color = composite_ray<T>(
          in.offsets[r + 1] - at, scratch.optical + local, scratch.pass + local, in.rgb + 3 * at, in.distances + at,
          in.deltas + at, in.background ? in.background + 3 * r : nullptr, in.depth_limit, weights + at);
      for (int c = 0; c < 3; ++c) rgb[3 * r + c] = color.rgb[c];
      alpha[r] = color.alpha;
      depth[r] = color.depth;
      median[r] = color.median;
    }
  });
}

template <class T> struct CompositeGradients {
  const T *rgb, *alpha, *depth, *weights;  // cotangents, each may be null
  T *raw_out, *rgb_out, *background_out;   // the last two may be null
};

template <int Activation, class T>
void composite_backward(const CompositeInput<T>& in, i64 rays, const CompositeGradients<T>& g, i64 threads) {
  parallel_chunks(threads, rays, kRays, [&](i64 begin, i64 end) {
    static thread_local CompositeScratch<T> scratch;
    const i64 first = in.offsets[begin], count = in.offsets[end] - first;
    scratch.reserve(count);
    optical_thickness<Activation, T>(in.raw + first, in.deltas + first, count, scratch.optical, scratch.pass);
    for (i64 r = begin; r < end; ++r) {
      const i64 at = in.offsets[r], local = at - first;
      const RayCotangent<T> cotangent{g.rgb ? g.rgb + 3 * r : nullptr, g.weights ? g.weights + at : nullptr,
                                      g.alpha ? g.alpha[r] : T(0), g.depth ? g.depth[r] : T(0)};
      composite_ray_backward<T>(in.offsets[r + 1] - at, scratch.optical + local, scratch.pass + local, in.rgb + 3 * at,
                                in.distances + at, in.background ? in.background + 3 * r : nullptr, in.depth_limit,
                                cotangent, scratch.after + local, g.raw_out + at,
                                g.rgb_out ? g.rgb_out + 3 * at : nullptr,
                                g.background_out ? g.background_out + 3 * r : nullptr);
    }
    chain_density<Activation, T>(in.raw + first, in.deltas + first, count, g.raw_out + first);
  });
}

template <int Activation, class T>
void trim(const T* raw, const T* deltas, const i32* offsets, const T* carried, i64 rays, T limit, i32* live,
          T* optical_depth, u8* finished, i64 threads) {
  parallel_chunks(threads, rays, kRays, [&](i64 begin, i64 end) {
    static thread_local CompositeScratch<T> scratch;
    const i64 first = offsets[begin], count = offsets[end] - first;
    scratch.reserve(count);
    optical_thickness<Activation, T>(raw + first, deltas + first, count, scratch.optical, static_cast<T*>(nullptr));
    for (i64 r = begin; r < end; ++r) {
      T total = carried[r];
      live[r] =
          i32(live_samples<T>(offsets[r + 1] - offsets[r], scratch.optical + (offsets[r] - first), limit, &total));
      optical_depth[r] = total;
      finished[r] = total >= limit;
    }
  });
}

bool offsets_are_valid(const i32* offsets, i64 rays, i64 samples) {
  if (offsets[0] < 0 || offsets[rays] > samples) return false;
  for (i64 r = 0; r < rays; ++r)
    if (offsets[r + 1] < offsets[r]) return false;
  return true;
}

// Samples of no ray (before offsets[0], after offsets[R]) have weight and gradient zero.
template <class T> void clear_outside(T* values, const i32* offsets, i64 rays, i64 samples, i64 channels) {
  if (!values) return;
  for (i64 i = 0; i < offsets[0] * channels; ++i) values[i] = T(0);
  for (i64 i = offsets[rays] * channels; i < samples * channels; ++i) values[i] = T(0);
}

template <class Body> void with_activation(i64 code, const Body& body) {
  if (code == kDensityExp) body(std::integral_constant<int, kDensityExp>());
  if (code == kDensitySoftplus) body(std::integral_constant<int, kDensitySoftplus>());
  if (code == kDensityRelu) body(std::integral_constant<int, kDensityRelu>());
}

template <class T>
i64 run_composite(const T* raw, const T* rgb, const T* distances, const T* deltas, const i32* offsets,
                  const T* background, i64 rays, i64 samples, i64 activation, double limit, T* rgb_out, T* alpha,
                  T* depth, T* median, T* weights, i64 threads) {
  if (!offsets_are_valid(offsets, rays, samples)) return -1;
  clear_outside(weights, offsets, rays, samples, 1);
  const CompositeInput<T> in{raw, rgb, distances, deltas, offsets, background, T(limit)};
  with_activation(activation, [&](auto a) {
    composite<decltype(a)::value, T>(in, rays, rgb_out, alpha, depth, median, weights, threads);
  });
  return 0;
}

template <class T>
i64 run_backward(const T* raw, const T* rgb, const T* distances, const T* deltas, const i32* offsets,
                 const T* background, const T* g_rgb, const T* g_alpha, const T* g_depth, const T* g_weights, i64 rays,
                 i64 samples, i64 activation, double limit, T* raw_out, T* rgb_out, T* background_out, i64 threads) {
  if (!offsets_are_valid(offsets, rays, samples)) return -1;
  clear_outside(raw_out, offsets, rays, samples, 1);
  clear_outside(rgb_out, offsets, rays, samples, 3);
  const CompositeInput<T> in{raw, rgb, distances, deltas, offsets, background, T(limit)};
  const CompositeGradients<T> g{g_rgb, g_alpha, g_depth, g_weights, raw_out, rgb_out, background_out};
  with_activation(activation, [&](auto a) { composite_backward<decltype(a)::value, T>(in, rays, g, threads); });
  return 0;
}

template <class T>
i64 run_trim(const T* raw, const T* deltas, const i32* offsets, const T* carried, i64 rays, i64 samples, i64 activation,
             double limit, i32* live, T* optical_depth, u8* finished, i64 threads) {
  if (!offsets_are_valid(offsets, rays, samples)) return -1;
  with_activation(activation, [&](auto a) {
    trim<decltype(a)::value, T>(raw, deltas, offsets, carried, rays, T(limit), live, optical_depth, finished, threads);
  });
  return 0;
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// All return 0, or -1 where the offsets do not ascend within [0, samples].
#define PF_COMPOSITE(T, suffix)                                                                                        \
  PF_API i64 pf_composite_forward_##suffix(const T* raw, const T* rgb, const T* distances, const T* deltas,            \
                                           const i32* offsets, const T* background, i64 rays, i64 samples,             \
                                           i64 activation, double limit, T* rgb_out, T* alpha, T* depth, T* median,    \
                                           T* weights, i64 threads) {                                                  \
    return run_composite<T>(raw, rgb, distances, deltas, offsets, background, rays, samples, activation, limit,        \
                            rgb_out, alpha, depth, median, weights, threads);                                          \
  }                                                                                                                    \
  PF_API i64 pf_composite_backward_##suffix(                                                                           \
      const T* raw, const T* rgb, const T* distances, const T* deltas, const i32* offsets, const T* background,        \
      const T* g_rgb, const T* g_alpha, const T* g_depth, const T* g_weights, i64 rays, i64 samples, i64 activation,   \
      double limit, T* raw_out, T* rgb_out, T* background_out, i64 threads) {                                          \
    return run_backward<T>(raw, rgb, distances, deltas, offsets, background, g_rgb, g_alpha, g_depth, g_weights, rays, \
                           samples, activation, limit, raw_out, rgb_out, background_out, threads);                     \
  }                                                                                                                    \
  PF_API i64 pf_trim_samples_##suffix(const T* raw, const T* deltas, const i32* offsets, const T* carried, i64 rays,   \
                                      i64 samples, i64 activation, double limit, i32* live, T* optical_depth,          \
                                      u8* finished, i64 threads) {                                                     \
    return run_trim<T>(raw, deltas, offsets, carried, rays, samples, activation, limit, live, optical_depth, finished, \
                       threads);                                                                                       \
  }
PF_COMPOSITE(float, f32)
PF_COMPOSITE(double, f64)
