// The frequency encoding of NeRF (Mildenhall et al. 2020, equation 4): sin and cos of 2^k pi x.
//
// The angle is kept in half turns: 2^k x is exact, and so is what remains of it after whole quarter turns, so that high
// octaves are as accurate as low ones (sin of a rounded 2^k pi x is not). The rest is a Taylor series on [-pi/4, pi/4].
#pragma once
#include "common.h"

namespace polyfield {

constexpr double kPi = 3.14159265358979323846;

// First omitted terms at pi/4: float 2e-9 (sin) and 2.5e-8 (cos); double 8e-20 and 2e-18.
PF_HD float sin_series(float t, float tt) {
  return t + t * tt * (-1.6666667e-1f + tt * (8.3333333e-3f + tt * (-1.9841270e-4f + tt * 2.7557319e-6f)));
}
PF_HD float cos_series(float tt) {
  return 1.0f + tt * (-0.5f + tt * (4.1666667e-2f + tt * (-1.3888889e-3f + tt * 2.4801587e-5f)));
}
PF_HD double sin_series(double t, double tt) {
  double p = 1.0 / 355687428096000.0;  // 17!
  p = -1.0 / 1307674368000.0 + tt * p;
  p = 1.0 / 6227020800.0 + tt * p;
  p = -1.0 / 39916800.0 + tt * p;
  p = 1.0 / 362880.0 + tt * p;
  p = -1.0 / 5040.0 + tt * p;
  p = 1.0 / 120.0 + tt * p;
  p = -1.0 / 6.0 + tt * p;
  return t + t * tt * p;
}
PF_HD double cos_series(double tt) {
  double p = 1.0 / 20922789888000.0;  // 16!
  p = -1.0 / 87178291200.0 + tt * p;
  p = 1.0 / 479001600.0 + tt * p;
  p = -1.0 / 3628800.0 + tt * p;
  p = 1.0 / 40320.0 + tt * p;
  p = -1.0 / 720.0 + tt * p;
  p = 1.0 / 24.0 + tt * p;
  p = -0.5 + tt * p;
  return 1.0 + tt * p;
}

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
PF_HD float nearest(float v) { return rintf(v); }
PF_HD double nearest(double v) { return rint(v); }
#else
PF_HD float nearest(float v) { return __builtin_rintf(v); }
PF_HD double nearest(double v) { return __builtin_rint(v); }
#endif

// sin and cos of pi * u. Infinity and NaN give NaN.
template <class T> PF_HD void sincos_pi(T u, T& sine, T& cosine) {
  const T rest = u - T(2) * nearest(T(0.5) * u);  // [-1, 1], exact
  const T turn = nearest(T(2) * rest);            // quarter turns: -2, -1, 0, 1, 2
  const T t = (rest - T(0.5) * turn) * T(kPi);    // [-pi / 4, pi / 4]
  const T tt = t * t, s = sin_series(t, tt), c = cos_series(tt);
  const bool odd = turn == T(1) || turn == T(-1), half = turn == T(2) || turn == T(-2);
  const T a = odd ? c : s, b = odd ? s : c;
  sine = half || turn == T(-1) ? -a : a;
  cosine = half || turn == T(1) ? -b : b;
}

// 2^octave * pi: what a derivative of octave `octave` is multiplied by.
template <class T> PF_HD T octave_rate(i64 octave) { return T(kPi) * T(u64(1) << octave); }

}  // namespace polyfield
