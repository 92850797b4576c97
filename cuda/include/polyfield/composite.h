// What does a ray see? Volume compositing of its samples over a background, forward and backward, one ray, host and
// device. After Max (1995) as used by NeRF (Mildenhall et al. 2020, eq. 3).
//
// With optical thickness x_i = density_i delta_i: alpha_i = 1 - exp(-x_i), T_i = exp(-sum_(j<i) x_j), w_i = T_i
// alpha_i. A ray stops after the sample that brings its optical depth to -log(threshold); later samples have weight 0.
#pragma once
#include "density.h"

namespace polyfield {

// exp(-x) and 1 - exp(-x) without cancellation where x is small.
template <class T> struct Opacity {
  T pass, alpha;
};
template <class T> PF_HD Opacity<T> opacity_of(T x, T pass) {
  const T series = x * (T(1) - x * (T(1) / 2 - x * (T(1) / 6 - x * (T(1) / 24 - x * (T(1) / 120)))));
  return {pass, fabs(x) < T(sizeof(T) == 4 ? 0.05 : 1e-3) ? series : T(1) - pass};
}

template <class T> struct RayColor {
  T rgb[3], alpha, depth, median, transmittance;
};

// Forward. pass[i] = exp(-optical[i]). Writes `count` weights; background may be null.
template <class T>
PF_HD RayColor<T> composite_ray(i64 count, const T* optical, const T* pass, const T* rgb, const T* distances,
                                const T* deltas, const T* background, T depth_limit, T* weights) {
  RayColor<T> out{{T(0), T(0), T(0)}, T(0), T(0), T(1e300) * T(1e300), T(1)};
  T transmittance = T(1), total = T(0);
  bool crossed = false;
  i64 i = 0;
  for (; i < count; ++i) {
    const Opacity<T> o = opacity_of(optical[i], pass[i]);
    const T w = transmittance * o.alpha, next = transmittance * o.pass;
    weights[i] = w;
    for (int c = 0; c < 3; ++c) out.rgb[c] += w * rgb[3 * i + c];
    out.alpha += w;
    out.depth += w * distances[i];
    if (!crossed && next <= T(0.5)) {  // constant density inside the interval: T exp(-x s) = 1/2 at s = log(2 T) / x
      crossed = true;
      out.median = distances[i] + deltas[i] * (log(T(2) * transmittance) / optical[i] - T(0.5));
    }
    transmittance = next;
    total += optical[i];
    if (total >= depth_limit) {
      ++i;
      break;
    }
  }
  for (; i < count; ++i) weights[i] = T(0);
  for (int c = 0; c < 3 && background; ++c) out.rgb[c] += transmittance * background[c];
  out.transmittance = transmittance;
  return out;
}

template <class T> struct RayCotangent {
  const T *rgb, *weights;  // (3,) and (count,), or null
  T alpha, depth;
};

// Backward: cotangents of optical thickness, rgb and background (the last two may be null). `after` is scratch
// (count,). d w_i / d x_i = T_(i+1), d w_j / d x_i = -w_j for j > i: one pass forward for T, one backward for the
// suffix sums.
template <class T>
PF_HD void composite_ray_backward(i64 count, const T* optical, const T* pass, const T* rgb, const T* distances,
                                  const T* background, T depth_limit, const RayCotangent<T>& g, T* after,
                                  T* grad_optical, T* grad_rgb, T* grad_background) {
  T transmittance = T(1), total = T(0);
  i64 stop = 0;
  while (stop < count && !(total >= depth_limit)) {
    total += optical[stop];
    after[stop] = transmittance *= pass[stop];
    ++stop;
  }
  T behind = T(0);  // what lies behind sample i contributes to the loss, per unit of T_(i+1) removed
  for (int c = 0; c < 3; ++c) {
    if (g.rgb && background) behind += transmittance * g.rgb[c] * background[c];
    if (grad_background) grad_background[c] = g.rgb ? transmittance * g.rgb[c] : T(0);
  }
  for (i64 i = count - 1; i >= 0; --i) {
    if (i >= stop) {
      grad_optical[i] = T(0);
      for (int c = 0; c < 3 && grad_rgb; ++c) grad_rgb[3 * i + c] = T(0);
      continue;
    }
    const T w = (i > 0 ? after[i - 1] : T(1)) * opacity_of(optical[i], pass[i]).alpha;
    T value = g.alpha + g.depth * distances[i] + (g.weights ? g.weights[i] : T(0));
    for (int c = 0; c < 3; ++c) {
      if (g.rgb) value += g.rgb[c] * rgb[3 * i + c];
      if (grad_rgb) grad_rgb[3 * i + c] = g.rgb ? w * g.rgb[c] : T(0);
    }
    grad_optical[i] = after[i] * value - behind;
    behind += w * value;
  }
}

// How many of the next samples a ray needs, given the optical depth it carries. The sample that crosses is included.
template <class T> PF_HD i64 live_samples(i64 count, const T* optical, T depth_limit, T* carried) {
  T total = *carried;
  i64 i = 0;
  while (i < count && !(total >= depth_limit)) total += optical[i++];
  *carried = total;
  return i;
}

}  // namespace polyfield
