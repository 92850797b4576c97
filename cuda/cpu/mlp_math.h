// The activations of polyfield/activations.h on whole vectors: polynomials for float, the header lane by lane for
// double (which exists for gradient checks, not for speed). The tests of the fused MLP tie the two together.
//
// Range reduction and polynomials of sine and cosine are those of the Cephes library (Moshier); errors stay below 3e-7.
#pragma once
#include "polyfield/activations.h"
#include "simd_math.h"

namespace polyfield {

#define PF_INLINE inline __attribute__((always_inline))

// `value - 0` is the value for every float, -0 included, so this costs one broadcast and no addition.
template <class T> PF_INLINE Vec<T> broadcast(T value) { return value - Vec<T>{}; }

template <class T> PF_INLINE Vec<T> bits_as(typename VecType<T>::mask bits) {
  Vec<T> v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T> PF_INLINE typename VecType<T>::mask bits_of(Vec<T> v) {
  typename VecType<T>::mask bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
template <class T> PF_INLINE Vec<T> absolute(Vec<T> v) { return v < 0 ? -v : v; }

// log(1 + u) = 2 atanh(s) for u in [0, 1] and s = u / (2 + u): accurate near 0.
PF_INLINE Vec<float> twice_atanh(Vec<float> s) {
  const Vec<float> q = s * s;
  Vec<float> p = broadcast(2.f / 15);
  p = p * q + 2.f / 13;
  p = p * q + 2.f / 11;
  p = p * q + 2.f / 9;
  p = p * q + 2.f / 7;
  p = p * q + 2.f / 5;
  p = p * q + 2.f / 3;
  p = p * q + 2.f;
  return p * s;
}

PF_INLINE void sine_cosine(Vec<float> x, Vec<float>& sine, Vec<float>& cosine) {
  using Bits = VecType<float>::mask;
  const Bits far = absolute<float>(x) > 8192.f;  // the reduction in three parts is good up to here (Cephes)
  bool any_far = false;
  for (int lane = 0; lane < kLanes<float>; ++lane) any_far |= far[lane] != 0;
  if (__builtin_expect(any_far, 0)) {
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      sine[lane] = std::sin(x[lane]);
      cosine[lane] = std::cos(x[lane]);
    }
    return;
  }
  const float round = 12582912.f;
  const Vec<float> n = (x * 0.636619772f + round) - round;  // x = n pi/2 + f
  const Vec<float> f = ((x - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.54978995489188216e-8f;
  const Vec<float> q = f * f;
  const Vec<float> s = ((q * -1.9515295891e-4f + 8.3321608736e-3f) * q - 1.6666654611e-1f) * (q * f) + f;
  const Vec<float> c =
      ((q * 2.443315711809948e-5f - 1.388731625493765e-3f) * q + 4.166664568298827e-2f) * (q * q) + (1.f - q * 0.5f);
  const Bits quadrant = __builtin_convertvector(n, Bits);
  const Bits swap = (quadrant & 1) != 0;
  sine = swap ? c : s;
  cosine = swap ? s : c;
  sine = (quadrant & 2) != 0 ? -sine : sine;
  cosine = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
}

template <int Activation> PF_INLINE void activate(Vec<float> z, Vec<float>& value, Vec<float>& slope) {
  if (Activation == kHiddenRelu) {
    value = z < 0 ? Vec<float>{} : z;  // keeps NaN
    slope = z <= 0 ? Vec<float>{} : broadcast(1.f);
  } else if (Activation == kHiddenSoftplus) {
    const Vec<float> scaled = z * float(kSoftplusBeta);
    // Past e^-50 the tail is nothing beside any other number here, but products with it would be slow subnormals.
    const Vec<float> away = absolute<float>(scaled), e = away > 50.f ? Vec<float>{} : vec_exp(-away);
    const Vec<float> inverse = 1.f / ((e + 1.f) * (e + 2.f));  // one division for both
    value = (z > 0 ? z : Vec<float>{}) + twice_atanh(e * (e + 1.f) * inverse) * (1.f / kSoftplusBeta);
    slope = (scaled > 0 ? broadcast(1.f) : e) * (e + 2.f) * inverse;
  } else if (Activation == kHiddenSine) {
    sine_cosine(z, value, slope);
  } else {
    value = z;
    slope = broadcast(1.f);
  }
}
template <int Activation> PF_INLINE void activate(Vec<double> z, Vec<double>& value, Vec<double>& slope) {
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    const auto both = hidden_activation<Activation>(double(z[lane]));
    value[lane] = both.value;
    slope[lane] = both.slope;
  }
}

// `values[0, count)` through an output activation, in place.
inline void output_activation_all(i64 activation, float* values, i64 count) {
  if (activation == kOutputNone) return;
  for (i64 i = 0; i < count; i += kLanes<float>) {
    const i64 here = min_of(i64(kLanes<float>), count - i);
    Vec<float> v{};
    if (here == kLanes<float>)
      v = load(values + i);
    else
      for (i64 k = 0; k < here; ++k) v[k] = values[i + k];
    const Vec<float> overflow = v > 88.7228f ? broadcast(__builtin_inff()) : vec_exp(v);  // vec_exp alone saturates
    v = activation == kOutputExp ? overflow : 1.f / (vec_exp(-v) + 1.f);
    if (here == kLanes<float>)
      store<float>(values + i, v);
    else
      for (i64 k = 0; k < here; ++k) values[i + k] = v[k];
  }
}
inline void output_activation_all(i64 activation, double* values, i64 count) {
  for (i64 i = 0; i < count; ++i) values[i] = output_activation(activation, values[i]);
}

}  // namespace polyfield
