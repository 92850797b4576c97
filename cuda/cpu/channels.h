// The channels of a row in vectors, the rest one by one: what is written once for both takes a `zero` of the type that
// it works on, a vector or a scalar.
#pragma once
#include "half.h"
#include "polyfield/bfloat.h"
#include "simd.h"

namespace polyfield {

// body(channel, V zero) over the channels: vectors first, then the rest one by one.
template <class T, class Body> inline __attribute__((always_inline)) void over_channels(i64 channels,
                                                                                        const Body& body) {
  i64 c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) body(c, Vec<T>{});
  for (; c < channels; ++c) body(c, T(0));
}
// The same with a vector half as wide before the rest: for rows of a few vectors that need not fill the last.
template <class T, class Body> inline __attribute__((always_inline)) void over_few_channels(i64 channels,
                                                                                            const Body& body) {
  i64 c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) body(c, Vec<T>{});
  if (c + kLanes<T> / 2 <= channels) body(c, HalfVec<T>{}), c += kLanes<T> / 2;
  for (; c < channels; ++c) body(c, T(0));
}
template <class T> inline __attribute__((always_inline)) Vec<T> read(const T* p, Vec<T>) { return load(p); }
template <class T> inline __attribute__((always_inline)) HalfVec<T> read(const T* p, HalfVec<T>) {
  HalfVec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T> inline __attribute__((always_inline)) T read(const T* p, T) { return *p; }
template <class T> inline __attribute__((always_inline)) void write(T* p, Vec<T> v) { store(p, v); }
template <class T> inline __attribute__((always_inline)) void write(T* p, HalfVec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T> inline __attribute__((always_inline)) void write(T* p, T v) { *p = v; }

typedef u16 Bfloats __attribute__((vector_size(kVecBytes / 2)));
typedef u32 FloatBits __attribute__((vector_size(kVecBytes)));
inline __attribute__((always_inline)) Vec<float> read(const Bfloat* p, Vec<float>) {
#if defined(__AVX512F__)  // one instruction, where GCC makes four of the conversion
  return (Vec<float>)((FloatBits)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)p)) << 16);
#else
  Bfloats halves;
  std::memcpy(&halves, p, sizeof halves);
  return (Vec<float>)(__builtin_convertvector(halves, FloatBits) << 16);
#endif
}
inline __attribute__((always_inline)) float read(const Bfloat* p, float) { return float_of_bits(u32(p->bits) << 16); }
// Subnormals are rounded, or become 0 where the processor has an instruction.
inline __attribute__((always_inline)) void write(Bfloat* p, Vec<float> v) {
#if defined(__AVX512BF16__)
  const Bfloats halves = (Bfloats)_mm512_cvtneps_pbh((__m512)v);
#else
  const Bfloats halves = __builtin_convertvector(rounded_to_bfloat((FloatBits)v), Bfloats);
#endif
  std::memcpy(p, &halves, sizeof halves);
}
inline __attribute__((always_inline)) void write(Bfloat* p, float v) {
  p->bits = u16(rounded_to_bfloat(bits_of_float(v)));
}

#if defined(__AVX512F__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own _mm256_undefined_pd
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
template <class T> inline T total(Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)v);
#endif
  T sum = T(0);
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += v[lane];
  return sum;
}
#if defined(__AVX512F__)
#pragma GCC diagnostic pop
#endif
template <class T> inline T total(HalfVec<T> v) {
  T sum = T(0);
  for (int lane = 0; lane < kLanes<T> / 2; ++lane) sum += v[lane];
  return sum;
}
template <class T> inline T total(T v) { return v; }

// A sum over channels.
template <class T> struct ChannelSum {
  Vec<T> vectors{};
  T rest = T(0);
  void operator+=(Vec<T> v) { vectors += v; }
  void operator+=(T v) { rest += v; }
  T sum() const { return total<T>(vectors) + rest; }
};

}  // namespace polyfield
