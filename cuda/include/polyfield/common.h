// What every kernel header stands on: host/device qualifiers, fixed-width integers and scalar maths that need no
// system header, so that NVRTC can compile the same text that GCC and Clang compile for the CPU.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define PF_HD __host__ __device__ __forceinline__
#else
#include <cmath>
#define PF_HD inline __attribute__((always_inline))
#endif

namespace polyfield {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
using std::atan2;
using std::ceil;
using std::cos;
using std::exp;
using std::fabs;
using std::floor;
using std::fma;
using std::log;
using std::log1p;
using std::sin;
using std::sqrt;
#endif

template <class T> PF_HD T min_of(T a, T b) { return a < b ? a : b; }
template <class T> PF_HD T max_of(T a, T b) { return a > b ? a : b; }
template <class T> PF_HD T clamp(T value, T low, T high) { return min_of(max_of(value, low), high); }
template <class T> PF_HD T unit_clamp(T x) { return x > T(0) ? (x < T(1) ? x : T(1)) : T(0); }  // NaN -> 0

// a b + c rounded once, on machines with and without FMA: a position then lies in the same cell on all of them.
PF_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
  return fmaf(a, b, c);
#elif defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  return float(double(a) * double(b) + double(c));
#endif
}
PF_HD double multiply_add(double a, double b, double c) { return a * b + c; }

}  // namespace polyfield
