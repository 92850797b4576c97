// The factored grid of a batch: groups of samples term by term, channels in vectors. Backward goes in blocks of samples
// small enough for the cache: first the gradients of the factors' features, samples in parallel; then each factor's
// texels, bands of rows in parallel. A texel is added to by one thread, in the order of the samples, so that results do
// not depend on the threads.
#include <type_traits>

#include "channels.h"
#include "parallel.h"
#include "polyfield/factored_grid.h"

namespace {

using namespace polyfield;

constexpr i64 kRun = 256;     // samples per task
constexpr i64 kGroup = 16;    // samples whose texels are fetched together
constexpr i64 kBlock = 2048;  // samples whose factor gradients are held at once
constexpr i64 kAhead = 16;    // samples by which texels are fetched before they are added to
template <class T> constexpr i64 kLine = 64 / i64(sizeof(T));  // values of a line of the cache

struct Layout {
  const GridFactor* factors;
  i64 count, width;  // of factors; of the encoding

  // How many factors the term has that begins with factor f.
  i64 term(i64 f) const {
    i64 end = f + 1;
    while (end < count && factors[end].column == factors[f].column) ++end;
    return end - f;
  }
  // Values of all factors of a sample.
  i64 factor_width() const {
    i64 sum = 0;
    for (i64 f = 0; f < count; ++f) sum += factors[f].channels;
    return sum;
  }
};

// Where a term of N factors reads its texels for one position.
template <int N, class T> struct TermCells {
  FactorCell<T> cells[N];

  // The texels are fetched at once: what is done to other samples meanwhile hides how far away they are.
  void place(const GridFactor* factors, const T* x, const T* parameters) {
    for (int k = 0; k < N; ++k) {
      const GridFactor& f = factors[k];
      cells[k] = FactorCell<T>(f, x);
      const T* low = parameters + cells[k].first;
      for (i64 c = 0; c < 2 * f.channels; c += kLine<T>)  // (two texels of a row touch)
        for (int corner = 0; corner < f.corners(); corner += 2) __builtin_prefetch(low + f.texel(corner) + c);
    }
  }
  // Features of a vector of channels from c on.
  template <class V> V value(const GridFactor* factors, int k, const T* parameters, i64 c, V zero) const {
    return blend<V>(factors[k], cells[k].first, cells[k].weight,
                    [&](i64 place) { return read(parameters + place + c, zero); });
  }
};

// body(number of factors of the term as a constant, its first factor), term by term.
template <class Body> void over_terms(const Layout& layout, const Body& body) {
  static_assert(kMostFactors == 3, "as many cases");
  for (i64 f = 0; f < layout.count; f += layout.term(f)) {
    const i64 factors = layout.term(f);
    if (factors == 1) body(std::integral_constant<int, 1>(), f);
    if (factors == 2) body(std::integral_constant<int, 2>(), f);
    if (factors == 3) body(std::integral_constant<int, 3>(), f);
  }
}

// Up to kGroup samples, a term after the other.
template <class T> void forward_group(const Layout& layout, const T* x, i64 samples, const T* parameters, T* out) {
  over_terms(layout, [&](auto factors, i64 f) {
    constexpr int N = decltype(factors)::value;
    const GridFactor* term = layout.factors + f;
    TermCells<N, T> terms[kGroup];
    for (i64 i = 0; i < samples; ++i) terms[i].place(term, x + 3 * i, parameters);
    for (i64 i = 0; i < samples; ++i) {
      T* row = out + i * layout.width + term->column;
      over_few_channels<T>(term->channels, [&](i64 c, auto zero) {
        auto product = terms[i].value(term, 0, parameters, c, zero);
        for (int k = 1; k < N; ++k) product *= terms[i].value(term, k, parameters, c, zero);
        write(row + c, product);
      });
    }
  });
}

// Gradients of the factors' features into `factor_gradients` (samples, factor after factor), where not null, and of the
// positions. Up to kGroup samples.
template <bool NeedX, class T>
void backward_group(const Layout& layout, const T* x, i64 samples, const T* parameters, const T* gradients,
                    T* factor_gradients, T* x_gradients) {
  const i64 stride = layout.factor_width();
  T along[kGroup][3] = {};
  i64 column = 0;
  over_terms(layout, [&](auto factors, i64 f) {
    constexpr int N = decltype(factors)::value;
    const GridFactor* term = layout.factors + f;
    const i64 channels = term->channels;
    TermCells<N, T> terms[kGroup];
    for (i64 i = 0; i < samples; ++i) terms[i].place(term, x + 3 * i, parameters);
    for (i64 i = 0; i < samples; ++i) {
      const T* row = gradients + i * layout.width + term->column;
      T* factor_gradient = factor_gradients ? factor_gradients + i * stride + column : nullptr;
      FactorSlopes<T> slopes[N];
      for (int k = 0; NeedX && k < N; ++k) slopes[k] = FactorSlopes<T>(term[k], x + 3 * i);
      over_few_channels<T>(channels, [&](i64 c, auto zero) {
        using V = decltype(zero);
        V value[N];
        for (int k = 0; k < N; ++k) value[k] = terms[i].value(term, k, parameters, c, zero);
        const V g = read(row + c, zero);
        for (int k = 0; k < N; ++k) {
          V mine = g;
          for (int other = 0; other < N; ++other)
            if (other != k) mine *= value[other];
          if (factor_gradient) write(factor_gradient + k * channels + c, mine);
          if (!NeedX) continue;
          const auto along_axis = [&](const T(&by)[4]) {
            const auto texel = [&](i64 place) { return read(parameters + place + c, zero); };
            return total<T>(V(mine * blend<V>(term[k], terms[i].cells[k].first, by, texel)));
          };
          along[i][term[k].axis_a] += along_axis(slopes[k].along_a);
          if (term[k].axis_b >= 0) along[i][term[k].axis_b] += along_axis(slopes[k].along_b);
        }
      });
    }
    column += N * channels;
  });
  for (i64 i = 0; NeedX && i < samples; ++i)
    for (int a = 0; a < 3; ++a) x_gradients[3 * i + a] = along[i][a];
}

// Where a sample's gradient goes: its lower texel and the fractions towards the others (of a line: b alone).
template <class T> struct ScatterPlace {
  i64 sample, row, texel;
  T a, b;
};

// Adds gradients of one factor's features (samples, stride) to its texels of rows low to high - 1.
template <class T>
void scatter(const GridFactor& factor, const T* x, i64 samples, const T* gradients, i64 stride, i64 low, i64 high,
             T* parameter_gradient) {
  const bool line = factor.axis_b < 0;
  const i64 across = line ? factor.channels : factor.across();  // from a row to the next
  static thread_local Scratch<ScatterPlace<T>> scratch;
  ScatterPlace<T>* places = scratch.reserve(samples);
  i64 count = 0;
  for (i64 n = 0; n < samples; ++n) {
    const GridPlace<T> a(x[3 * n + factor.axis_a], factor.resolution_a);
    const GridPlace<T> b = line ? a : GridPlace<T>(x[3 * n + factor.axis_b], factor.resolution_b);
    const i64 texel = factor.first + b.low * across + (line ? i64(0) : a.low * factor.channels);
    places[count] = {n, b.low, texel, a.fraction, b.fraction};
    count += b.low + 1 >= low && b.low < high;
  }
  for (i64 k = 0; k < count; ++k) {
    const ScatterPlace<T>& at = places[k];
    const i64 next = places[min_of(k + kAhead, count - 1)].texel;
    const T* gradient = gradients + at.sample * stride;
    for (int j = 0; j < 2; ++j) {
      const i64 row = at.row + j;
      __builtin_prefetch(parameter_gradient + next + j * across, 1);
      if (row < low || row >= high) continue;
      T* texel = parameter_gradient + at.texel + j * across;
      const T here = j ? at.b : T(1) - at.b;
      const T first = line ? here : here * (T(1) - at.a), second = here * at.a;
      over_few_channels<T>(factor.channels, [&](i64 c, auto zero) {
        const auto g = read(gradient + c, zero);
        write(texel + c, read(texel + c, zero) + g * first);
        if (!line) write(texel + factor.channels + c, read(texel + factor.channels + c, zero) + g * second);
      });
    }
  }
}

template <class T>
void backward(const Layout& layout, const T* x, i64 n, const T* parameters, const T* gradient, T* x_gradient,
              T* parameter_gradient, i64 threads) {
  static thread_local Scratch<T> scratch;
  const i64 stride = layout.factor_width();
  T* held = parameter_gradient ? scratch.reserve(min_of(n, kBlock) * stride) : nullptr;
  const i64 bands = max_of((4 * threads + layout.count - 1) / layout.count, i64(1));
  for (i64 begin = 0; begin < n; begin += kBlock) {
    const i64 count = min_of(n - begin, kBlock);
    const T* block = x + 3 * begin;
    parallel_chunks(threads, count, kRun, [&](i64 first, i64 last) {
      for (i64 i = first; i < last; i += kGroup) {
        const i64 samples = min_of(kGroup, last - i);
        const T* g = gradient + (begin + i) * layout.width;
        T* mine = held ? held + i * stride : nullptr;
        if (x_gradient) {
          backward_group<true>(layout, block + 3 * i, samples, parameters, g, mine, x_gradient + 3 * (begin + i));
        } else {
          backward_group<false>(layout, block + 3 * i, samples, parameters, g, mine, static_cast<T*>(nullptr));
        }
      }
    });
    if (!held) continue;
    parallel_for(threads, layout.count * bands, [&](i64 task) {
      const i64 f = task / bands, band = task % bands;
      i64 column = 0;
      for (i64 before = 0; before < f; ++before) column += layout.factors[before].channels;
      const GridFactor& factor = layout.factors[f];
      const i64 rows = factor.axis_b < 0 ? factor.resolution_a : factor.resolution_b;
      scatter(factor, block, count, held + column, stride, rows * band / bands, rows * (band + 1) / bands,
              parameter_gradient);
    });
  }
}

}  // namespace

// layout (factors, 7) is an array of GridFactor. x (n, 3), out and grad (n, width). x_gradient (n, 3) and
// parameter_gradient (P,), zero before, may be null.
#define PF_FACTORED(T, SUFFIX)                                                                                       \
  PF_API void pf_factored_encode_forward_##SUFFIX(const T* x, i64 n, const T* parameters, const GridFactor* layout,  \
                                                  i64 factors, i64 width, T* out, i64 threads) {                     \
    const Layout grid{layout, factors, width};                                                                       \
    parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {                                                      \
      for (i64 i = begin; i < end; i += kGroup)                                                                      \
        forward_group(grid, x + 3 * i, min_of(kGroup, end - i), parameters, out + i * width);                        \
    });                                                                                                              \
  }                                                                                                                  \
  PF_API void pf_factored_encode_backward_##SUFFIX(const T* x, i64 n, const T* parameters, const GridFactor* layout, \
                                                   i64 factors, i64 width, const T* grad, T* x_gradient,             \
                                                   T* parameter_gradient, i64 threads) {                             \
    backward<T>({layout, factors, width}, x, n, parameters, grad, x_gradient, parameter_gradient, threads);          \
  }

PF_FACTORED(float, f32)
PF_FACTORED(double, f64)
