// The hidden layers of CAM's network (Lee et al. 2024, arXiv 2311.14993), from the normalised channels zhat of a row on
// (polyfield/modulate.h): h = max(scale zhat + shift, 0), and the gradient of h before its ReLU.
#pragma once
#include "common.h"
#include "polyfield/modulate.h"

namespace polyfield {

// The scales and shifts (rows, 2, hidden) of `count` rows of a tile; rows past them are left as they are normalised.
template <class T> struct Moduli {
  const T* values;
  i64 count, hidden;
  PF_HD T scale(i64 row, i64 layer) const { return row < count ? values[2 * row * hidden + layer] : T(1); }
  PF_HD T shift(i64 row, i64 layer) const { return row < count ? values[(2 * row + 1) * hidden + layer] : T(0); }
};

// V is T or a vector of T.
template <class V, class T> PF_HD V modulated_value(V zhat, T scale, T shift) {
  const V y = zhat * scale + shift;
  return y < V{} ? V{} : y;  // NaN stays
}
template <class V, class T> PF_HD V modulated_mask(V zhat, T scale, T shift, V gradient) {
  return zhat * scale + shift <= V{} ? V{} : gradient;
}

}  // namespace polyfield
