// Adam over a parameter: one thread a row, looping with the stride of the launch. The corrections of the bias depend on
// the step alone; one thread of a block computes them.
#include "polyfield/adam.h"
#include "prelude.h"

namespace polyfield {

template <class T> struct AdamArguments {
  i64 rows, channels, step;
  double lr, beta1, beta2, epsilon, weight_decay;
  bool skip_untouched;
};

template <class T>
__device__ void adam_rows(T* parameter, const T* gradient, T* m, T* v, const AdamArguments<T>& a, AdamStep<T>* shared) {
  if (threadIdx.x == 0) {
    const double rest1 = 1 - pow(a.beta1, double(a.step)), rest2 = 1 - pow(a.beta2, double(a.step));
    *shared = {T(a.beta1), T(a.beta2), T(a.epsilon), T(a.weight_decay), T(a.lr / rest1), T(1 / rest2)};
  }
  __syncthreads();
  const AdamStep<T> s = *shared;
  for (i64 row = thread_number(); row < a.rows; row += thread_count()) {
    const i64 begin = row * a.channels, end = begin + a.channels;
    bool touched = !a.skip_untouched;
    for (i64 k = begin; k < end; ++k) touched |= gradient[k] != T(0);  // NaN counts as touched
    for (i64 k = begin; touched && k < end; ++k) adam_element(parameter[k], m[k], v[k], gradient[k], s);
  }
}

}  // namespace polyfield

using namespace polyfield;

#define PF_ADAM(T, SUFFIX)                                                                                            \
  PF_KERNEL(pf_adam_update_##SUFFIX,                                                                                  \
            (T * parameter, const T* gradient, T* m, T* v, i64 rows, i64 channels, i64 step, double lr, double beta1, \
             double beta2, double epsilon, double weight_decay, i64 skip_untouched)) {                                \
    __shared__ AdamStep<T> shared;                                                                                    \
    adam_rows<T>(parameter, gradient, m, v,                                                                           \
                 {rows, channels, step, lr, beta1, beta2, epsilon, weight_decay, skip_untouched != 0}, &shared);      \
  }

PF_ADAM(float, f32)
PF_ADAM(double, f64)
