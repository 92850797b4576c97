// The sparse grid: a thread a channel of a sample, so that the lanes of a warp read the channels of one row side by
// side. Gradients of rows are atomic sums, of floats or, where runs must repeat exactly, of fixed-point integers.
// Gradients of positions: a thread a sample. Total variation: a thread a channel of a row, without atomics.
#include "polyfield/sparse_grid.h"
#include "prelude.h"

namespace polyfield {

template <class T>
__device__ T sparse_forward(const SparseLattice& grid, const T* x, const T* rows, i64 channels, i64 channel) {
  const SparseCell<T> cell(grid, x);
  T sum = T(0);
  for (int k = 0; k < 8; ++k) {
    const i64 row = cell.row(grid, k);
    if (row >= 0) sum += rows[row * channels + channel] * cell.weight(k);
  }
  return sum;
}

template <class T, class Add>
__device__ void sparse_scatter(const SparseLattice& grid, const T* x, i64 channels, i64 channel, T gradient,
                               const Add& add) {
  const SparseCell<T> cell(grid, x);
  for (int k = 0; k < 8; ++k) {
    const i64 row = cell.row(grid, k);
    if (row >= 0) add(row * channels + channel, gradient * cell.weight(k));
  }
}

template <class T>
__device__ void sparse_position_gradient(const SparseLattice& grid, const T* x, const T* rows, i64 channels,
                                         const T* gradient, T* out) {
  const SparseCell<T> cell(grid, x);
  T along[3] = {T(0), T(0), T(0)};
  for (int k = 0; k < 8; ++k) {
    const i64 row = cell.row(grid, k);
    if (row < 0) continue;
    T slopes[3], value = T(0);
    cell.slopes(k, slopes);
    for (i64 c = 0; c < channels; ++c) value += rows[row * channels + c] * gradient[c];
    for (int a = 0; a < 3; ++a) along[a] += slopes[a] * value;
  }
  for (int a = 0; a < 3; ++a) out[a] = along[a];
}

template <class T>
__device__ void sparse_variation(const SparseLattice& grid, const T* rows, const i32* cells, i64 channels, i64 row,
                                 i64 channel, T weight, T* gradient) {
  const VariationStencil stencil(grid, row, cells[row]);
  gradient[row * channels + channel] +=
      weight * stencil.slope<T>([&](i64 other) { return rows[other * channels + channel]; });
}

}  // namespace polyfield

using namespace polyfield;

// Arguments as the CPU library's. `sums` += gradients; those of the fixed form are integers, to be divided by `scale`.
#define PF_SPARSE(T, SUFFIX)                                                                                          \
  PF_KERNEL(pf_sparse_grid_forward_##SUFFIX, (const T* x, i64 n, const T* rows, i64 count, i64 channels,              \
                                              const i32* index, i64 sx, i64 sy, i64 sz, T* out)) {                    \
    const SparseLattice grid{index, sx, sy, sz, count};                                                               \
    for (i64 task = thread_number(); task < n * channels; task += thread_count())                                     \
      out[task] = sparse_forward(grid, x + 3 * (task / channels), rows, channels, task % channels);                   \
  }                                                                                                                   \
  PF_KERNEL(pf_sparse_grid_scatter_##SUFFIX, (const T* x, i64 n, const T* /*rows*/, i64 count, i64 channels,          \
                                              const i32* index, i64 sx, i64 sy, i64 sz, const T* grad, T* sums)) {    \
    const SparseLattice grid{index, sx, sy, sz, count};                                                               \
    for (i64 task = thread_number(); task < n * channels; task += thread_count())                                     \
      sparse_scatter(grid, x + 3 * (task / channels), channels, task % channels, grad[task],                          \
                     [&](i64 place, T value) { atomicAdd(sums + place, value); });                                    \
  }                                                                                                                   \
  PF_KERNEL(pf_sparse_grid_scatter_fixed_##SUFFIX,                                                                    \
            (const T* x, i64 n, const T* /*rows*/, i64 count, i64 channels, const i32* index, i64 sx, i64 sy, i64 sz, \
             const T* grad, u64* sums, const double* scale)) {                                                        \
    const SparseLattice grid{index, sx, sy, sz, count};                                                               \
    for (i64 task = thread_number(); task < n * channels; task += thread_count())                                     \
      sparse_scatter(grid, x + 3 * (task / channels), channels, task % channels, grad[task],                          \
                     [&](i64 place, T value) { atomicAdd(sums + place, u64(i64(rint(double(value) * *scale)))); });   \
  }                                                                                                                   \
  PF_KERNEL(pf_sparse_grid_position_gradient_##SUFFIX,                                                                \
            (const T* x, i64 n, const T* rows, i64 count, i64 channels, const i32* index, i64 sx, i64 sy, i64 sz,     \
             const T* grad, T* x_gradient)) {                                                                         \
    const i64 i = thread_number();                                                                                    \
    if (i >= n) return;                                                                                               \
    const SparseLattice grid{index, sx, sy, sz, count};                                                               \
    sparse_position_gradient(grid, x + 3 * i, rows, channels, grad + i * channels, x_gradient + 3 * i);               \
  }                                                                                                                   \
  PF_KERNEL(pf_sparse_variation_##SUFFIX,                                                                             \
            (const T* rows, i64 count, i64 channels, const i32* index, i64 sx, i64 sy, i64 sz, const i32* cells,      \
             i64 first, i64 length, double weight, T* gradient)) {                                                    \
    const SparseLattice grid{index, sx, sy, sz, count};                                                               \
    for (i64 task = thread_number(); task < length * channels; task += thread_count())                                \
      sparse_variation(grid, rows, cells, channels, (first + task / channels) % count, task % channels, T(weight),    \
                       gradient);                                                                                     \
  }

PF_SPARSE(float, f32)
PF_SPARSE(double, f64)
