// The hash grid encoding. Reading: (level, sample) after (level, sample), samples of one level side by side, so that a
// warp reads one level's entries. Adding to the table: the same, by atomic sums. Gradients of positions: one thread a
// sample, levels in order, so that they do not depend on the launch. Atomic sums of floats depend on their order; where
// runs must repeat exactly, the same kernel sums fixed-point integers instead.
#include "polyfield/hash_grid.h"
#include "prelude.h"

namespace polyfield {

// Level `number` of the rows that the CPU library is given too.
__device__ inline HashLevel hash_level(const double* level_table, i64 number) {
  HashLevel level;
  hash_levels(1, level_table + 5 * number, &level);
  return level;
}

__device__ inline float read_entry(float value) { return value; }
__device__ inline double read_entry(double value) { return value; }
__device__ inline float read_entry(Half value) { return half_to_float(value); }

template <class E> struct alignas(2 * sizeof(E)) EntryPair {
  E first, second;
};

// One sample at one level: its cell, and the channels of its corners.
template <class T, class E> struct Corners {
  HashCell<T> cell;
  const E* entries;
  i64 channels;
  __device__ Corners(const T* positions, i64 sample, const E* table, const HashLevel& level, i64 channel_count)
      : entries(table + channel_count * i64(level.offset)), channels(channel_count) {
    const T* p = positions + 3 * sample;
    hash_cell(level, p[0], p[1], p[2], cell);
  }
  // The blend of one channel and its derivatives with respect to the fractions.
  __device__ Trilinear<T> blend(i64 channel) const {
    T corner[8];
    for (int c = 0; c < 8; ++c) corner[c] = read_entry(entries[channels * i64(cell.index[c]) + channel]);
    return blended(corner);
  }
  // Of channels `channel`, which is even as their number is, and the next: one load a corner.
  __device__ void blend_pair(i64 channel, Trilinear<T> (&out)[2]) const {
    T first[8], second[8];
    for (int c = 0; c < 8; ++c) {
      const E* place = entries + channels * i64(cell.index[c]) + channel;
      const EntryPair<E> pair = *reinterpret_cast<const EntryPair<E>*>(place);
      first[c] = read_entry(pair.first);
      second[c] = read_entry(pair.second);
    }
    out[0] = blended(first);
    out[1] = blended(second);
  }
  __device__ Trilinear<T> blended(const T (&corner)[8]) const {
    Trilinear<T> out;
    trilinear(corner, cell.fraction[0], cell.fraction[1], cell.fraction[2], out);
    return out;
  }
};

struct HashBatch {
  const double* level_table;
  i64 samples, levels, channels;
  __device__ i64 width() const { return levels * channels; }
};

// One task: `sample` at level `number`.
template <class T, class E>
__device__ void hash_forward_at(const HashBatch& batch, i64 number, i64 sample, const T* positions, const E* table,
                                T* features, T* derivatives) {
  const i64 width = batch.width();
  const Corners<T, E> corners(positions, sample, table, hash_level(batch.level_table, number), batch.channels);
  const auto write = [&](i64 c, const Trilinear<T>& blend) {
    const i64 column = number * batch.channels + c;
    features[sample * width + column] = blend.value;
    if (!derivatives) return;
    T* rows = derivatives + 3 * sample * width + column;
    rows[0] = blend.x * corners.cell.slope[0];
    rows[width] = blend.y * corners.cell.slope[1];
    rows[2 * width] = blend.z * corners.cell.slope[2];
  };
  if (batch.channels % 2) {
    for (i64 c = 0; c < batch.channels; ++c) write(c, corners.blend(c));
    return;
  }
  for (i64 c = 0; c < batch.channels; c += 2) {
    Trilinear<T> pair[2];
    corners.blend_pair(c, pair);
    write(c, pair[0]);
    write(c + 1, pair[1]);
  }
}

template <class T, class E>
__device__ void hash_forward(const HashBatch& batch, const T* positions, const E* table, T* features, T* derivatives) {
  for (i64 task = thread_number(); task < batch.levels * batch.samples; task += thread_count())
    hash_forward_at(batch, task / batch.samples, task % batch.samples, positions, table, features, derivatives);
}

// Where gradients of the table go: add(number of the parameter, value); pair(...) for two neighbours, the first even.
template <class T> struct AddFloat {
  T* sums;
  __device__ void operator()(i64 place, T value) const { atomicAdd(sums + place, value); }
  __device__ void pair(i64 place, T first, T second) const { atomic_add_pair(sums + place, first, second); }
};
template <class T> struct AddFixed {
  u64* sums;  // two's complement
  double scale;
  __device__ void operator()(i64 place, T value) const {
    atomicAdd(sums + place, u64(i64(rint(double(value) * scale))));
  }
  __device__ void pair(i64 place, T first, T second) const {
    (*this)(place, first);
    (*this)(place + 1, second);
  }
};

template <class T, class Add>
__device__ void hash_scatter_at(const HashBatch& batch, i64 number, i64 sample, const T* positions,
                                const T* features_grad, const T* derivatives_grad, const Add& add) {
  const i64 width = batch.width();
  const HashLevel level = hash_level(batch.level_table, number);
  const T* p = positions + 3 * sample;
  HashCell<T> cell;
  hash_cell(level, p[0], p[1], p[2], cell);
  const auto corners_of = [&](i64 c, T(&corner)[8]) {
    const i64 column = number * batch.channels + c;
    T along[3] = {T(0), T(0), T(0)};
    for (int a = 0; derivatives_grad && a < 3; ++a)
      along[a] = derivatives_grad[(3 * sample + a) * width + column] * cell.slope[a];
    trilinear_adjoint<T, T>(features_grad[sample * width + column], along[0], along[1], along[2], cell.fraction[0],
                            cell.fraction[1], cell.fraction[2], corner);
  };
  const auto place = [&](int k, i64 c) { return batch.channels * (i64(level.offset) + i64(cell.index[k])) + c; };
  T corner[8], next[8];
  if (batch.channels % 2 == 0) {
    for (i64 c = 0; c < batch.channels; c += 2) {
      corners_of(c, corner);
      corners_of(c + 1, next);
      for (int k = 0; k < 8; ++k) add.pair(place(k, c), corner[k], next[k]);
    }
  } else {
    for (i64 c = 0; c < batch.channels; ++c) {
      corners_of(c, corner);
      for (int k = 0; k < 8; ++k) add(place(k, c), corner[k]);
    }
  }
}

// `derivatives_grad` may be null.
template <class T, class Add>
__device__ void hash_scatter(const HashBatch& batch, const T* positions, const T* features_grad,
                             const T* derivatives_grad, const Add& add) {
  for (i64 task = thread_number(); task < batch.levels * batch.samples; task += thread_count())
    hash_scatter_at(batch, task / batch.samples, task % batch.samples, positions, features_grad, derivatives_grad, add);
}

template <class T>
__device__ void hash_position_gradient(const HashBatch& batch, const T* positions, const T* table,
                                       const T* features_grad, const T* derivatives_grad, T* position_gradient) {
  const i64 sample = thread_number(), width = batch.width();
  if (sample >= batch.samples) return;
  T total[3] = {T(0), T(0), T(0)};
  for (i64 number = 0; number < batch.levels; ++number) {
    const Corners<T, T> corners(positions, sample, table, hash_level(batch.level_table, number), batch.channels);
    const T* slope = corners.cell.slope;
    for (i64 c = 0; c < batch.channels; ++c) {
      const Trilinear<T> blend = corners.blend(c);
      const i64 column = number * batch.channels + c;
      const T g = features_grad[sample * width + column];
      T along[3] = {g * blend.x, g * blend.y, g * blend.z};
      if (derivatives_grad) {
        const T* h = derivatives_grad + 3 * sample * width + column;
        const T hx = h[0] * slope[0], hy = h[width] * slope[1], hz = h[2 * width] * slope[2];
        along[0] += hy * blend.xy + hz * blend.xz;
        along[1] += hx * blend.xy + hz * blend.yz;
        along[2] += hx * blend.xz + hy * blend.yz;
      }
      for (int a = 0; a < 3; ++a) total[a] += along[a] * slope[a];
    }
  }
  for (int a = 0; a < 3; ++a) position_gradient[3 * sample + a] = total[a];
}

}  // namespace polyfield

using namespace polyfield;

#define PF_HASH_FORWARD(T, E, SUFFIX)                                                                                  \
  PF_KERNEL(pf_hash_encode_forward_##SUFFIX, (const T* positions, Number n, const E* table, const double* level_table, \
                                              i64 levels, i64 channels, T* out)) {                                     \
    hash_forward<T, E>({level_table, n, levels, channels}, positions, table, out, nullptr);                            \
  }

// sums (entries, channels) += ; those of the second kernel are integers, to be divided by scale (1,).
#define PF_HASH_SCATTER(T, SUFFIX)                                                                                   \
  PF_KERNEL(pf_hash_scatter_##SUFFIX, (const T* positions, Number n, const double* level_table, i64 levels,          \
                                       i64 channels, const T* features_grad, const T* derivatives_grad, T* sums)) {  \
    hash_scatter({level_table, n, levels, channels}, positions, features_grad, derivatives_grad, AddFloat<T>{sums}); \
  }                                                                                                                  \
  PF_KERNEL(pf_hash_scatter_fixed_##SUFFIX,                                                                          \
            (const T* positions, Number n, const double* level_table, i64 levels, i64 channels,                      \
             const T* features_grad, const T* derivatives_grad, u64* sums, const double* scale)) {                   \
    hash_scatter({level_table, n, levels, channels}, positions, features_grad, derivatives_grad,                     \
                 AddFixed<T>{sums, *scale});                                                                         \
  }

#define PF_HASH_GRID(T, SUFFIX)                                                                                       \
  PF_HASH_FORWARD(T, T, SUFFIX)                                                                                       \
  PF_HASH_SCATTER(T, SUFFIX)                                                                                          \
  PF_KERNEL(pf_hash_jacobian_forward_##SUFFIX, (const T* positions, i64 n, const T* table, const double* level_table, \
                                                i64 levels, i64 channels, T* features, T* derivatives)) {             \
    hash_forward<T, T>({level_table, n, levels, channels}, positions, table, features, derivatives);                  \
  }                                                                                                                   \
  PF_KERNEL(pf_hash_position_gradient_##SUFFIX,                                                                       \
            (const T* positions, i64 n, const T* table, const double* level_table, i64 levels, i64 channels,          \
             const T* features_grad, const T* derivatives_grad, T* position_gradient)) {                              \
    hash_position_gradient<T>({level_table, n, levels, channels}, positions, table, features_grad, derivatives_grad,  \
                              position_gradient);                                                                     \
  }

PF_HASH_GRID(float, f32)
PF_HASH_GRID(double, f64)
PF_HASH_FORWARD(float, Half, f16)
