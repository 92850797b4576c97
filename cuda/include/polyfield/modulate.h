// Modulated normalisation (CAM, Lee et al. 2024, arXiv 2311.14993, section 3): the channels z_c of a row are brought to
// mean 0 and variance 1, zhat_c = (z_c - mean) / sqrt(variance + epsilon), then scaled and shifted by two values of the
// row, y_c = scale zhat_c + shift; a ReLU may follow. With g the gradient of y, masked by the ReLU,
//   d scale = sum g zhat,  d shift = sum g,  d z_c = scale / deviation (g_c - d shift / C - zhat_c d scale / C).
#pragma once
#include "common.h"

namespace polyfield {

constexpr double kVarianceEpsilon = 1e-5;  // CAM's released code, and the default of torch's layer_norm

// What all channels of a row share. V is T or a vector of T.
template <class T> struct ModulatedRow {
  T mean, inverse_deviation, scale, shift;

  template <class V> PF_HD V normalised(V z) const { return (z - mean) * inverse_deviation; }
  template <bool Relu, class V> PF_HD V value(V z) const {
    const V y = normalised(z) * scale + shift;
    if constexpr (Relu) return y < V{} ? V{} : y;  // NaN stays
    return y;
  }
  // The gradient before the ReLU.
  template <bool Relu, class V> PF_HD V masked(V z, V gradient) const {
    if constexpr (Relu) return value<false>(z) <= V{} ? V{} : gradient;
    return gradient;
  }
};

template <class T> PF_HD T inverse_deviation(T squares, i64 channels) {
  return T(1) / sqrt(squares / T(channels) + T(kVarianceEpsilon));
}

// From d scale and d shift of the row and the masked gradient of the channel to that of z.
template <class T> struct ModulatedGradient {
  T factor, mean_shift, mean_scale;
  PF_HD ModulatedGradient(const ModulatedRow<T>& row, T d_scale, T d_shift, i64 channels)
      : factor(row.scale * row.inverse_deviation),
        mean_shift(d_shift / T(channels)),
        mean_scale(d_scale / T(channels)) {}
  template <class V> PF_HD V operator()(V masked, V normalised) const {
    return (masked - mean_shift - normalised * mean_scale) * factor;
  }
};

}  // namespace polyfield
