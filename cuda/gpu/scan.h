// Running sums over many elements, a thread each, in two launches: the first sums within each block, the second adds
// what lies before its block. Nothing depends on the order in which blocks run.
#pragma once
#include "warp.h"

namespace polyfield {

constexpr int kWarps = kThreads / kWarp;

// The sum of this thread's value and those of the threads before it in the block. All threads of the block must call.
__device__ inline i64 block_running_sum(i64 value) {
  __shared__ i64 totals[kWarps];
  const int warp = int(threadIdx.x) / kWarp;
  i64 sum = running_sum<false>(value);
  if (lane_number() == kWarp - 1) totals[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += totals[w];
  return sum;
}

// What the first launch leaves of `count` elements.
struct RunningSums {
  i32* ends;    // (count,) sums up to and with each element, of its block alone
  i64* totals;  // (blocks,)
  i64 count;

  // First launch: all threads call, each with the value of element `thread_number()`.
  __device__ void put(i64 value) const {
    const i64 i = thread_number(), sum = block_running_sum(i < count ? value : 0);
    if (i < count) ends[i] = i32(sum);
    if (threadIdx.x == kThreads - 1) totals[blockIdx.x] = sum;
  }
  // Second launch: the sum of all elements before this block. All threads of the block must call.
  __device__ i64 before_block() const {
    __shared__ i64 sum;
    i64 mine = 0;
    for (i64 block = threadIdx.x; block < i64(blockIdx.x); block += kThreads) mine += totals[block];
    const i64 all = block_running_sum(mine);
    if (threadIdx.x == kThreads - 1) sum = all;
    __syncthreads();
    return sum;
  }
  // The sum before this thread's element within its block.
  __device__ i64 within_block() const { return threadIdx.x ? ends[thread_number() - 1] : 0; }
  // The largest running sum (or 0) that is at most `limit`.
  __device__ i64 last_within(i64 limit) const {
    i64 sum = 0, low = 0;
    for (const i64* total = totals; low < count && sum + *total <= limit; low += kThreads) sum += *total++;
    const i64 first = low;
    i64 high = min_of(low + kThreads, count);
    while (low < high) {  // for the first that is past it
      const i64 middle = (low + high) / 2;
      if (sum + ends[middle] > limit) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low > first ? sum + ends[low - 1] : sum;
  }
};

}  // namespace polyfield
