// The frequency encoding of a batch: sines of 64 inputs at a time in vectors, then written to their places in the rows.
// Row of one sample with D inputs: [x (D, if asked)] then per octave [sin (D), cos (D)].
#include <cstring>

#include "parallel.h"
#include "polyfield/frequency.h"

namespace {

using namespace polyfield;

constexpr i64 kBlock = 64;  // inputs per block
constexpr i64 kRun = 4096;  // inputs per task

// Where input e = (sample, d) of a block has its feature columns.
struct Rows {
  i64 inputs, octaves, include_input, width;
  Rows(i64 d, i64 k, i64 include) : inputs(d), octaves(k), include_input(include), width(d * (include + 2 * k)) {}
  i64 column(i64 octave) const { return inputs * (include_input + 2 * octave); }  // of sin; cos is `inputs` further
};

// body(element, sample, input) for elements begin .. end, without a division per element.
template <class Body> inline void for_each_element(i64 begin, i64 end, i64 inputs, const Body& body) {
  i64 sample = begin / inputs, input = begin % inputs;
  for (i64 e = begin; e < end; ++e) {
    body(e, sample, input);
    if (++input == inputs) input = 0, ++sample;
  }
}

template <class T> inline void block_sincos(const T* x, i64 count, i64 octave, T* sine, T* cosine) {
  const T factor = T(u64(1) << octave);
  T u[kBlock];
  for (i64 i = 0; i < kBlock; ++i) u[i] = i < count ? x[i] * factor : T(0);
  for (i64 i = 0; i < kBlock; ++i) sincos_pi(u[i], sine[i], cosine[i]);
}

// body(begin, end) over blocks of the flat input (n * D).
template <class Body> void for_each_block(i64 count, i64 threads, const Body& body) {
  parallel_chunks(threads, count, kRun, [&](i64 first, i64 last) {
    for (i64 begin = first; begin < last; begin += kBlock) body(begin, min_of(begin + kBlock, last));
  });
}

// `jacobian` (n, D, width) may be null; it is cleared here.
template <class T>
void forward(const T* x, i64 n, const Rows& rows, T* out, T* jacobian, i64 threads) {
  const i64 d = rows.inputs;
  for_each_block(n * d, threads, [&](i64 begin, i64 end) {
    if (jacobian) std::memset(jacobian + begin * rows.width, 0, size_t((end - begin) * rows.width) * sizeof(T));
    if (rows.include_input)
      for_each_element(begin, end, d, [&](i64 e, i64 sample, i64 input) {
        out[sample * rows.width + input] = x[e];
        if (jacobian) jacobian[e * rows.width + input] = T(1);
      });
    for (i64 k = 0; k < rows.octaves; ++k) {
      T sine[kBlock], cosine[kBlock];
      block_sincos(x + begin, end - begin, k, sine, cosine);
      const i64 column = rows.column(k);
      const T rate = octave_rate<T>(k);
      for_each_element(begin, end, d, [&](i64 e, i64 sample, i64 input) {
        T* row = out + sample * rows.width + column + input;
        row[0] = sine[e - begin];
        row[d] = cosine[e - begin];
        if (jacobian) {
          T* slope = jacobian + e * rows.width + column + input;
          slope[0] = rate * cosine[e - begin];
          slope[d] = -rate * sine[e - begin];
        }
      });
    }
  });
}

// x_gradient (n, D) from the cotangents of the features and, where not null, of the Jacobian.
template <class T>
void backward(const T* x, i64 n, const Rows& rows, const T* grad, const T* jacobian_grad, T* x_gradient, i64 threads) {
  const i64 d = rows.inputs;
  for_each_block(n * d, threads, [&](i64 begin, i64 end) {
    for_each_element(begin, end, d, [&](i64 e, i64 sample, i64 input) {
      x_gradient[e] = rows.include_input ? grad[sample * rows.width + input] : T(0);
    });
    for (i64 k = 0; k < rows.octaves; ++k) {
      T sine[kBlock], cosine[kBlock];
      block_sincos(x + begin, end - begin, k, sine, cosine);
      const i64 column = rows.column(k);
      const T rate = octave_rate<T>(k);
      for_each_element(begin, end, d, [&](i64 e, i64 sample, i64 input) {
        const T s = sine[e - begin], c = cosine[e - begin];
        const T* g = grad + sample * rows.width + column + input;
        T sum = g[0] * c - g[d] * s;
        if (jacobian_grad) {
          const T* h = jacobian_grad + e * rows.width + column + input;
          sum -= rate * (h[0] * s + h[d] * c);
        }
        x_gradient[e] += rate * sum;
      });
    }
  });
}

}  // namespace

#define PF_FREQUENCY(T, SUFFIX)                                                                                    \
  PF_API void pf_frequency_encode_forward_##SUFFIX(const T* x, i64 n, i64 inputs, i64 octaves, i64 include_input,  \
                                                   T* out, T* jacobian, i64 threads) {                             \
    forward<T>(x, n, Rows(inputs, octaves, include_input), out, jacobian, threads);                                \
  }                                                                                                                \
  PF_API void pf_frequency_encode_backward_##SUFFIX(const T* x, i64 n, i64 inputs, i64 octaves, i64 include_input, \
                                                    const T* grad, const T* jacobian_grad, T* x_gradient,          \
                                                    i64 threads) {                                                 \
    backward<T>(x, n, Rows(inputs, octaves, include_input), grad, jacobian_grad, x_gradient, threads);             \
  }

PF_FREQUENCY(float, f32)
PF_FREQUENCY(double, f64)
