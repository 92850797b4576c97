// The factored grid: a thread a column of a sample, so that the lanes of a warp read the channels of one texel side by
// side. Gradients of texels are atomic sums, of floats or, where runs must repeat exactly, of fixed-point integers.
// Gradients of positions: a thread a sample.
#include "polyfield/factored_grid.h"
#include "prelude.h"

namespace polyfield {

// The factors of the term that a column belongs to, and the column's channel.
struct Term {
  const GridFactor* factors;
  int count;
  i64 channel;
  __device__ Term(const GridFactor* layout, i64 number, i64 column) {
    i64 first = 0;
    while (column >= layout[first].column + layout[first].channels) ++first;
    factors = layout + first;
    for (count = 1; first + count < number && factors[count].column == factors->column;) ++count;
    channel = column - factors->column;
  }
};

template <class T> struct ReadChannel {
  const T* values;
  __device__ T operator()(i64 place) const { return values[place]; }
};

template <class T>
__device__ T factored_forward(const GridFactor* layout, i64 factors, const T* x, const T* parameters, i64 column) {
  const Term term(layout, factors, column);
  const ReadChannel<T> read{parameters + term.channel};
  T product = T(1);
  for (int k = 0; k < term.count; ++k) {
    const FactorCell<T> cell(term.factors[k], x);
    product *= blend<T>(term.factors[k], cell.first, cell.weight, read);
  }
  return product;
}

// Calls body(k, cell of factor k, gradient of its feature).
template <class T, class Body>
__device__ void factor_gradients(const Term& term, const T* x, const T* parameters, T gradient, const Body& body) {
  const ReadChannel<T> read{parameters + term.channel};
  FactorCell<T> cells[kMostFactors];
  T value[kMostFactors];
  for (int k = 0; k < term.count; ++k) {
    cells[k] = FactorCell<T>(term.factors[k], x);
    value[k] = blend<T>(term.factors[k], cells[k].first, cells[k].weight, read);
  }
  for (int k = 0; k < term.count; ++k) {
    T mine = gradient;
    for (int other = 0; other < term.count; ++other)
      if (other != k) mine *= value[other];
    body(k, cells[k], mine);
  }
}

template <class T, class Add>
__device__ void factored_scatter(const GridFactor* layout, i64 factors, const T* x, const T* parameters, i64 column,
                                 T gradient, const Add& add) {
  const Term term(layout, factors, column);
  factor_gradients(term, x, parameters, gradient, [&](int k, const FactorCell<T>& cell, T mine) {
    const GridFactor& factor = term.factors[k];
    for (int corner = 0; corner < factor.corners(); ++corner)
      add(cell.first + factor.texel(corner) + term.channel, mine * cell.weight[corner]);
  });
}

template <class T>
__device__ void factored_position_gradient(const GridFactor* layout, i64 factors, i64 width, const T* x,
                                           const T* parameters, const T* grad, T* out) {
  T along[3] = {T(0), T(0), T(0)};
  for (i64 column = 0; column < width; ++column) {
    const Term term(layout, factors, column);
    const ReadChannel<T> read{parameters + term.channel};
    factor_gradients(term, x, parameters, grad[column], [&](int k, const FactorCell<T>& cell, T mine) {
      const GridFactor& factor = term.factors[k];
      const FactorSlopes<T> slopes(factor, x);
      along[factor.axis_a] += mine * blend<T>(factor, cell.first, slopes.along_a, read);
      if (factor.axis_b >= 0) along[factor.axis_b] += mine * blend<T>(factor, cell.first, slopes.along_b, read);
    });
  }
  for (int a = 0; a < 3; ++a) out[a] = along[a];
}

}  // namespace polyfield

using namespace polyfield;

// Arguments as the CPU library's. `sums` += gradients; those of the fixed form are integers, to be divided by `scale`.
#define PF_FACTORED(T, SUFFIX)                                                                                         \
  PF_KERNEL(pf_factored_encode_forward_##SUFFIX,                                                                       \
            (const T* x, i64 n, const T* parameters, const GridFactor* layout, i64 factors, i64 width, T* out)) {      \
    for (i64 task = thread_number(); task < n * width; task += thread_count())                                         \
      out[task] = factored_forward(layout, factors, x + 3 * (task / width), parameters, task % width);                 \
  }                                                                                                                    \
  PF_KERNEL(pf_factored_scatter_##SUFFIX, (const T* x, i64 n, const T* parameters, const GridFactor* layout,           \
                                           i64 factors, i64 width, const T* grad, T* sums)) {                          \
    for (i64 task = thread_number(); task < n * width; task += thread_count())                                         \
      factored_scatter(layout, factors, x + 3 * (task / width), parameters, task % width, grad[task],                  \
                       [&](i64 place, T value) { atomicAdd(sums + place, value); });                                   \
  }                                                                                                                    \
  PF_KERNEL(pf_factored_scatter_fixed_##SUFFIX,                                                                        \
            (const T* x, i64 n, const T* parameters, const GridFactor* layout, i64 factors, i64 width, const T* grad,  \
             u64* sums, const double* scale)) {                                                                        \
    for (i64 task = thread_number(); task < n * width; task += thread_count())                                         \
      factored_scatter(layout, factors, x + 3 * (task / width), parameters, task % width, grad[task],                  \
                       [&](i64 place, T value) { atomicAdd(sums + place, u64(i64(rint(double(value) * *scale)))); });  \
  }                                                                                                                    \
  PF_KERNEL(pf_factored_position_gradient_##SUFFIX, (const T* x, i64 n, const T* parameters, const GridFactor* layout, \
                                                     i64 factors, i64 width, const T* grad, T* x_gradient)) {          \
    const i64 i = thread_number();                                                                                     \
    if (i >= n) return;                                                                                                \
    factored_position_gradient(layout, factors, width, x + 3 * i, parameters, grad + i * width, x_gradient + 3 * i);   \
  }

PF_FACTORED(float, f32)
PF_FACTORED(double, f64)
