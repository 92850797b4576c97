// Spherical harmonics of a batch of directions: a loop over the header.
#include "parallel.h"
#include "polyfield/spherical_harmonics.h"

namespace {

using namespace polyfield;

constexpr i64 kRun = 4096;  // directions per task

template <int Bands, class T> void forward(const T* directions, i64 n, T* out, i64 threads) {
  parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const T* d = directions + 3 * i;
      sh_basis<T>(d[0], d[1], d[2], Bands, out + Bands * Bands * i);
    }
  });
}

template <int Bands, class T>
void backward(const T* directions, i64 n, const T* grad, T* direction_gradient, i64 threads) {
  parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const T* d = directions + 3 * i;
      sh_basis_backward<T>(d[0], d[1], d[2], Bands, grad + Bands * Bands * i, direction_gradient + 3 * i);
    }
  });
}

}  // namespace

#define PF_SPHERICAL_HARMONICS(T, SUFFIX)                                                                           \
  PF_API void pf_spherical_harmonics_forward_##SUFFIX(const T* directions, i64 n, i64 bands, T* out, i64 threads) { \
    switch (bands) {                                                                                                \
      case 1:                                                                                                       \
        return forward<1>(directions, n, out, threads);                                                             \
      case 2:                                                                                                       \
        return forward<2>(directions, n, out, threads);                                                             \
      case 3:                                                                                                       \
        return forward<3>(directions, n, out, threads);                                                             \
      default:                                                                                                      \
        return forward<4>(directions, n, out, threads);                                                             \
    }                                                                                                               \
  }                                                                                                                 \
  PF_API void pf_spherical_harmonics_backward_##SUFFIX(const T* directions, i64 n, i64 bands, const T* grad,        \
                                                       T* direction_gradient, i64 threads) {                        \
    switch (bands) {                                                                                                \
      case 1:                                                                                                       \
        return backward<1>(directions, n, grad, direction_gradient, threads);                                       \
      case 2:                                                                                                       \
        return backward<2>(directions, n, grad, direction_gradient, threads);                                       \
      case 3:                                                                                                       \
        return backward<3>(directions, n, grad, direction_gradient, threads);                                       \
      default:                                                                                                      \
        return backward<4>(directions, n, grad, direction_gradient, threads);                                       \
    }                                                                                                               \
  }

PF_SPHERICAL_HARMONICS(float, f32)
PF_SPHERICAL_HARMONICS(double, f64)
