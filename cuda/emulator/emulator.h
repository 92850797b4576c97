// Real .cu kernels on the CPU: the language that they are written in, as far as they use it.
//
// Every thread of a block is a fiber on one OS thread; barriers and warp collectives are switches between fibers. So a
// run is deterministic, a barrier that not every thread reaches is reported with its place, and AddressSanitizer and
// ThreadSanitizer see what the kernel does: under the latter only barriers order memory. Not modelled: memory order
// between blocks, occupancy, bank conflicts, registers, time, and the approximations of the hardware's fast maths.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static  // blocks run one at a time

struct uint3 {
  unsigned x, y, z;
};

namespace emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The running thread and its block.
uint3 thread_index();
uint3 block_index();
uint3 block_size();
uint3 grid_size();

void barrier(const char* where);

// Warp collectives: every lane of `mask` must come to the same place; all go on together. Only `warp_barrier` orders
// memory. `exchange` gives the value that lane `source` came with.
void warp_barrier(unsigned mask, const char* where);
unsigned ballot(unsigned mask, bool vote, const char* where);
std::uint64_t exchange(unsigned mask, std::uint64_t value, unsigned source, const char* where);
// Tensor cores, as mma.h describes their operands. `sums` (4), `a` (4) and `b` (2) are this lane's.
void mma_bf16(float* sums, const unsigned* a, const unsigned* b, const char* where);
unsigned transpose_8x8(unsigned block, const char* where);
inline unsigned lane() { return thread_index().x % 32; }

template <class T> T shuffle(unsigned mask, T value, unsigned source, const char* where) {
  static_assert(sizeof(T) <= 8, "");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

using Entry = void (*)(void** parameters);
// Makes a kernel known by its name.
struct Registration {
  Registration(const char* name, Entry entry);
};
template <class... A, std::size_t... I>
void call_with(void (*kernel)(A...), void** parameters, std::index_sequence<I...>) {
  kernel(*static_cast<std::decay_t<A>*>(parameters[I])...);
}
template <class... A> void call_with(void (*kernel)(A...), void** parameters) {
  call_with(kernel, parameters, std::index_sequence_for<A...>());
}

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16;
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 0) return std::ldexp(float(mantissa), -24) * (sign ? -1.0f : 1.0f);
  const std::uint32_t wide = exponent == 31 ? 255u : std::uint32_t(exponent + 112);
  const std::uint32_t bits = sign | wide << 23 | std::uint32_t(mantissa) << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest, ties to even.
inline std::uint16_t half_of(float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (value != value) return std::uint16_t(sign | 0x7fff);
  if (size >= 65520.0f) return std::uint16_t(sign | 0x7c00);
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const int steps = int(std::nearbyint(std::ldexp(size, 10 - exponent)));  // of the last place; 2048 carries over
  return std::uint16_t(sign | (size < 0x1p-14f ? steps : ((exponent + 14) << 10) + steps));
}
inline std::uint16_t bf16_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return std::uint16_t(bits >> 16 | 0x40u);
  return std::uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

#define PF_EMULATOR_TEXT(x) #x
#define PF_EMULATOR_LINE(x) PF_EMULATOR_TEXT(x)
#define PF_EMULATOR_HERE __FILE__ ":" PF_EMULATOR_LINE(__LINE__)
#define __syncthreads() emulator::barrier(PF_EMULATOR_HERE)
#define __syncwarp(mask) emulator::warp_barrier(mask, PF_EMULATOR_HERE)
#define __ballot_sync(mask, vote) emulator::ballot(mask, vote, PF_EMULATOR_HERE)
#define __shfl_sync(mask, value, source) emulator::shuffle(mask, value, unsigned(source), PF_EMULATOR_HERE)
#define __shfl_xor_sync(mask, value, bits) __shfl_sync(mask, value, emulator::lane() ^ unsigned(bits))
// Lanes without a source keep their own value.
#define __shfl_up_sync(mask, value, by) \
  __shfl_sync(mask, value, emulator::lane() < unsigned(by) ? emulator::lane() : emulator::lane() - unsigned(by))
#define __shfl_down_sync(mask, value, by) \
  __shfl_sync(mask, value, emulator::lane() + unsigned(by) > 31 ? emulator::lane() : emulator::lane() + unsigned(by))
#define __ffs(bits) __builtin_ffs(int(bits))
#define __popc(bits) __builtin_popcount(bits)

#define PF_KERNEL(name, parameters)                                           \
  static void name parameters;                                                \
  static const emulator::Registration name##_registration(                    \
      #name, [](void** arguments) { emulator::call_with(name, arguments); }); \
  static void name parameters

template <class T> T atomicAdd(T* place, T value) {
  T old, sum;
  __atomic_load(place, &old, __ATOMIC_RELAXED);
  do {
    sum = old + value;
  } while (!__atomic_compare_exchange(place, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
inline unsigned atomicMax(unsigned* place, unsigned value) {
  unsigned old = __atomic_load_n(place, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange(place, &old, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
inline unsigned atomicCAS(unsigned* place, unsigned expected, unsigned value) {
  __atomic_compare_exchange(place, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
