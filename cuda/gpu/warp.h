// What the 32 lanes of a warp do together: running sums, totals, votes. All lanes of the warp must call.
#pragma once
#include "prelude.h"

namespace polyfield {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_number() { return int(threadIdx.x) % kWarp; }
// This warp's number in the whole launch, and how many there are.
__device__ __forceinline__ i64 warp_number() { return thread_number() / kWarp; }
__device__ __forceinline__ i64 warp_count() { return thread_count() / kWarp; }

template <class T> __device__ __forceinline__ T from_lane(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
__device__ __forceinline__ unsigned votes(bool vote) { return __ballot_sync(kAllLanes, vote); }
// The first lane that votes, or 32.
__device__ __forceinline__ int first_vote(bool vote) {
  const unsigned bits = votes(vote);
  return bits ? __ffs(int(bits)) - 1 : kWarp;
}

// Lane i gets the sum of lanes 0 to i; towards the other end where `Backward`.
template <bool Backward, class T> __device__ __forceinline__ T running_sum(T value) {
  const int lane = Backward ? kWarp - 1 - lane_number() : lane_number();
  for (int by = 1; by < kWarp; by *= 2) {
    const T other = Backward ? __shfl_down_sync(kAllLanes, value, by) : __shfl_up_sync(kAllLanes, value, by);
    if (lane >= by) value += other;
  }
  return value;
}
// The value of the lane before (after, where `Backward`); `edge` in the first (last).
template <bool Backward, class T> __device__ __forceinline__ T of_neighbour(T value, T edge) {
  const T other = Backward ? __shfl_down_sync(kAllLanes, value, 1) : __shfl_up_sync(kAllLanes, value, 1);
  return lane_number() == (Backward ? kWarp - 1 : 0) ? edge : other;
}
template <class T> __device__ __forceinline__ T warp_total(T value) {
  for (int by = kWarp / 2; by; by /= 2) value += __shfl_xor_sync(kAllLanes, value, by);
  return value;
}

// The rows of one ray among packed samples. Offsets that do not ascend within [0, samples] give an empty ray: the host
// cannot be told without waiting for it.
struct RayRows {
  i64 begin, count;
  __device__ RayRows(const i32* offsets, i64 ray, i64 samples) : begin(offsets[ray]), count(offsets[ray + 1] - begin) {
    if (begin < 0 || count < 0 || begin + count > samples) begin = 0, count = 0;
  }
};

// Zeroes what belongs to no ray: values (samples, channels) before offsets[0] and from offsets[rays] on.
template <class T>
__device__ void clear_outside(T* values, const i32* offsets, i64 rays, i64 samples, i64 channels) {
  if (!values) return;
  const i64 head = clamp(i64(offsets[0]), i64(0), samples), tail = clamp(i64(offsets[rays]), head, samples);
  for (i64 i = thread_number(); i < (head + samples - tail) * channels; i += thread_count())
    values[i < head * channels ? i : i + (tail - head) * channels] = T(0);
}

}  // namespace polyfield
