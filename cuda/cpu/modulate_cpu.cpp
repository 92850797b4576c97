// Modulated normalisation of a batch: a row after the other, its channels in vectors. A row stays in the nearest cache
// from its first pass to its last, so that memory is read and written once.
#include "polyfield/modulate.h"

#include "channels.h"
#include "parallel.h"

namespace {

using namespace polyfield;

constexpr i64 kRun = 64;  // rows per task: of 256 channels some 10 microseconds

template <bool Relu, class S, class T>
void forward_row(const S* z, i64 channels, T scale, T shift, S* y, T* moments) {
  ChannelSum<T> total, squares;
  over_channels<T>(channels, [&](i64 c, auto zero) { total += read(z + c, zero); });
  const T mean = total.sum() / T(channels);
  over_channels<T>(channels, [&](i64 c, auto zero) {
    const auto off = read(z + c, zero) - mean;
    squares += off * off;
  });
  const ModulatedRow<T> row{mean, inverse_deviation(squares.sum(), channels), scale, shift};
  over_channels<T>(channels, [&](i64 c, auto zero) { write(y + c, row.template value<Relu>(read(z + c, zero))); });
  moments[0] = row.mean, moments[1] = row.inverse_deviation;
}

template <bool Relu, class S, class T>
void backward_row(const S* gradient, const S* z, i64 channels, const ModulatedRow<T>& row, S* z_gradient, T* d_scale,
                  T* d_shift) {
  ChannelSum<T> scales, shifts;
  over_channels<T>(channels, [&](i64 c, auto zero) {
    const auto of_z = read(z + c, zero);
    const auto g = row.template masked<Relu>(of_z, read(gradient + c, zero));
    scales += g * row.normalised(of_z);
    shifts += g;
  });
  *d_scale = scales.sum(), *d_shift = shifts.sum();
  const ModulatedGradient<T> at(row, *d_scale, *d_shift, channels);
  over_channels<T>(channels, [&](i64 c, auto zero) {
    const auto of_z = read(z + c, zero);
    const auto g = row.template masked<Relu>(of_z, read(gradient + c, zero));
    write(z_gradient + c, at(g, row.normalised(of_z)));
  });
}

template <bool Relu, class S, class T>
void forward(const S* z, i64 n, i64 channels, const T* scales, const T* shifts, S* y, T* moments, i64 threads) {
  parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i)
      forward_row<Relu>(z + i * channels, channels, scales[i], shifts[i], y + i * channels, moments + 2 * i);
  });
}

template <bool Relu, class S, class T>
void backward(const S* gradient, const S* z, i64 n, i64 channels, const T* scales, const T* shifts, const T* moments,
              S* z_gradient, T* d_scales, T* d_shifts, i64 threads) {
  parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const ModulatedRow<T> row{moments[2 * i], moments[2 * i + 1], scales[i], shifts[i]};
      const i64 at = i * channels;
      backward_row<Relu>(gradient + at, z + at, channels, row, z_gradient + at, d_scales + i, d_shifts + i);
    }
  });
}

}  // namespace

// z, y and their gradients (n, channels) of type S; scales, shifts and their gradients (n,), moments (n, 2), the mean
// and the inverse of the deviation, of type T.
#define PF_MODULATE(S, T, SUFFIX)                                                                                    \
  PF_API void pf_modulate_forward_##SUFFIX(const S* z, i64 n, i64 channels, const T* scales, const T* shifts,        \
                                           i64 relu, S* y, T* moments, i64 threads) {                                \
    (relu ? forward<true, S, T> : forward<false, S, T>)(z, n, channels, scales, shifts, y, moments, threads);        \
  }                                                                                                                  \
  PF_API void pf_modulate_backward_##SUFFIX(const S* gradient, const S* z, i64 n, i64 channels, const T* scales,     \
                                            const T* shifts, i64 relu, const T* moments, S* z_gradient, T* d_scales, \
                                            T* d_shifts, i64 threads) {                                              \
    (relu ? backward<true, S, T> : backward<false, S, T>)(gradient, z, n, channels, scales, shifts, moments,         \
                                                          z_gradient, d_scales, d_shifts, threads);                  \
  }

PF_MODULATE(float, float, f32)
PF_MODULATE(double, double, f64)
PF_MODULATE(Bfloat, float, bf16)
