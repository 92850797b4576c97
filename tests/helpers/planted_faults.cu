// Kernels that are wrong on purpose: the checks that run every other kernel must find each of these faults.
#include "prelude.h"

using namespace polyfield;

// Writes one past the end.
PF_KERNEL(pf_planted_out_of_bounds, (float* values, i64 count)) {
  const i64 i = thread_number();
  if (i <= count) values[i] = 1.0f;
}

// Reads what another thread writes, with no barrier in between.
PF_KERNEL(pf_planted_missing_barrier, (float* values, i64 count)) {
  __shared__ float shared[kThreads];
  const i64 i = thread_number();
  shared[threadIdx.x] = float(threadIdx.x);
  if (i < count) values[i] = shared[(threadIdx.x + 1) % kThreads];
}

// The same with the barrier: no fault.
PF_KERNEL(pf_planted_nothing, (float* values, i64 count)) {
  __shared__ float shared[kThreads];
  const i64 i = thread_number();
  shared[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  if (i < count) values[i] = shared[(threadIdx.x + 1) % kThreads];
}

// A barrier that only some threads reach.
PF_KERNEL(pf_planted_divergent_barrier, (float* values, i64 count)) {
  const i64 i = thread_number();
  if (i < count) __syncthreads();
  if (i < count) values[i] = 1.0f;
}

// A shuffle of all lanes that only some reach.
PF_KERNEL(pf_planted_divergent_shuffle, (float* values, i64 count)) {
  const i64 i = thread_number();
  float value = float(threadIdx.x);
  if (i < count) value = __shfl_sync(0xffffffffu, value, 0);
  if (i < count) values[i] = value;
}

// A shuffle that reads a lane which takes no part in it.
PF_KERNEL(pf_planted_absent_lane, (float* values, i64 count)) {
  const i64 i = thread_number();
  float value = float(threadIdx.x);
  if (threadIdx.x % 32 < 16) value = __shfl_sync(0xffffu, value, 20);
  if (i < count) values[i] = value;
}
