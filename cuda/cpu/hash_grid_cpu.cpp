// The hash grid encoding over a batch: positions (n, 3) -> rows (n, levels * channels), its Jacobian and the backward
// passes. Work is cut into (level, run of samples) for reading and into levels for adding to the table, so that no two
// threads write one entry and results do not depend on the thread count. Between the two row layouts lies a level-major
// scratch of bounded size.
#include "hash_grid_levels.h"
#include "huge_pages.h"
#include "parallel.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // see hash_grid_levels.h

namespace {

using namespace polyfield;

constexpr i64 kMaxLevels = 32;
constexpr i64 kBatchValues = i64(1) << 23;  // level-major scratch: 32 MiB of float, 2^18 samples of 16 levels x 2
constexpr i64 kLongestRun = i64(1) << 15;   // samples per (level, run): short enough to balance, long enough to reuse
constexpr i64 kShortestRun = 1024;
constexpr i64 kRowRun = 2048;     // samples per transposition task
constexpr i64 kFewSamples = 512;  // below this a parallel region costs more than it saves

// One call's shape, and its scratch for one batch of samples: positions and `planes` level-major arrays.
template <class T> struct Batches {
  HashLevel level[kMaxLevels];
  i64 levels, channels, features, samples, planes, capacity, threads;
  T *x, *y, *z, *position_grad[3], *major;

  Batches(const double* level_table, i64 level_count, i64 channel_count, i64 n, i64 plane_count, i64 thread_count)
      : levels(level_count),
        channels(channel_count),
        features(level_count * channel_count),
        samples(n),
        planes(plane_count),
        threads(n < kFewSamples ? 1 : thread_count) {
    hash_levels(levels, level_table, level);
    capacity = max_of(kBatchValues / (features * planes) / kHashBlock, i64(1)) * kHashBlock;
    capacity = min_of(capacity, (n + kHashBlock - 1) / kHashBlock * kHashBlock);
    static thread_local Scratch<T> scratch;
    x = scratch.reserve(capacity * (6 + features * planes));
    y = x + capacity, z = y + capacity;
    for (int a = 0; a < 3; ++a) position_grad[a] = z + (1 + a) * capacity;
    major = z + 4 * capacity;
  }
  T* plane(i64 p, i64 l) const { return major + (p * levels + l) * capacity * channels; }

  // body(first, count): x, y, z hold samples first .. first + count.
  template <class Body> void for_each(const T* positions, const Body& body) const {
    for (i64 first = 0; first < samples; first += capacity) {
      const i64 count = min_of(capacity, samples - first);
      parallel_chunks(threads, count, kRowRun, [&](i64 begin, i64 end) {
        positions_to_soa(positions + 3 * (first + begin), end - begin, x + begin, y + begin, z + begin);
      });
      body(first, count);
    }
  }
  // body(level, begin, end), the fine and therefore slow levels first.
  template <class Body> void for_each_run(i64 count, const Body& body) const {
    const i64 even = count * levels / (4 * threads) / kHashBlock * kHashBlock;
    const i64 run = clamp(even, kShortestRun, kLongestRun), runs = (count + run - 1) / run;
    parallel_for(threads, levels * runs, [&](i64 task) {
      const i64 begin = task % runs * run;
      body(levels - 1 - task / runs, begin, min_of(begin + run, count));
    });
  }
  void plane_to_rows(i64 p, i64 count, T* rows, i64 row_width) const {
    parallel_chunks(threads, count, kRowRun, [&](i64 begin, i64 end) {
      level_major_to_rows(plane(p, 0), capacity, levels, channels, begin, end - begin, rows + begin * row_width,
                          row_width);
    });
  }
  void position_gradients_to_rows(i64 count, T* rows) const {
    parallel_chunks(threads, count, kRowRun, [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i)
        for (int a = 0; a < 3; ++a) rows[3 * i + a] = position_grad[a][i];
    });
  }
  void rows_to_plane(const T* rows, i64 row_width, i64 count, i64 p) const {
    parallel_chunks(threads, count, kRowRun, [&](i64 begin, i64 end) {
      rows_to_level_major(rows + begin * row_width, row_width, end - begin, plane(p, 0), capacity, levels, channels,
                          begin);
    });
  }
};

template <class T, class E>
void encode(const T* positions, i64 n, const E* table, const double* level_table, i64 levels, i64 channels, T* out,
            i64 threads) {
  if (n == 0) return;
  const Batches<T> batch(level_table, levels, channels, n, 1, threads);
  advise_huge_pages(out, n * batch.features * i64(sizeof(T)));
  with_channels(channels, [&](auto constant) {
    constexpr int C = decltype(constant)::value;
    batch.for_each(positions, [&](i64 first, i64 count) {
      batch.for_each_run(count, [&](i64 l, i64 begin, i64 end) {
        const HashLevel& level = batch.level[l];
        hash_encode_level<T, C, E>(level, table + i64(C) * level.offset, batch.x + begin, batch.y + begin,
                                   batch.z + begin, end - begin, batch.plane(0, l) + C * begin);
      });
      batch.plane_to_rows(0, count, out + first * batch.features, batch.features);
    });
  });
}

template <class T>
void jacobian(const T* positions, i64 n, const T* table, const double* level_table, i64 levels, i64 channels,
              T* features, T* derivatives, i64 threads) {
  if (n == 0) return;
  const Batches<T> batch(level_table, levels, channels, n, 4, threads);
  const i64 width = batch.features;
  advise_huge_pages(features, n * width * i64(sizeof(T)));
  advise_huge_pages(derivatives, 3 * n * width * i64(sizeof(T)));
  with_channels(channels, [&](auto constant) {
    constexpr int C = decltype(constant)::value;
    batch.for_each(positions, [&](i64 first, i64 count) {
      batch.for_each_run(count, [&](i64 l, i64 begin, i64 end) {
        const HashLevel& level = batch.level[l];
        T* plane[4];
        for (int p = 0; p < 4; ++p) plane[p] = batch.plane(p, l) + C * begin;
        hash_jacobian_level<T, C>(level, table + i64(C) * level.offset, batch.x + begin, batch.y + begin,
                                  batch.z + begin, end - begin, plane[0], plane[1], plane[2], plane[3]);
      });
      batch.plane_to_rows(0, count, features + first * width, width);
      for (i64 a = 0; a < 3; ++a) batch.plane_to_rows(1 + a, count, derivatives + (3 * first + a) * width, 3 * width);
    });
  });
}

template <class T> i64 table_bytes(const Batches<T>& batch) {
  const HashLevel& last = batch.level[batch.levels - 1];
  return batch.channels * i64(last.offset + last.size) * i64(sizeof(T));
}

// Level by level, so that every sample adds its levels in one order.
template <class T, int C>
void add_position_gradients(const Batches<T>& batch, const T* table, i64 count, bool with_derivatives) {
  for (int a = 0; a < 3; ++a) std::memset(batch.position_grad[a], 0, size_t(batch.capacity) * sizeof(T));
  for (i64 l = 0; l < batch.levels; ++l) {
    const HashLevel& level = batch.level[l];
    const T* entries = table + i64(C) * level.offset;
    parallel_chunks(batch.threads, count, kRowRun, [&](i64 begin, i64 end) {
      const T *x = batch.x + begin, *y = batch.y + begin, *z = batch.z + begin, *grad[4];
      for (int p = 0; p < batch.planes; ++p) grad[p] = batch.plane(p, l) + C * begin;
      T* out[3];
      for (int a = 0; a < 3; ++a) out[a] = batch.position_grad[a] + begin;
      if (with_derivatives)
        hash_position_gradient_level<T, C, true>(level, entries, x, y, z, end - begin, grad[0], grad[1], grad[2],
                                                 grad[3], out);
      else
        hash_position_gradient_level<T, C, false>(level, entries, x, y, z, end - begin, grad[0], nullptr, nullptr,
                                                  nullptr, out);
    });
  }
}

// Both outputs may be null. `derivatives_grad` null: backward of `encode`, else of `jacobian`.
template <class T>
void backward(const T* positions, i64 n, const T* table, const double* level_table, i64 levels, i64 channels,
              const T* features_grad, const T* derivatives_grad, T* table_gradient, T* position_gradient, i64 threads) {
  const Batches<T> batch(level_table, levels, channels, n, derivatives_grad ? 4 : 1, threads);
  const i64 width = batch.features;
  if (table_gradient) advise_huge_pages(table_gradient, table_bytes(batch));
  if (table_gradient && n == 0) std::memset(table_gradient, 0, size_t(table_bytes(batch)));
  with_channels(channels, [&](auto constant) {
    constexpr int C = decltype(constant)::value;
    batch.for_each(positions, [&](i64 first, i64 count) {
      batch.rows_to_plane(features_grad + first * width, width, count, 0);
      for (i64 a = 0; derivatives_grad && a < 3; ++a)
        batch.rows_to_plane(derivatives_grad + (3 * first + a) * width, 3 * width, count, 1 + a);
      if (table_gradient)
        parallel_for(batch.threads, levels, [&](i64 task) {
          const i64 l = levels - 1 - task;
          const HashLevel& level = batch.level[l];
          T* entries = table_gradient + i64(C) * level.offset;
          // Cleared here and not before: it leaves the level in this core's cache.
          if (first == 0) std::memset(entries, 0, size_t(C) * level.size * sizeof(T));
          if (derivatives_grad)
            hash_jacobian_scatter_level<T, C>(level, batch.x, batch.y, batch.z, count, batch.plane(0, l),
                                              batch.plane(1, l), batch.plane(2, l), batch.plane(3, l), entries);
          else
            hash_scatter_level<T, C>(level, batch.x, batch.y, batch.z, count, batch.plane(0, l), entries);
        });
      if (position_gradient) {
        add_position_gradients<T, C>(batch, table, count, derivatives_grad != nullptr);
        batch.position_gradients_to_rows(count, position_gradient + 3 * first);
      }
    });
  });
}

}  // namespace

#define PF_HASH_ENCODE(T, SUFFIX)                                                                                     \
  PF_API void pf_hash_encode_forward_##SUFFIX(const T* positions, i64 n, const T* table, const double* level_table,   \
                                              i64 levels, i64 channels, T* out, i64 threads) {                        \
    encode<T, T>(positions, n, table, level_table, levels, channels, out, threads);                                   \
  }                                                                                                                   \
  PF_API void pf_hash_encode_backward_##SUFFIX(const T* positions, i64 n, const T* table, const double* level_table,  \
                                               i64 levels, i64 channels, const T* features_grad, T* table_gradient,   \
                                               T* position_gradient, i64 threads) {                                   \
    backward<T>(positions, n, table, level_table, levels, channels, features_grad, nullptr, table_gradient,           \
                position_gradient, threads);                                                                          \
  }                                                                                                                   \
  PF_API void pf_hash_jacobian_forward_##SUFFIX(const T* positions, i64 n, const T* table, const double* level_table, \
                                                i64 levels, i64 channels, T* features, T* derivatives, i64 threads) { \
    jacobian<T>(positions, n, table, level_table, levels, channels, features, derivatives, threads);                  \
  }                                                                                                                   \
  PF_API void pf_hash_jacobian_backward_##SUFFIX(                                                                     \
      const T* positions, i64 n, const T* table, const double* level_table, i64 levels, i64 channels,                 \
      const T* features_grad, const T* derivatives_grad, T* table_gradient, T* position_gradient, i64 threads) {      \
    backward<T>(positions, n, table, level_table, levels, channels, features_grad, derivatives_grad, table_gradient,  \
                position_gradient, threads);                                                                          \
  }

PF_HASH_ENCODE(float, f32)
PF_HASH_ENCODE(double, f64)

// Float positions and features, binary16 entries; the backward passes take the float table.
PF_API void pf_hash_encode_forward_f16(const float* positions, i64 n, const Half* table, const double* level_table,
                                       i64 levels, i64 channels, float* out, i64 threads) {
  encode<float, Half>(positions, n, table, level_table, levels, channels, out, threads);
}
