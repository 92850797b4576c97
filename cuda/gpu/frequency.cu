// The frequency encoding: one thread an input (sample, d), which owns that input's columns of the sample's row and its
// row of the Jacobian.
#include "polyfield/frequency.h"
#include "prelude.h"

namespace polyfield {

// Where input e of the flat (n, D) finds its columns: the input's own at `first`, sine and cosine of an octave after.
struct InputColumns {
  i64 sample, input, inputs, width, include_input;
  __device__ InputColumns(i64 e, i64 d, i64 octaves, i64 include)
      : sample(e / d), input(e % d), inputs(d), width(d * (include + 2 * octaves)), include_input(include) {}
  __device__ i64 sine(i64 octave) const { return inputs * (include_input + 2 * octave) + input; }
};

template <class T>
__device__ void frequency_forward(const T* x, i64 e, const InputColumns& at, i64 octaves, T* out, T* jacobian) {
  T *row = out + at.sample * at.width, *slopes = jacobian ? jacobian + e * at.width : nullptr;
  for (i64 column = 0; slopes && column < at.width; ++column) slopes[column] = T(0);
  if (at.include_input) {
    row[at.input] = x[e];
    if (slopes) slopes[at.input] = T(1);
  }
  for (i64 k = 0; k < octaves; ++k) {
    T sine, cosine;
    sincos_pi(x[e] * T(u64(1) << k), sine, cosine);
    const i64 column = at.sine(k);
    row[column] = sine;
    row[column + at.inputs] = cosine;
    if (!slopes) continue;
    slopes[column] = octave_rate<T>(k) * cosine;
    slopes[column + at.inputs] = -octave_rate<T>(k) * sine;
  }
}

template <class T>
__device__ T frequency_backward(const T* x, i64 e, const InputColumns& at, i64 octaves, const T* grad,
                                const T* jacobian_grad) {
  const T* row = grad + at.sample * at.width;
  const T* slopes = jacobian_grad ? jacobian_grad + e * at.width : nullptr;
  T total = at.include_input ? row[at.input] : T(0);
  for (i64 k = 0; k < octaves; ++k) {
    T sine, cosine;
    sincos_pi(x[e] * T(u64(1) << k), sine, cosine);
    const i64 column = at.sine(k);
    const T rate = octave_rate<T>(k);
    T sum = row[column] * cosine - row[column + at.inputs] * sine;
    if (slopes) sum -= rate * (slopes[column] * sine + slopes[column + at.inputs] * cosine);
    total += rate * sum;
  }
  return total;
}

}  // namespace polyfield

using namespace polyfield;

// `jacobian` (n, D, width) and `jacobian_grad` may be null.
#define PF_FREQUENCY(T, SUFFIX)                                                                                     \
  PF_KERNEL(pf_frequency_encode_forward_##SUFFIX,                                                                   \
            (const T* x, i64 n, i64 inputs, i64 octaves, i64 include_input, T* out, T* jacobian)) {                 \
    const i64 e = thread_number();                                                                                  \
    if (e >= n * inputs) return;                                                                                    \
    frequency_forward<T>(x, e, InputColumns(e, inputs, octaves, include_input), octaves, out, jacobian);            \
  }                                                                                                                 \
  PF_KERNEL(pf_frequency_encode_backward_##SUFFIX, (const T* x, i64 n, i64 inputs, i64 octaves, i64 include_input,  \
                                                    const T* grad, const T* jacobian_grad, T* x_gradient)) {        \
    const i64 e = thread_number();                                                                                  \
    if (e >= n * inputs) return;                                                                                    \
    x_gradient[e] =                                                                                                 \
        frequency_backward<T>(x, e, InputColumns(e, inputs, octaves, include_input), octaves, grad, jacobian_grad); \
  }

PF_FREQUENCY(float, f32)
PF_FREQUENCY(double, f64)
