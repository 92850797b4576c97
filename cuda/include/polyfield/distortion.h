// How far is a ray's weight spread? The distortion loss of mip-NeRF 360 (Barron et al. 2022, eq. 15), one ray, host and
// device: sum_ij w_i w_j |t_i - t_j| + 1/3 sum_i w_i^2 delta_i, with t the (ascending) midpoints of the intervals.
//
// In O(n): A_i = sum_(j<i) w_j (t_i - t_j) obeys A_i = A_(i-1) + W_(i-1) (t_i - t_(i-1)), which cancels nothing.
#pragma once
#include "common.h"

namespace polyfield {

template <class T> PF_HD T distortion_ray(i64 count, const T* w, const T* t, const T* delta) {
  T loss = T(0), spread = T(0), sum = T(0);
  for (i64 i = 0; i < count; ++i) {
    if (i > 0) spread += sum * (t[i] - t[i - 1]);
    loss += T(2) * w[i] * spread + w[i] * w[i] * delta[i] * T(1.0 / 3.0);
    sum += w[i];
  }
  return loss;
}

// d loss / d w_i = 2 (A_i + B_i) + 2/3 w_i delta_i, with B_i = sum_(j>i) w_j (t_j - t_i).
template <class T> PF_HD void distortion_ray_backward(i64 count, const T* w, const T* t, const T* delta, T gradient,
                                                      T* out) {
  T spread = T(0), sum = T(0);
  for (i64 i = 0; i < count; ++i) {
    if (i > 0) spread += sum * (t[i] - t[i - 1]);
    out[i] = spread;
    sum += w[i];
  }
  spread = sum = T(0);
  for (i64 i = count - 1; i >= 0; --i) {
    if (i + 1 < count) spread += sum * (t[i + 1] - t[i]);
    out[i] = gradient * (T(2) * (out[i] + spread) + w[i] * delta[i] * T(2.0 / 3.0));
    sum += w[i];
  }
}

}  // namespace polyfield
