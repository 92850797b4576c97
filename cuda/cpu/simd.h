// The widest vector of the level this file is compiled for, by compiler vector extensions: arithmetic operators work on
// `Vec<T>` as on scalars and contract to FMA. Intrinsics appear only where the extensions cannot say it (gathers,
// bf16).
#pragma once
#include <cstring>

#include "api.h"
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace polyfield {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class T> struct VecType;
template <> struct VecType<float> {
  typedef float type __attribute__((vector_size(kVecBytes)));
  typedef float half __attribute__((vector_size(kVecBytes / 2)));
  typedef i32 mask __attribute__((vector_size(kVecBytes)));
};
template <> struct VecType<double> {
  typedef double type __attribute__((vector_size(kVecBytes)));
  typedef double half __attribute__((vector_size(kVecBytes / 2)));
  typedef i64 mask __attribute__((vector_size(kVecBytes)));
};
template <class T> using Vec = typename VecType<T>::type;
template <class T> using HalfVec = typename VecType<T>::half;
template <class T> constexpr int kLanes = kVecBytes / int(sizeof(T));

template <class T> inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T> inline __attribute__((always_inline)) void store(T* p, Vec<T> v) { std::memcpy(p, &v, sizeof v); }
template <class T> inline __attribute__((always_inline)) Vec<T> splat(T value) { return Vec<T>{} + value; }

}  // namespace polyfield
