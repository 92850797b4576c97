// Adam over a whole parameter, in runs of rows; or over some of its rows.
#include "adam_rows.h"
#include "parallel.h"

#include <initializer_list>

namespace {

using namespace polyfield;

constexpr i64 kAhead = 8;                 // rows by which they are fetched ahead
constexpr i64 kLine = 64;                 // bytes that memory gives at once
constexpr i64 kRunValues = i64(1) << 15;  // four arrays of it stay within a core's L2

template <class T>
void adam(T* parameter, T* m, T* v, T* gradient, i64 rows, i64 channels, const AdamStep<T>& step, bool skip_untouched,
          i64 threads) {
  const i64 run = max_of(kRunValues / max_of(channels, i64(1)), i64(1));
  parallel_chunks(threads, rows, run, [&](i64 begin, i64 end) {
    const i64 at = begin * channels;
    adam_rows(parameter + at, m + at, v + at, gradient + at, end - begin, channels, step, skip_untouched, false);
  });
}

// A row that will be written.
template <class T> void fetch(const T* row, i64 channels) {
  for (i64 c = 0; c < channels; c += kLine / i64(sizeof(T))) __builtin_prefetch(row + c, 1);
}

// Row which[i] has gradient i; those that name no row are left out. No row may be named twice.
template <class T>
void adam_of(const i64* which, i64 count, T* parameter, T* m, T* v, T* gradient, i64 rows, i64 channels,
             const AdamStep<T>& step, i64 threads) {
  const i64 run = max_of(kRunValues / max_of(channels, i64(1)), i64(1));
  parallel_chunks(threads, count, run, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      if (i + kAhead < end)
        for (T* values : {parameter, m, v}) fetch(values + which[i + kAhead] * channels, channels);
      if (which[i] < 0 || which[i] >= rows) continue;
      const i64 at = which[i] * channels;
      adam_rows(parameter + at, m + at, v + at, gradient + i * channels, 1, channels, step, true, false);
    }
  });
}

}  // namespace

// `gradient` is only read.
#define PF_ADAM(T, SUFFIX)                                                                                            \
  PF_API void pf_adam_update_##SUFFIX(T* parameter, T* gradient, T* m, T* v, i64 rows, i64 channels, i64 step,        \
                                      double lr, double beta1, double beta2, double epsilon, double weight_decay,     \
                                      i64 skip_untouched, i64 threads) {                                              \
    adam<T>(parameter, m, v, gradient, rows, channels, adam_step<T>(lr, beta1, beta2, epsilon, weight_decay, step),   \
            skip_untouched != 0, threads);                                                                            \
  }                                                                                                                   \
  PF_API void pf_adam_of_rows_##SUFFIX(const i64* which, i64 count, T* parameter, T* gradient, T* m, T* v, i64 rows,  \
                                       i64 channels, i64 step, double lr, double beta1, double beta2, double epsilon, \
                                       i64 threads) {                                                                 \
    adam_of<T>(which, count, parameter, m, v, gradient, rows, channels,                                               \
               adam_step<T>(lr, beta1, beta2, epsilon, 0.0, step), threads);                                          \
  }

PF_ADAM(float, f32)
PF_ADAM(double, f64)
