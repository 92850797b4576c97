// Modulated normalisation: a warp a row, the lanes side by side along its channels. Sums are of 32 parts, then of the
// warp. A row is read again from the nearest cache.
#include "polyfield/bfloat.h"
#include "polyfield/modulate.h"
#include "warp.h"

namespace polyfield {

template <class T> __device__ __forceinline__ T read(const T* p) { return *p; }
template <class T> __device__ __forceinline__ void write(T* p, T value) { *p = value; }
__device__ __forceinline__ float read(const Bfloat* p) { return __uint_as_float(u32(p->bits) << 16); }
__device__ __forceinline__ void write(Bfloat* p, float value) {
  p->bits = u16(rounded_to_bfloat(__float_as_uint(value)));
}

template <bool Relu, class S, class T>
__device__ void modulate(const S* z, i64 channels, T scale, T shift, S* y, T* moments) {
  T sum = T(0), squares = T(0);
  for (i64 c = lane_number(); c < channels; c += kWarp) sum += read(z + c);
  const T mean = warp_total(sum) / T(channels);
  for (i64 c = lane_number(); c < channels; c += kWarp) squares += (read(z + c) - mean) * (read(z + c) - mean);
  const ModulatedRow<T> row{mean, inverse_deviation(warp_total(squares), channels), scale, shift};
  for (i64 c = lane_number(); c < channels; c += kWarp) write(y + c, row.template value<Relu>(read(z + c)));
  if (lane_number() == 0) moments[0] = row.mean, moments[1] = row.inverse_deviation;
}

template <bool Relu, class S, class T>
__device__ void modulate_backward(const S* gradient, const S* z, i64 channels, const ModulatedRow<T>& row,
                                  S* z_gradient, T* d_scale, T* d_shift) {
  T scales = T(0), shifts = T(0);
  for (i64 c = lane_number(); c < channels; c += kWarp) {
    const T g = row.template masked<Relu>(read(z + c), read(gradient + c));
    scales += g * row.normalised(read(z + c)), shifts += g;
  }
  scales = warp_total(scales), shifts = warp_total(shifts);
  if (lane_number() == 0) *d_scale = scales, *d_shift = shifts;
  const ModulatedGradient<T> at(row, scales, shifts, channels);
  for (i64 c = lane_number(); c < channels; c += kWarp) {
    const T g = row.template masked<Relu>(read(z + c), read(gradient + c));
    write(z_gradient + c, at(g, row.normalised(read(z + c))));
  }
}

}  // namespace polyfield

using namespace polyfield;

// Arguments as the CPU library's.
#define PF_MODULATE(S, T, SUFFIX)                                                                              \
  PF_KERNEL(pf_modulate_forward_##SUFFIX,                                                                      \
            (const S* z, i64 n, i64 channels, const T* scales, const T* shifts, i64 relu, S* y, T* moments)) { \
    const i64 i = warp_number();                                                                               \
    if (i >= n) return;                                                                                        \
    z += i * channels, y += i * channels;                                                                      \
    if (relu)                                                                                                  \
      modulate<true>(z, channels, scales[i], shifts[i], y, moments + 2 * i);                                   \
    else                                                                                                       \
      modulate<false>(z, channels, scales[i], shifts[i], y, moments + 2 * i);                                  \
  }                                                                                                            \
  PF_KERNEL(pf_modulate_backward_##SUFFIX,                                                                     \
            (const S* gradient, const S* z, i64 n, i64 channels, const T* scales, const T* shifts, i64 relu,   \
             const T* moments, S* z_gradient, T* d_scales, T* d_shifts)) {                                     \
    const i64 i = warp_number();                                                                               \
    if (i >= n) return;                                                                                        \
    gradient += i * channels, z += i * channels, z_gradient += i * channels;                                   \
    const ModulatedRow<T> row{moments[2 * i], moments[2 * i + 1], scales[i], shifts[i]};                       \
    if (relu)                                                                                                  \
      modulate_backward<true>(gradient, z, channels, row, z_gradient, d_scales + i, d_shifts + i);             \
    else                                                                                                       \
      modulate_backward<false>(gradient, z, channels, row, z_gradient, d_scales + i, d_shifts + i);            \
  }

PF_MODULATE(float, float, f32)
PF_MODULATE(double, double, f64)
PF_MODULATE(Bfloat, float, bf16)
