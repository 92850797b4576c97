// Real spherical harmonics of a unit direction, bands 0 to 3 (16 values), in the order and with the signs of 3D
// Gaussian splatting (Kerbl et al. 2023): within band l the orders m = -l .. l, each with the Condon-Shortley phase
// (-1)^m, so that band 1 is c (-y, z, -x). The polynomials are extended off the sphere as written; gradients are
// theirs.
#pragma once
#include "common.h"

namespace polyfield {

// out (bands * bands) for bands = 1 .. 4.
template <class T> PF_HD void sh_basis(T x, T y, T z, i64 bands, T* out) {
  out[0] = T(0.28209479177387814);  // sqrt(1 / 4 pi)
  if (bands < 2) return;
  const T c1 = T(0.4886025119029199);  // sqrt(3 / 4 pi)
  out[1] = -c1 * y;
  out[2] = c1 * z;
  out[3] = -c1 * x;
  if (bands < 3) return;
  const T c2 = T(1.0925484305920792);  // sqrt(15 / 4 pi)
  const T xx = x * x, yy = y * y, zz = z * z;
  out[4] = c2 * x * y;
  out[5] = -c2 * y * z;
  out[6] = T(0.31539156525252005) * (T(3) * zz - T(1));  // sqrt(5 / 16 pi)
  out[7] = -c2 * x * z;
  out[8] = T(0.5) * c2 * (xx - yy);
  if (bands < 4) return;
  const T c3 = T(0.5900435899266435);  // sqrt(35 / 32 pi)
  const T d3 = T(2.890611442640554);   // sqrt(105 / 4 pi)
  const T e3 = T(0.4570457994644658);  // sqrt(21 / 32 pi)
  out[9] = -c3 * y * (T(3) * xx - yy);
  out[10] = d3 * x * y * z;
  out[11] = -e3 * y * (T(5) * zz - T(1));
  out[12] = T(0.3731763325901154) * z * (T(5) * zz - T(3));  // sqrt(7 / 16 pi)
  out[13] = -e3 * x * (T(5) * zz - T(1));
  out[14] = T(0.5) * d3 * z * (xx - yy);
  out[15] = -c3 * x * (xx - T(3) * yy);
}

// direction_gradient[3] = sum over k of gradient[k] d out[k] / d (x, y, z).
template <class T> PF_HD void sh_basis_backward(T x, T y, T z, i64 bands, const T* gradient, T* direction_gradient) {
  T gx = T(0), gy = T(0), gz = T(0);
  if (bands >= 2) {
    const T c1 = T(0.4886025119029199);
    gy -= c1 * gradient[1];
    gz += c1 * gradient[2];
    gx -= c1 * gradient[3];
  }
  if (bands >= 3) {
    const T c2 = T(1.0925484305920792);
    gx += c2 * (y * gradient[4] - z * gradient[7] + x * gradient[8]);
    gy += c2 * (x * gradient[4] - z * gradient[5] - y * gradient[8]);
    gz += T(6 * 0.31539156525252005) * z * gradient[6] - c2 * (y * gradient[5] + x * gradient[7]);
  }
  if (bands >= 4) {
    const T c3 = T(0.5900435899266435), d3 = T(2.890611442640554), e3 = T(0.4570457994644658);
    const T f3 = T(0.3731763325901154), xx = x * x, yy = y * y, five = T(5) * z * z - T(1);
    gx += T(-6) * c3 * x * y * gradient[9] + d3 * y * z * gradient[10] - e3 * five * gradient[13] +
          d3 * z * x * gradient[14] - T(3) * c3 * (xx - yy) * gradient[15];
    gy += T(-3) * c3 * (xx - yy) * gradient[9] + d3 * x * z * gradient[10] - e3 * five * gradient[11] -
          d3 * z * y * gradient[14] + T(6) * c3 * x * y * gradient[15];
    gz += d3 * x * y * gradient[10] + f3 * (T(15) * z * z - T(3)) * gradient[12] -
          T(10) * e3 * z * (y * gradient[11] + x * gradient[13]) + T(0.5) * d3 * (xx - yy) * gradient[14];
  }
  direction_gradient[0] = gx;
  direction_gradient[1] = gy;
  direction_gradient[2] = gz;
}

}  // namespace polyfield
