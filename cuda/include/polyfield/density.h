// Which density a raw network output stands for, and the derivative that training uses. One element, host and device.
//
// Codes: 0 exp, 1 shifted softplus log(1 + exp(x - 1)) (mip-NeRF's shift), 2 ReLU. The derivative of exp is
// exp(clamp(x, -15, 15)), as instant-ngp's: the true one underflows to a dead gradient on one side and explodes on the
// other. The forward value is never clamped. The same codes are in fields/ops/activations.py.
#pragma once
#include "common.h"

namespace polyfield {

enum DensityActivation : int { kDensityExp = 0, kDensitySoftplus = 1, kDensityRelu = 2 };
constexpr int kDensityExpClamp = 15;

template <int Activation, class T> PF_HD T density_value(T raw) {
  if (Activation == kDensityExp) return exp(raw);
  if (Activation == kDensitySoftplus) {
    const T z = raw - T(1);
    return (z < T(0) ? T(0) : z) + log1p(exp(-fabs(z)));  // NaN stays NaN through z
  }
  return raw <= T(0) ? T(0) : raw;
}

template <int Activation, class T> PF_HD T density_derivative(T raw) {
  if (Activation == kDensityExp) return exp(clamp(raw, T(-kDensityExpClamp), T(kDensityExpClamp)));
  if (Activation == kDensitySoftplus) {
    const T z = raw - T(1), e = exp(-fabs(z));
    return (z < T(0) ? e : T(1)) / (T(1) + e);
  }
  return raw > T(0) ? T(1) : T(0);
}

}  // namespace polyfield
