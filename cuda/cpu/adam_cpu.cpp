// Adam over a whole parameter, in runs of rows.
#include "adam_rows.h"
#include "parallel.h"

namespace {

using namespace polyfield;

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

}  // namespace

// `gradient` is only read.
#define PF_ADAM(T, SUFFIX)                                                                                          \
  PF_API void pf_adam_update_##SUFFIX(T* parameter, T* gradient, T* m, T* v, i64 rows, i64 channels, i64 step,      \
                                      double lr, double beta1, double beta2, double epsilon, double weight_decay,   \
                                      i64 skip_untouched, i64 threads) {                                            \
    adam<T>(parameter, m, v, gradient, rows, channels, adam_step<T>(lr, beta1, beta2, epsilon, weight_decay, step), \
            skip_untouched != 0, threads);                                                                          \
  }

PF_ADAM(float, f32)
PF_ADAM(double, f64)
