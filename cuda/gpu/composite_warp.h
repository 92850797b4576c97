// Compositing, forward and backward, and early termination: a warp a ray, 32 samples at a time. Optical depth and what
// lies behind a sample are running sums over the warp, so results do not depend on the launch.
#pragma once
#include "polyfield/composite.h"
#include "warp.h"

namespace polyfield {

// 32 samples of a ray, this lane's among them.
template <int Activation, class T> struct Chunk {
  i64 row;  // of this lane
  bool inside;
  T raw, delta, optical;
  T before;   // optical depth in front of this sample
  int stop;   // the first lane that the ray does not reach, at most 32
  T reached;  // optical depth at the end of the chunk, or where the ray stops
  // `stride`: how far apart the raw values of samples lie.
  __device__ Chunk(const T* raws, i64 stride, const T* deltas, const RayRows& rows, i64 start, T carried, T limit) {
    const i64 i = start + lane_number();
    row = rows.begin + i;
    inside = i < rows.count;
    raw = inside ? raws[stride * row] : T(0);
    delta = inside ? deltas[row] : T(0);
    optical = inside ? density_value<Activation>(raw) * delta : T(0);
    const T sum = running_sum<false>(optical);
    before = carried + of_neighbour<false>(sum, T(0));
    stop = first_vote(before >= limit || !inside);
    reached = stop < kWarp ? from_lane(before, stop) : carried + from_lane(sum, kWarp - 1);
  }
  __device__ bool live() const { return lane_number() < stop; }
};

template <class T> struct CompositeInput {
  const T *raw, *rgb, *distances, *deltas;  // distances may be null where depth is neither asked for nor chained
  const i32* offsets;
  const T* background;  // (R,3) or null
  i64 rays, samples;
  T limit;
};

template <class T> struct CompositeOutput {
  T *rgb, *alpha, *depth, *median, *weights;  // the last three may be null
};

template <int Activation, class T>
__device__ void composite(const CompositeInput<T>& in, i64 ray, const CompositeOutput<T>& out) {
  const RayRows rows(in.offsets, ray, in.samples);
  T total[5] = {T(0), T(0), T(0), T(0), T(0)};  // rgb, alpha, depth
  T carried = T(0), median = T(1e300) * T(1e300);
  bool crossed = false;
  i64 start = 0;
  for (bool stopped = false; start < rows.count && !stopped; start += kWarp) {
    const Chunk<Activation, T> chunk(in.raw, 1, in.deltas, rows, start, carried, in.limit);
    const T transmittance = exp(-chunk.before);
    const Opacity<T> o = opacity_of(chunk.optical, exp(-chunk.optical));
    const T w = chunk.live() ? transmittance * o.alpha : T(0);
    const T distance = chunk.inside && in.distances ? in.distances[chunk.row] : T(0);
    if (chunk.inside && out.weights) out.weights[chunk.row] = w;
    for (int c = 0; c < 3 && chunk.live(); ++c) total[c] += w * in.rgb[3 * chunk.row + c];
    total[3] += w;
    if (chunk.live()) total[4] += w * distance;
    const int at = crossed ? kWarp : first_vote(chunk.live() && transmittance * o.pass <= T(0.5));
    if (at < kWarp) {  // constant density inside the interval: T exp(-x s) = 1/2 at s = log(2 T) / x
      median = from_lane(distance + chunk.delta * (log(T(2) * transmittance) / chunk.optical - T(0.5)), at);
      crossed = true;
    }
    stopped = chunk.stop < kWarp;
    carried = chunk.reached;
  }
  for (i64 i = start + lane_number(); out.weights && i < rows.count; i += kWarp) out.weights[rows.begin + i] = T(0);
  const T transmittance = exp(-carried);
  for (int k = 0; k < 5; ++k) total[k] = warp_total(total[k]);
  if (lane_number()) return;
  for (int c = 0; c < 3; ++c)
    out.rgb[3 * ray + c] = total[c] + (in.background ? transmittance * in.background[3 * ray + c] : T(0));
  out.alpha[ray] = total[3];
  if (out.depth) out.depth[ray] = total[4];
  if (out.median) out.median[ray] = median;
}

template <class T> struct CompositeGradients {
  const T *rgb, *alpha, *depth, *weights;  // cotangents, each may be null
  T *raw_out, *rgb_out, *background_out;   // the last two may be null
};

// Front to back for the optical depth in front of each chunk's samples, kept in `raw_out`; then back to front.
template <int Activation, class T>
__device__ void composite_backward(const CompositeInput<T>& in, i64 ray, const CompositeGradients<T>& g) {
  const RayRows rows(in.offsets, ray, in.samples);
  T carried = T(0);
  i64 live = 0;  // leading samples that the ray reaches
  for (bool stopped = false; live < rows.count && !stopped;) {
    const Chunk<Activation, T> chunk(in.raw, 1, in.deltas, rows, live, carried, in.limit);
    if (chunk.inside) g.raw_out[chunk.row] = chunk.before;
    stopped = chunk.stop < kWarp;
    carried = chunk.reached;
    live += chunk.stop;
  }
  const T transmittance = exp(-carried);
  T color[3], behind = T(0);  // what lies behind a sample contributes to the loss, per unit of transmittance removed
  for (int c = 0; c < 3; ++c) {
    color[c] = g.rgb ? g.rgb[3 * ray + c] : T(0);
    if (g.rgb && in.background) behind += transmittance * color[c] * in.background[3 * ray + c];
    if (g.background_out && lane_number() == 0) g.background_out[3 * ray + c] = transmittance * color[c];
  }
  const T alpha = g.alpha ? g.alpha[ray] : T(0), depth = g.depth ? g.depth[ray] : T(0);
  for (i64 start = (rows.count - 1) / kWarp * kWarp; start >= 0 && rows.count; start -= kWarp) {
    const i64 i = start + lane_number(), row = rows.begin + i;
    T value = T(0), w = T(0), after = T(0), chain = T(0);
    if (i < live) {
      const T raw = in.raw[row], delta = in.deltas[row], optical = density_value<Activation>(raw) * delta;
      const T before = g.raw_out[row], pass = exp(-optical);
      after = exp(-before) * pass;
      w = exp(-before) * opacity_of(optical, pass).alpha;
      chain = delta * density_derivative<Activation>(raw);
      value = alpha + (in.distances ? depth * in.distances[row] : T(0)) + (g.weights ? g.weights[row] : T(0));
      for (int c = 0; c < 3 && g.rgb; ++c) value += color[c] * in.rgb[3 * row + c];
    }
    const T sum = running_sum<true>(w * value), hidden = behind + of_neighbour<true>(sum, T(0));
    if (i < rows.count) {
      g.raw_out[row] = i < live ? (after * value - hidden) * chain : T(0);
      for (int c = 0; c < 3 && g.rgb_out; ++c) g.rgb_out[3 * row + c] = w * color[c];
    }
    behind += from_lane(sum, 0);
  }
}

template <int Activation, class T>
__device__ void trim(const T* raw, i64 stride, const T* deltas, const RayRows& rows, T limit, T carried, i64 ray,
                     i32* live, T* optical_depth, u8* finished) {
  i64 count = 0;
  for (bool stopped = false; count < rows.count && !stopped;) {
    const Chunk<Activation, T> chunk(raw, stride, deltas, rows, count, carried, limit);
    stopped = chunk.stop < kWarp;
    carried = chunk.reached;
    count += chunk.stop;
  }
  if (lane_number()) return;
  live[ray] = i32(count);
  optical_depth[ray] = carried;
  finished[ray] = carried >= limit;
}

template <int Value> struct Code {
  static constexpr int value = Value;
};
template <class Body> __device__ __forceinline__ void with_activation(i64 code, const Body& body) {
  if (code == kDensityExp) body(Code<kDensityExp>());
  if (code == kDensitySoftplus) body(Code<kDensitySoftplus>());
  if (code == kDensityRelu) body(Code<kDensityRelu>());
}

}  // namespace polyfield
