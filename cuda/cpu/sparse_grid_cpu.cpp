// The sparse grid of a batch: a sample after the other, channels in vectors. Backward sorts the samples by their cell
// along x; then each slab of rows (one x) is one task, which adds what the samples before it and in it have for it, in
// the order of the samples. A row is added to by one thread, so that results do not depend on the threads. A gradient
// of the touched rows alone is as long as a batch has vertices, whatever the size of the grid.
#include "parallel.h"
#include "polyfield/sparse_grid.h"
#include "simd.h"

namespace {

using namespace polyfield;

constexpr i64 kRun = 256;  // samples per task

// out += sum over k of weight[k] rows[place[k]]; vectors first, of which the last overlaps the one before it.
template <class T> void blend_rows(const T* rows, const i64* place, const T* weight, int corners, i64 channels,
                                   T* out) {
  const auto blend = [&](i64 c) {
    Vec<T> sum{};
    for (int k = 0; k < corners; ++k) sum += load(rows + place[k] + c) * weight[k];
    store(out + c, sum);
  };
  if (channels < kLanes<T>) {
    for (i64 c = 0; c < channels; ++c) {
      T sum = T(0);
      for (int k = 0; k < corners; ++k) sum += rows[place[k] + c] * weight[k];
      out[c] = sum;
    }
    return;
  }
  for (i64 c = 0; c + kLanes<T> <= channels; c += kLanes<T>) blend(c);
  if (channels % kLanes<T>) blend(channels - kLanes<T>);
}

// row += weight * values.
template <class T> inline void add_row(T* row, const T* values, T weight, i64 channels) {
  if (channels < kLanes<T>) {
    for (i64 c = 0; c < channels; ++c) row[c] += values[c] * weight;
    return;
  }
  const i64 last = channels - kLanes<T>;  // read before what it overlaps is written
  const Vec<T> end = load(row + last) + load(values + last) * weight;
  for (i64 c = 0; c < last; c += kLanes<T>) store(row + c, load(row + c) + load(values + c) * weight);
  store(row + last, end);
}

template <class T> T dot(const T* a, const T* b, i64 channels) {
  Vec<T> sums{};
  i64 c = 0;
  for (; c + kLanes<T> <= channels; c += kLanes<T>) sums += load(a + c) * load(b + c);
  T sum = T(0);
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += sums[lane];
  for (; c < channels; ++c) sum += a[c] * b[c];
  return sum;
}

template <class T> void forward(const SparseLattice& grid, const T* x, const T* rows, i64 channels, T* out) {
  const SparseCell<T> cell(grid, x);
  i64 place[8];
  T weight[8];
  int corners = 0;
  for (int k = 0; k < 8; ++k) {
    const i64 row = cell.row(grid, k);
    if (row < 0) continue;
    place[corners] = row * channels, weight[corners++] = cell.weight(k);
  }
  blend_rows(rows, place, weight, corners, channels, out);
}

template <class T>
void position_gradient(const SparseLattice& grid, const T* x, const T* rows, i64 channels, const T* gradient, T* out) {
  const SparseCell<T> cell(grid, x);
  T along[3] = {T(0), T(0), T(0)};
  for (int k = 0; k < 8; ++k) {
    const i64 row = cell.row(grid, k);
    if (row < 0) continue;
    T slopes[3];
    cell.slopes(k, slopes);
    const T value = dot(rows + row * channels, gradient, channels);
    for (int a = 0; a < 3; ++a) along[a] += slopes[a] * value;
  }
  for (int a = 0; a < 3; ++a) out[a] = along[a];
}

// Where the gradient of a row goes: its own place, or that of the row among those that were touched.
struct GradientPlaces {
  const i32* slots;  // by row, or null

  i64 of(i64 row) const { return slots ? i64(slots[row]) : row; }
};

// Adds a sample's gradient to its four corners of one slab: those ahead along x, or not.
template <class T>
void scatter(const SparseLattice& grid, const T* x, const T* gradient, i64 channels, bool ahead, GradientPlaces places,
             T* row_gradient) {
  const SparseCell<T> cell(grid, x);
  for (int k = ahead ? 4 : 0; k < (ahead ? 8 : 4); ++k) {
    const i64 row = cell.row(grid, k);
    if (row >= 0) add_row(row_gradient + places.of(row) * channels, gradient, cell.weight(k), channels);
  }
}

// Marks the rows round the samples. Threads may mark one row at once.
template <class T> void touched(const SparseLattice& grid, const T* x, i64 n, u8* marks, i64 threads) {
  parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const SparseCell<T> cell(grid, x + 3 * i);
      for (int k = 0; k < 8; ++k) {
        const i64 row = cell.row(grid, k);
        if (row >= 0) __atomic_store_n(marks + row, u8(1), __ATOMIC_RELAXED);
      }
    }
  });
}

template <class T>
void row_gradients(const SparseLattice& grid, const T* x, i64 n, const T* gradient, i64 channels, GradientPlaces places,
                   T* out, i64 threads) {
  static thread_local Scratch<i64> held;
  i64* first = held.reserve(grid.x + 1 + n);  // of the samples of each cell along x
  i64* order = first + grid.x + 1;
  const auto cell = [&](i64 i) { return GridPlace<T>(x[3 * i], grid.x).low; };
  for (i64 k = 0; k <= grid.x; ++k) first[k] = 0;
  for (i64 i = 0; i < n; ++i) ++first[cell(i) + 1];
  for (i64 k = 1; k <= grid.x; ++k) first[k] += first[k - 1];
  for (i64 i = 0; i < n; ++i) order[first[cell(i)]++] = i;
  for (i64 k = grid.x; k > 0; --k) first[k] = first[k - 1];
  first[0] = 0;
  parallel_for(threads, grid.x, [&](i64 slab) {
    for (int ahead = slab > 0; ahead >= 0; --ahead)
      for (i64 k = first[slab - ahead]; k < first[slab - ahead + 1]; ++k)
        scatter(grid, x + 3 * order[k], gradient + order[k] * channels, channels, ahead != 0, places, out);
  });
}

template <class T>
void variation(const SparseLattice& grid, const T* rows, const i32* cells, i64 channels, i64 first, i64 count, T weight,
               T* gradient, i64 threads) {
  parallel_chunks(threads, count, kRun, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const i64 row = (first + i) % grid.rows;
      const VariationStencil stencil(grid, row, cells[row]);
      T* __restrict out = gradient + row * channels;
      for (i64 c = 0; c < channels; ++c)
        out[c] += weight * stencil.slope<T>([&](i64 other) { return rows[other * channels + c]; });
    }
  });
}

}  // namespace

// index (sx, sy, sz), x (n, 3), rows (count, channels), out and grad (n, channels). x_gradient (n, 3) and row_gradient
// (count, channels), zero before, may be null; with `slots` (count) it has a row for each slot. Touched: marks (count)
// becomes 1 for each row round a position. Variation: adds `weight` times the derivative of the total variation to
// `gradient` (rows, channels) of `count` rows from `first` on, going on with row 0 after the last.
#define PF_SPARSE(T, SUFFIX)                                                                                           \
  PF_API void pf_sparse_grid_forward_##SUFFIX(const T* x, i64 n, const T* rows, i64 count, i64 channels,               \
                                              const i32* index, i64 sx, i64 sy, i64 sz, T* out, i64 threads) {         \
    const SparseLattice grid{index, sx, sy, sz, count};                                                                \
    parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {                                                        \
      for (i64 i = begin; i < end; ++i) forward(grid, x + 3 * i, rows, channels, out + i * channels);                  \
    });                                                                                                                \
  }                                                                                                                    \
  PF_API void pf_sparse_grid_backward_##SUFFIX(const T* x, i64 n, const T* rows, i64 count, i64 channels,              \
                                               const i32* index, i64 sx, i64 sy, i64 sz, const T* grad, T* x_gradient, \
                                               T* row_gradient, const i32* slots, i64 threads) {                       \
    const SparseLattice grid{index, sx, sy, sz, count};                                                                \
    if (row_gradient) row_gradients(grid, x, n, grad, channels, {slots}, row_gradient, threads);                       \
    if (!x_gradient) return;                                                                                           \
    parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {                                                        \
      for (i64 i = begin; i < end; ++i)                                                                                \
        position_gradient(grid, x + 3 * i, rows, channels, grad + i * channels, x_gradient + 3 * i);                   \
    });                                                                                                                \
  }                                                                                                                    \
  PF_API void pf_sparse_grid_touched_##SUFFIX(const T* x, i64 n, i64 count, const i32* index, i64 sx, i64 sy, i64 sz,  \
                                              u8* marks, i64 threads) {                                                \
    touched({index, sx, sy, sz, count}, x, n, marks, threads);                                                         \
  }                                                                                                                    \
  PF_API void pf_sparse_variation_##SUFFIX(const T* rows, i64 count, i64 channels, const i32* index, i64 sx, i64 sy,   \
                                           i64 sz, const i32* cells, i64 first, i64 length, double weight,             \
                                           T* gradient, i64 threads) {                                                 \
    variation({index, sx, sy, sz, count}, rows, cells, channels, first, length, T(weight), gradient, threads);         \
  }

PF_SPARSE(float, f32)
PF_SPARSE(double, f64)
