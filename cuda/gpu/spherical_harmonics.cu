// Spherical harmonics: one thread a direction.
#include "polyfield/spherical_harmonics.h"
#include "prelude.h"

using namespace polyfield;

#define PF_SPHERICAL_HARMONICS(T, SUFFIX)                                                                \
  PF_KERNEL(pf_spherical_harmonics_forward_##SUFFIX, (const T* directions, i64 n, i64 bands, T* out)) {  \
    const i64 i = thread_number();                                                                       \
    if (i >= n) return;                                                                                  \
    const T* d = directions + 3 * i;                                                                     \
    sh_basis<T>(d[0], d[1], d[2], bands, out + bands * bands * i);                                       \
  }                                                                                                      \
  PF_KERNEL(pf_spherical_harmonics_backward_##SUFFIX,                                                    \
            (const T* directions, i64 n, i64 bands, const T* grad, T* direction_gradient)) {             \
    const i64 i = thread_number();                                                                       \
    if (i >= n) return;                                                                                  \
    const T* d = directions + 3 * i;                                                                     \
    sh_basis_backward<T>(d[0], d[1], d[2], bands, grad + bands * bands * i, direction_gradient + 3 * i); \
  }

PF_SPHERICAL_HARMONICS(float, f32)
PF_SPHERICAL_HARMONICS(double, f64)
