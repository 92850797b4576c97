// Which activations the networks have, and their first and second derivatives. One element at a time, host and device.
//
// Hidden layers: 0 none, 1 ReLU, 2 softplus with beta = 100 (the sharpness of IGR and NeuS), 3 sine.
// Output layers: 0 none, 1 sigmoid, 2 exp.
// Derivatives are functions of what a forward pass keeps: the value h = f(z) and, where h alone does not tell, the
// slope d = f'(z). ReLU'' is taken as 0.
#pragma once
#include "common.h"

namespace polyfield {

enum HiddenActivation : int { kHiddenNone = 0, kHiddenRelu = 1, kHiddenSoftplus = 2, kHiddenSine = 3 };
enum OutputActivation : int { kOutputNone = 0, kOutputSigmoid = 1, kOutputExp = 2 };
constexpr int kSoftplusBeta = 100;

template <class T> struct ValueAndSlope {
  T value, slope;
};

// f(z) and f'(z) of a hidden layer.
template <int Activation, class T> PF_HD ValueAndSlope<T> hidden_activation(T z) {
  if (Activation == kHiddenRelu) return {z <= T(0) ? T(0) : z, z <= T(0) ? T(0) : T(1)};
  if (Activation == kHiddenSoftplus) {
    const T scaled = T(kSoftplusBeta) * z;
    const T e = exp(-fabs(scaled));  // in (0, 1]: never overflows
    const T tail = log1p(e) / T(kSoftplusBeta);
    return {(z > T(0) ? z : T(0)) + tail, (scaled > T(0) ? T(1) : e) / (T(1) + e)};
  }
  if (Activation == kHiddenSine) return {sin(z), cos(z)};
  return {z, T(1)};
}

// f''(z) from the kept value and slope.
template <int Activation, class T> PF_HD T hidden_curvature(T value, T slope) {
  if (Activation == kHiddenSoftplus) return T(kSoftplusBeta) * slope * (T(1) - slope);
  if (Activation == kHiddenSine) return -value;
  return T(0);
}

// Whether the slope must be kept beside the value (ReLU tells it by its sign).
PF_HD bool keeps_slope(i64 hidden_activation) {
  return hidden_activation == kHiddenSoftplus || hidden_activation == kHiddenSine;
}

template <class T> PF_HD T output_activation(i64 activation, T y) {
  if (activation == kOutputSigmoid) return T(1) / (T(1) + exp(-y));
  if (activation == kOutputExp) return exp(y);
  return y;
}

// d output / d y from the activated output.
template <class T> PF_HD T output_slope(i64 activation, T activated) {
  if (activation == kOutputSigmoid) return activated * (T(1) - activated);
  if (activation == kOutputExp) return activated;
  return T(1);
}

}  // namespace polyfield
