// The distortion loss, forward and backward: a warp a ray. The sums over pairs are two running sums, of the weights and
// of weight sum times gap, which cancel nothing (see polyfield/distortion.h).
#include "polyfield/distortion.h"
#include "warp.h"

namespace polyfield {

// Sums over pairs, carried from one 32 samples to the next; `Backward` goes from far to near.
template <bool Backward, class T> struct PairSums {
  T spread = T(0), sum = T(0), edge = T(0);

  // sum_(j before i) w_j |t_i - t_j| of this lane's sample; lanes that are not inside bring weight 0 and come last.
  __device__ T add(T w, T t, bool inside, bool first) {
    const T reached = running_sum<Backward>(w), before = sum + of_neighbour<Backward>(reached, T(0));
    const int head = Backward ? kWarp - 1 : 0, tail = kWarp - 1 - head;
    const T previous = of_neighbour<Backward>(t, edge);
    const bool begins = first && lane_number() == head;
    const T gap = !inside || begins ? T(0) : Backward ? previous - t : t - previous;
    const T result = spread + running_sum<Backward>(before * gap);
    sum += from_lane(reached, tail);
    spread = from_lane(result, tail);
    edge = from_lane(t, tail);
    return result;
  }
};

template <class T>
__device__ void distortion(const T* w, const T* t, const T* delta, const RayRows& rows, T* loss) {
  PairSums<false, T> pairs;
  T total = T(0);
  for (i64 start = 0; start < rows.count; start += kWarp) {
    const i64 i = start + lane_number(), row = rows.begin + i;
    const bool inside = i < rows.count;
    const T weight = inside ? w[row] : T(0);
    const T spread = pairs.add(weight, inside ? t[row] : T(0), inside, start == 0);
    if (inside) total += T(2) * weight * spread + weight * weight * delta[row] * T(1.0 / 3.0);
  }
  total = warp_total(total);
  if (lane_number() == 0) *loss = total;
}

// From near to far for the samples in front, kept in `out`; then back for those behind. The chunks of the way back end
// at the last sample, so that lanes without one come last.
template <class T>
__device__ void distortion_backward(const T* w, const T* t, const T* delta, const RayRows& rows, T gradient, T* out) {
  PairSums<false, T> front;
  for (i64 start = 0; start < rows.count; start += kWarp) {
    const i64 i = start + lane_number(), row = rows.begin + i;
    const bool inside = i < rows.count;
    const T spread = front.add(inside ? w[row] : T(0), inside ? t[row] : T(0), inside, start == 0);
    if (inside) out[row] = spread;
  }
  __syncwarp(kAllLanes);
  PairSums<true, T> back;
  for (i64 end = rows.count; end > 0; end -= kWarp) {
    const i64 i = end - kWarp + lane_number(), row = rows.begin + i;
    const bool inside = i >= 0;
    const T weight = inside ? w[row] : T(0);
    const T spread = back.add(weight, inside ? t[row] : T(0), inside, end == rows.count);
    if (inside) out[row] = gradient * (T(2) * (out[row] + spread) + weight * delta[row] * T(2.0 / 3.0));
  }
}

}  // namespace polyfield

using namespace polyfield;

// A warp a ray, and at least one block, which zeroes the samples of no ray.
#define PF_DISTORTION(T, SUFFIX)                                                                            \
  PF_KERNEL(pf_distortion_forward_##SUFFIX,                                                                 \
            (const T* w, const T* t, const T* delta, const i32* offsets, i64 rays, i64 samples, T* loss)) { \
    const i64 ray = warp_number();                                                                          \
    if (ray < rays) distortion(w, t, delta, RayRows(offsets, ray, samples), loss + ray);                    \
  }                                                                                                         \
  PF_KERNEL(pf_distortion_backward_##SUFFIX, (const T* w, const T* t, const T* delta, const i32* offsets,   \
                                              const T* gradient, i64 rays, i64 samples, T* out)) {          \
    clear_outside(out, offsets, rays, samples, 1);                                                          \
    const i64 ray = warp_number();                                                                          \
    if (ray < rays) distortion_backward(w, t, delta, RayRows(offsets, ray, samples), gradient[ray], out);   \
  }

PF_DISTORTION(float, f32)
PF_DISTORTION(double, f64)
