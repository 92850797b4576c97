// Adam over one contiguous run of rows, with or without skipping rows that no sample touched. One thread; callers
// split.
#pragma once
#include "half.h"
#include "polyfield/adam.h"
#include "simd.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own _mm512_undefined_ps

namespace polyfield {

namespace adam_detail {

template <class T>
inline void dense(T* __restrict parameter, T* __restrict m, T* __restrict v, T* __restrict gradient, i64 count,
                  const AdamStep<T>& step, bool zero_gradient) {
  const AdamStep<T> s = step;
  for (i64 i = 0; i < count; ++i) adam_element(parameter[i], m[i], v[i], gradient[i], s);
  if (zero_gradient) std::memset(gradient, 0, size_t(count) * sizeof(T));
}

template <class T>
inline void touched(T* __restrict parameter, T* __restrict m, T* __restrict v, T* __restrict gradient, i64 rows,
                    i64 channels, const AdamStep<T>& step, bool zero_gradient, Half* rounded) {
  for (i64 r = 0; r < rows; ++r, parameter += channels, m += channels, v += channels, gradient += channels) {
    bool any = false;
    for (i64 c = 0; c < channels; ++c) any |= gradient[c] != T(0);  // NaN counts as touched
    if (!any) continue;
    dense(parameter, m, v, gradient, channels, step, zero_gradient);
    for (i64 c = 0; rounded && c < channels; ++c) rounded[r * channels + c] = float_to_half(float(parameter[c]));
  }
}

#if defined(__AVX512F__)
// Lanes of the rows of which any lane is set; channels is 1, 2, 4, 8 or 16.
inline u32 spread_over_rows(u32 lanes, i64 channels) {
  if (channels >= 2) lanes = ((lanes | lanes >> 1) & 0x5555u) * 0x3u;
  if (channels >= 4) lanes = ((lanes | lanes >> 2) & 0x3333u & 0x1111u) * 0xfu;
  if (channels >= 8) lanes = ((lanes | lanes >> 4) & 0x0101u) * 0xffu;
  if (channels >= 16) lanes = lanes ? 0xffffu : 0u;
  return lanes;
}

// As `touched`, 16 values at a time; rows * channels is a multiple of 16.
inline void touched_by_16(float* parameter, float* m, float* v, float* gradient, i64 count, i64 channels,
                          const AdamStep<float>& s, bool zero_gradient, Half* rounded) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  const __m512 beta1 = _mm512_set1_ps(s.beta1), beta2 = _mm512_set1_ps(s.beta2), epsilon = _mm512_set1_ps(s.epsilon);
  const __m512 rest1 = _mm512_sub_ps(one, beta1), rest2 = _mm512_sub_ps(one, beta2);
  const __m512 decay = _mm512_set1_ps(s.weight_decay), size = _mm512_set1_ps(s.step_size);
  const __m512 correction2 = _mm512_set1_ps(s.correction2);
  for (i64 i = 0; i < count; i += 16) {
    __m512 g = _mm512_loadu_ps(gradient + i);
    const u32 nonzero = _mm512_cmp_ps_mask(g, zero, _CMP_NEQ_UQ);
    if (!nonzero) continue;
    const __mmask16 lanes = __mmask16(spread_over_rows(nonzero, channels));
    if (zero_gradient) _mm512_storeu_ps(gradient + i, zero);
    const __m512 p = _mm512_loadu_ps(parameter + i);
    g = _mm512_fmadd_ps(decay, p, g);
    const __m512 m_new = _mm512_fmadd_ps(beta1, _mm512_loadu_ps(m + i), _mm512_mul_ps(rest1, g));
    const __m512 v_new = _mm512_fmadd_ps(beta2, _mm512_loadu_ps(v + i), _mm512_mul_ps(rest2, _mm512_mul_ps(g, g)));
    const __m512 root = _mm512_add_ps(_mm512_sqrt_ps(_mm512_mul_ps(v_new, correction2)), epsilon);
    _mm512_mask_storeu_ps(m + i, lanes, m_new);
    _mm512_mask_storeu_ps(v + i, lanes, v_new);
    const __m512 moved = _mm512_mask_sub_ps(p, lanes, p, _mm512_div_ps(_mm512_mul_ps(size, m_new), root));
    _mm512_storeu_ps(parameter + i, moved);
    if (rounded)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded + i),
                          _mm512_cvtps_ph(moved, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}
#endif

}  // namespace adam_detail

// `rows` rows of `channels` values. skip_untouched: a row whose gradient is all zero keeps parameter and moments as
// they are. zero_gradient: the gradient is zero afterwards. rounded: null, or a binary16 copy of the parameter that
// follows it (only with skip_untouched).
template <class T>
inline void adam_rows(T* parameter, T* m, T* v, T* gradient, i64 rows, i64 channels, const AdamStep<T>& step,
                      bool skip_untouched, bool zero_gradient, Half* rounded = nullptr) {
  if (!skip_untouched) return adam_detail::dense(parameter, m, v, gradient, rows * channels, step, zero_gradient);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    if (channels == 1 || channels == 2 || channels == 4 || channels == 8 || channels == 16) {
      const i64 whole = rows * channels / 16 * 16, rows_done = whole / channels;
      adam_detail::touched_by_16(parameter, m, v, gradient, whole, channels, step, zero_gradient, rounded);
      parameter += whole, m += whole, v += whole, gradient += whole, rows -= rows_done;
      if (rounded) rounded += whole;
    }
  }
#endif
  adam_detail::touched(parameter, m, v, gradient, rows, channels, step, zero_gradient, rounded);
}

}  // namespace polyfield

#pragma GCC diagnostic pop
