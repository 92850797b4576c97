// What every .cu file stands on: how a kernel is declared, which element a thread works on, atomic sums and binary16.
// No toolkit header: NVRTC alone compiles it, and g++ does with `emulator/emulator.h`.
//
// Arguments of kernels are those of the CPU library's functions: pointers, i64 (or Number) for every integer, double
// for every scalar, 8 bytes each. The launcher packs them without knowing the kernel.
#pragma once
#if defined(PF_EMULATOR)
#include "emulator.h"
#define PF_OUTLINE __attribute__((noinline))
#else
#define PF_OUTLINE __noinline__
#define PF_KERNEL(name, parameters) extern "C" __global__ void __launch_bounds__(256) name parameters
#endif
#include "polyfield/common.h"

namespace polyfield {

// Threads of a block; the launcher knows it as THREADS.
constexpr int kThreads = 256;

// This thread's number in the whole launch.
__device__ __forceinline__ i64 thread_number() { return i64(blockIdx.x) * kThreads + threadIdx.x; }
// How many threads there are, for loops with the stride of the launch.
__device__ __forceinline__ i64 thread_count() { return i64(gridDim.x) * kThreads; }

// An integer that may still lie on the device when the host launches: then the negated address of an i64.
struct Number {
  i64 coded;
  __device__ operator i64() const { return coded >= 0 ? coded : *reinterpret_cast<const i64*>(-coded); }
};

// Raises *place to `value`, unless it is negative; NaN raises nothing.
__device__ inline void atomic_raise(float* place, float value) {
  unsigned* bits = reinterpret_cast<unsigned*>(place);
  for (float old = *place; old >= 0.0f && value > old;) {
    const unsigned expected = __float_as_uint(old), found = atomicCAS(bits, expected, __float_as_uint(value));
    if (found == expected) return;
    old = __uint_as_float(found);
  }
}

// place[0] += first, place[1] += second; `place` lies on a multiple of two.
__device__ __forceinline__ void atomic_add_pair(double* place, double first, double second) {
  atomicAdd(place, first);
  atomicAdd(place + 1, second);
}
__device__ __forceinline__ void atomic_add_pair(float* place, float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(place), "f"(first), "f"(second) : "memory");
#else
  atomicAdd(place, first);
  atomicAdd(place + 1, second);
#endif
}

struct Half {
  u16 bits;
};

// To the nearest, ties to even.
#if defined(PF_EMULATOR)
__device__ __forceinline__ float half_to_float(Half half) { return emulator::half_to_float(half.bits); }
__device__ __forceinline__ Half float_to_half(float value) { return {emulator::half_of(value)}; }
#else
__device__ __forceinline__ Half float_to_half(float value) {
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
  return half;
}
__device__ __forceinline__ float half_to_float(Half half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
  return value;
}
#endif

}  // namespace polyfield
