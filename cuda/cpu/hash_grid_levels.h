// One level of the hash grid for a run of samples: encode, scatter and the derivatives, lanes = samples.
//
// Going level by level keeps one level's entries (4 MiB) hot in cache, which makes it about three times as fast as
// going sample by sample through the whole table. Indices and fractions of 16 samples are computed in vectors; entries
// are fetched by gathers where there are gathers worth using (AVX-512, 8-byte entries), row by row elsewhere. All
// functions run on the calling thread; those that add to a table may run at once for different levels only.
#pragma once
#include <type_traits>

#include "half.h"
#include "polyfield/hash_grid.h"
#include "simd.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"                // wide values are only passed to functions that are inlined
#pragma GCC diagnostic ignored "-Wignored-attributes"   // Trilinear<__m512>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 in its own _mm512_undefined_ps

namespace polyfield {

constexpr i64 kHashBlock = 16;  // samples per block; position arrays are readable up to a multiple of it

// Calls body(std::integral_constant<int, channels>): 1, 2, 4 or 8.
template <class Body> void with_channels(i64 channels, const Body& body) {
  if (channels == 1) return body(std::integral_constant<int, 1>());
  if (channels == 2) return body(std::integral_constant<int, 2>());
  if (channels == 4) return body(std::integral_constant<int, 4>());
  return body(std::integral_constant<int, 8>());
}

// The C channels of one entry as one value.
template <class T, int C> struct RowVec {
  typedef T type __attribute__((vector_size(C * sizeof(T))));
};
template <class T> struct RowVec<T, 1> {
  typedef T type;
};
template <class V, class T> inline __attribute__((always_inline)) V load_row(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T, int C> inline __attribute__((always_inline)) V load_entry(const T* table, u32 index) {
  return load_row<V>(table + i64(C) * index);
}
template <class V, class T, int C> inline __attribute__((always_inline)) V load_entry(const Half* table, u32 index) {
  T values[C];
  for (int c = 0; c < C; ++c) values[c] = half_to_float(table[i64(C) * index + c]);
  return load_row<V>(values);
}
template <class V, class T> inline __attribute__((always_inline)) void store_row(T* p, const V& v) {
  std::memcpy(p, &v, sizeof v);
}
// `HashCell` of 16 samples.
template <class T> struct HashBlock {
  alignas(64) u32 index[8][kHashBlock];
  alignas(64) T fraction[3][kHashBlock];
  alignas(64) T slope[3][kHashBlock];
};

template <class T>
inline __attribute__((always_inline)) void hash_block(const HashLevel& level, const T* x, const T* y, const T* z,
                                                      HashBlock<T>& block) {
  const T* position[3] = {x, y, z};
  const u32 stride[3] = {1, level.stride_y, level.stride_z};
  const float scale = level.scale;
  alignas(64) u32 low[3][kHashBlock], high[3][kHashBlock];  // strides times lattice coordinates
  for (int a = 0; a < 3; ++a) {
    for (int s = 0; s < kHashBlock; ++s) {
      const T p = multiply_add(unit_clamp(position[a][s]), T(scale), T(0.5));
      const i32 cell = i32(p);
      block.fraction[a][s] = p - T(cell);
      low[a][s] = u32(cell) * stride[a];
      high[a][s] = low[a][s] + stride[a];
    }
  }
  if (level.hashed) {
    const u32 mask = level.size - 1;
    for (int c = 0; c < 8; ++c) {
      const u32 *cx = c & 1 ? high[0] : low[0], *cy = c & 2 ? high[1] : low[1], *cz = c & 4 ? high[2] : low[2];
      for (int s = 0; s < kHashBlock; ++s) block.index[c][s] = (cx[s] ^ cy[s] ^ cz[s]) & mask;
    }
  } else {
    for (int c = 0; c < 8; ++c) {
      const u32 *cx = c & 1 ? high[0] : low[0], *cy = c & 2 ? high[1] : low[1], *cz = c & 4 ? high[2] : low[2];
      for (int s = 0; s < kHashBlock; ++s) block.index[c][s] = cx[s] + cy[s] + cz[s];
    }
  }
}

#if defined(__AVX512F__)
// The same in registers; compilers leave half of the speed in the loops above.
inline __attribute__((always_inline)) void hash_block(const HashLevel& level, const float* x, const float* y,
                                                      const float* z, HashBlock<float>& block) {
  const float* position[3] = {x, y, z};
  const u32 stride[3] = {1, level.stride_y, level.stride_z};
  const __m512 scale = _mm512_set1_ps(level.scale), half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
  __m512i low[3], high[3];
  for (int a = 0; a < 3; ++a) {
    // max returns its second operand where one is NaN: NaN counts as 0.
    const __m512 clamped = _mm512_min_ps(_mm512_max_ps(_mm512_loadu_ps(position[a]), _mm512_setzero_ps()), one);
    const __m512 p = _mm512_fmadd_ps(clamped, scale, half);
    const __m512i cell = _mm512_cvttps_epi32(p);
    _mm512_store_ps(block.fraction[a], _mm512_sub_ps(p, _mm512_cvtepi32_ps(cell)));
    const __m512i step = _mm512_set1_epi32(i32(stride[a]));
    low[a] = a == 0 ? cell : _mm512_mullo_epi32(cell, step);
    high[a] = _mm512_add_epi32(low[a], step);
  }
  const __m512i mask = _mm512_set1_epi32(i32(level.size - 1));
  for (int c = 0; c < 8; ++c) {
    const __m512i cx = c & 1 ? high[0] : low[0], cy = c & 2 ? high[1] : low[1], cz = c & 4 ? high[2] : low[2];
    const __m512i dense = _mm512_add_epi32(_mm512_add_epi32(cx, cy), cz);
    const __m512i hash = _mm512_and_si512(_mm512_ternarylogic_epi32(cx, cy, cz, 0x96), mask);  // 0x96: xor of three
    _mm512_store_si512(block.index[c], level.hashed ? hash : dense);
  }
}
#endif

template <class T>
inline __attribute__((always_inline)) void hash_slopes(const HashLevel& level, const T* x, const T* y, const T* z,
                                                       HashBlock<T>& block) {
  const T* position[3] = {x, y, z};
  for (int a = 0; a < 3; ++a)
    for (int s = 0; s < kHashBlock; ++s) block.slope[a][s] = lattice_slope(position[a][s], level.scale);
}

// positions (n, 3) -> three arrays; entries from n up to the next multiple of 16 become 0.5.
template <class T> inline void positions_to_soa(const T* positions, i64 n, T* x, T* y, T* z) {
  for (i64 i = 0; i < n; ++i) x[i] = positions[3 * i], y[i] = positions[3 * i + 1], z[i] = positions[3 * i + 2];
  for (i64 i = n; i < (n + kHashBlock - 1) / kHashBlock * kHashBlock; ++i) x[i] = y[i] = z[i] = T(0.5);
}

namespace hash_detail {

template <class V, class T, int C, class E>
inline __attribute__((always_inline)) void fetch_corners(const HashBlock<T>& block, int s, const E* table, V* corner) {
  for (int c = 0; c < 8; ++c) corner[c] = load_entry<V, T, C>(table, block.index[c][s]);
}

#if defined(__AVX512F__)
// One value per sample for the eight samples of a half (0 or 1) of a block, twice each: one per channel.
inline __attribute__((always_inline)) __m512 spread_half(const float* sixteen, int half) {
  const __m512i pairs = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  return _mm512_permutexvar_ps(_mm512_add_epi32(pairs, _mm512_set1_epi32(8 * half)), _mm512_load_ps(sixteen));
}
// The blend of one half, two float channels interleaved.
inline __attribute__((always_inline)) void blend_half(const HashBlock<float>& block, int half, const float* table,
                                                      Trilinear<__m512>& blend) {
  __m512 corner[8];
  for (int c = 0; c < 8; ++c) {
    const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(block.index[c] + 8 * half));
    corner[c] = _mm512_castpd_ps(_mm512_i32gather_pd(index, table, 8));
  }
  trilinear(corner, spread_half(block.fraction[0], half), spread_half(block.fraction[1], half),
            spread_half(block.fraction[2], half), blend);
}
// Both halves from entries of two binary16 channels: half as many gathers, and half the table to miss the cache in.
inline __attribute__((always_inline)) void blend_halves(const HashBlock<float>& block, const Half* table,
                                                        Trilinear<__m512>* blend) {
  __m512 low[8], high[8];
  for (int c = 0; c < 8; ++c) {
    const __m512i entries = _mm512_i32gather_epi32(_mm512_load_si512(block.index[c]), table, 4);
    low[c] = _mm512_cvtph_ps(_mm512_castsi512_si256(entries));
    high[c] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(entries, 1));
  }
  for (int half = 0; half < 2; ++half)
    trilinear(half ? high : low, spread_half(block.fraction[0], half), spread_half(block.fraction[1], half),
              spread_half(block.fraction[2], half), blend[half]);
}
inline __attribute__((always_inline)) void blend_halves(const HashBlock<float>& block, const float* table,
                                                        Trilinear<__m512>* blend) {
  for (int half = 0; half < 2; ++half) blend_half(block, half, table, blend[half]);
}
// Sums of the two channels of 16 samples, from the two halves.
inline __attribute__((always_inline)) __m512 sum_channels(__m512 low, __m512 high) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return _mm512_permutex2var_ps(low, even, high) + _mm512_permutex2var_ps(low, odd, high);
}
// Lanes of the half that belong to samples before `count` (samples left in the block).
inline __mmask16 octet_lanes(i64 count, int half) {
  const i64 lanes = 2 * (count - 8 * half);
  return lanes >= 16 ? __mmask16(0xffff) : lanes <= 0 ? __mmask16(0) : __mmask16((1u << lanes) - 1);
}
// Adds the gradients (two channels a sample) of a block's first `count` samples to their entries. The weights are
// factored, (y, z) times (x and gradient), so that a sample costs its loads, multiply-adds and stores and little else.
// `neighbours`: corners that differ in x lie side by side (levels that are not hashed) and are added to at once.
inline __attribute__((always_inline)) void scatter_block(const HashBlock<float>& block, const float* grad, int count,
                                                         bool neighbours, float* level_gradient) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 fy = _mm512_load_ps(block.fraction[1]), fz = _mm512_load_ps(block.fraction[2]);
  alignas(64) float yz[4][kHashBlock], x_grad[kHashBlock][4];
  _mm512_store_ps(yz[0], (one - fy) * (one - fz));
  _mm512_store_ps(yz[1], fy * (one - fz));
  _mm512_store_ps(yz[2], (one - fy) * fz);
  _mm512_store_ps(yz[3], fy * fz);
  for (int half = 0; half < 2; ++half) {
    const __m512 g = _mm512_maskz_loadu_ps(octet_lanes(count, half), grad + 16 * half);
    const __m512 fx = spread_half(block.fraction[0], half);
    const __m512d low = _mm512_castps_pd((one - fx) * g), high = _mm512_castps_pd(fx * g);
    _mm512_store_pd(x_grad[8 * half], _mm512_unpacklo_pd(low, high));
    _mm512_store_pd(x_grad[8 * half + 4], _mm512_unpackhi_pd(low, high));
  }
  for (int s = 0; s < count; ++s) {
    const __m128 low = _mm_load_ps(x_grad[(s & 8) + (s & 1) * 4 + (s & 7) / 2]), high = _mm_movehl_ps(low, low);
    for (int c = 0; c < 8; c += 2) {
      const __m128 w = _mm_set1_ps(yz[c / 2][s]);
      float* entry = level_gradient + 2 * i64(block.index[c][s]);
      if (neighbours) {
        _mm_storeu_ps(entry, _mm_fmadd_ps(w, low, _mm_loadu_ps(entry)));
        continue;
      }
      double* first = reinterpret_cast<double*>(entry);
      double* second = reinterpret_cast<double*>(level_gradient + 2 * i64(block.index[c + 1][s]));
      _mm_store_sd(first, _mm_castps_pd(_mm_fmadd_ps(w, low, _mm_castpd_ps(_mm_load_sd(first)))));
      _mm_store_sd(second, _mm_castps_pd(_mm_fmadd_ps(w, high, _mm_castpd_ps(_mm_load_sd(second)))));
    }
  }
}
#endif

// corner_grad[corner][sample * C + c] of the samples of a block, from the cotangents of value and derivatives (each C
// per sample).
template <class T, int C>
inline __attribute__((always_inline)) void corner_cotangents(const HashBlock<T>& block, int count, const T* value,
                                                             const T* dx, const T* dy, const T* dz,
                                                             T (*corner_grad)[kHashBlock * C]) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && C == 2) {
    for (int half = 0; half < 2; ++half) {
      const __mmask16 lanes = octet_lanes(count, half);
      const int at = 16 * half;
      __m512 corner[8];
      trilinear_adjoint<__m512, __m512>(_mm512_maskz_loadu_ps(lanes, value + at),
                                        _mm512_maskz_loadu_ps(lanes, dx + at) * spread_half(block.slope[0], half),
                                        _mm512_maskz_loadu_ps(lanes, dy + at) * spread_half(block.slope[1], half),
                                        _mm512_maskz_loadu_ps(lanes, dz + at) * spread_half(block.slope[2], half),
                                        spread_half(block.fraction[0], half), spread_half(block.fraction[1], half),
                                        spread_half(block.fraction[2], half), corner);
      for (int c = 0; c < 8; ++c) _mm512_store_ps(corner_grad[c] + at, corner[c]);
    }
    return;
  }
#endif
  typedef typename RowVec<T, C>::type V;
  for (int s = 0; s < count; ++s) {
    V corner[8];
    trilinear_adjoint<V, T>(load_row<V>(value + C * s), V(load_row<V>(dx + C * s) * block.slope[0][s]),
                            V(load_row<V>(dy + C * s) * block.slope[1][s]),
                            V(load_row<V>(dz + C * s) * block.slope[2][s]), block.fraction[0][s], block.fraction[1][s],
                            block.fraction[2][s], corner);
    for (int c = 0; c < 8; ++c) store_row(corner_grad[c] + C * s, corner[c]);
  }
}

}  // namespace hash_detail

// out (n, C) = features of one level. `level_table` begins at the level's first entry; its type is T or, with T float,
// Half.
template <class T, int C, class E>
inline void hash_encode_level(const HashLevel& level, const E* level_table, const T* x, const T* y, const T* z, i64 n,
                              T* out) {
  using namespace hash_detail;
  HashBlock<T> block;
  for (i64 i = 0; i < n; i += kHashBlock) {
    hash_block(level, x + i, y + i, z + i, block);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && C == 2) {
      Trilinear<__m512> blend[2];
      blend_halves(block, level_table, blend);
      for (int half = 0; half < 2; ++half) {
        if (n - i >= kHashBlock)
          _mm512_storeu_ps(out + 2 * i + 16 * half, blend[half].value);
        else
          _mm512_mask_storeu_ps(out + 2 * i + 16 * half, octet_lanes(n - i, half), blend[half].value);
      }
      continue;
    }
#endif
    typedef typename RowVec<T, C>::type V;
    for (int s = 0; s < kHashBlock && i + s < n; ++s) {
      V corner[8];
      Trilinear<V> blend;
      fetch_corners<V, T, C>(block, s, level_table, corner);
      trilinear(corner, block.fraction[0][s], block.fraction[1][s], block.fraction[2][s], blend);
      store_row(out + C * (i + s), blend.value);
    }
  }
}

// level_gradient (size, C) += what `grad` (n, C), the cotangent of `hash_encode_level`, says of the entries.
template <class T, int C>
inline void hash_scatter_level(const HashLevel& level, const T* x, const T* y, const T* z, i64 n, const T* grad,
                               T* level_gradient) {
  typedef typename RowVec<T, C>::type V;
  HashBlock<T> block;
  alignas(64) T weight[8][kHashBlock];
  for (i64 i = 0; i < n; i += kHashBlock) {
    hash_block(level, x + i, y + i, z + i, block);
    const int count = n - i < kHashBlock ? int(n - i) : int(kHashBlock);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && C == 2) {
      hash_detail::scatter_block(block, grad + 2 * i, count, !level.hashed, level_gradient);
      continue;
    }
#endif
    for (int c = 0; c < 8; ++c)
      for (int s = 0; s < kHashBlock; ++s)
        weight[c][s] = trilinear_weight(c, block.fraction[0][s], block.fraction[1][s], block.fraction[2][s]);
    for (int s = 0; s < count; ++s) {
      const V g = load_row<V>(grad + C * (i + s));
      for (int c = 0; c < 8; ++c) {
        T* entry = level_gradient + i64(C) * block.index[c][s];
        store_row(entry, V(load_row<V>(entry) + weight[c][s] * g));
      }
    }
  }
}

// Features of one level and their derivatives with respect to x, y, z: four arrays (n, C).
template <class T, int C>
inline void hash_jacobian_level(const HashLevel& level, const T* level_table, const T* x, const T* y, const T* z, i64 n,
                                T* value, T* dx, T* dy, T* dz) {
  using namespace hash_detail;
  HashBlock<T> block;
  for (i64 i = 0; i < n; i += kHashBlock) {
    hash_block(level, x + i, y + i, z + i, block);
    hash_slopes(level, x + i, y + i, z + i, block);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && C == 2) {
      for (int half = 0; half < 2; ++half) {
        const __mmask16 lanes = octet_lanes(n - i, half);
        const i64 at = 2 * i + 16 * half;
        Trilinear<__m512> blend;
        blend_half(block, half, level_table, blend);
        _mm512_mask_storeu_ps(value + at, lanes, blend.value);
        _mm512_mask_storeu_ps(dx + at, lanes, blend.x * spread_half(block.slope[0], half));
        _mm512_mask_storeu_ps(dy + at, lanes, blend.y * spread_half(block.slope[1], half));
        _mm512_mask_storeu_ps(dz + at, lanes, blend.z * spread_half(block.slope[2], half));
      }
      continue;
    }
#endif
    typedef typename RowVec<T, C>::type V;
    for (int s = 0; s < kHashBlock && i + s < n; ++s) {
      V corner[8];
      Trilinear<V> blend;
      fetch_corners<V, T, C>(block, s, level_table, corner);
      trilinear(corner, block.fraction[0][s], block.fraction[1][s], block.fraction[2][s], blend);
      const i64 at = C * (i + s);
      store_row(value + at, blend.value);
      store_row(dx + at, V(blend.x * block.slope[0][s]));
      store_row(dy + at, V(blend.y * block.slope[1][s]));
      store_row(dz + at, V(blend.z * block.slope[2][s]));
    }
  }
}

// level_gradient (size, C) += from the cotangents (n, C) of the four outputs of `hash_jacobian_level`.
template <class T, int C>
inline void hash_jacobian_scatter_level(const HashLevel& level, const T* x, const T* y, const T* z, i64 n,
                                        const T* value_grad, const T* dx_grad, const T* dy_grad, const T* dz_grad,
                                        T* level_gradient) {
  typedef typename RowVec<T, C>::type V;
  HashBlock<T> block;
  alignas(64) T corner_grad[8][kHashBlock * C];
  for (i64 i = 0; i < n; i += kHashBlock) {
    hash_block(level, x + i, y + i, z + i, block);
    hash_slopes(level, x + i, y + i, z + i, block);
    const int count = n - i < kHashBlock ? int(n - i) : int(kHashBlock);
    hash_detail::corner_cotangents<T, C>(block, count, value_grad + C * i, dx_grad + C * i, dy_grad + C * i,
                                         dz_grad + C * i, corner_grad);
    for (int s = 0; s < count; ++s) {
      for (int c = 0; c < 8; ++c) {
        T* entry = level_gradient + i64(C) * block.index[c][s];
        store_row(entry, V(load_row<V>(entry) + load_row<V>(corner_grad[c] + C * s)));
      }
    }
  }
}

namespace hash_detail {

// Cotangents of the position of one sample (V: its C channels) or of eight (V: __m512, channels not yet summed),
// without the outer slopes. The derivatives' cotangents come multiplied by their own slopes.
template <bool Jacobian, class V>
inline __attribute__((always_inline)) void position_cotangents(const Trilinear<V>& blend, const V& g, const V& gx,
                                                               const V& gy, const V& gz, V* along) {
  along[0] = g * blend.x, along[1] = g * blend.y, along[2] = g * blend.z;
  if constexpr (Jacobian) {
    along[0] += gy * blend.xy + gz * blend.xz;
    along[1] += gx * blend.xy + gz * blend.yz;
    along[2] += gx * blend.xz + gy * blend.yz;
  }
}

}  // namespace hash_detail

// position_grad[axis][n] += from the cotangent (n, C) of the features and, where `Jacobian`, those of the derivatives.
// The three arrays may be written up to the next multiple of 16.
template <class T, int C, bool Jacobian>
inline void hash_position_gradient_level(const HashLevel& level, const T* level_table, const T* x, const T* y,
                                         const T* z, i64 n, const T* value_grad, const T* dx_grad, const T* dy_grad,
                                         const T* dz_grad, T* const position_grad[3]) {
  using namespace hash_detail;
  HashBlock<T> block;
  for (i64 i = 0; i < n; i += kHashBlock) {
    hash_block(level, x + i, y + i, z + i, block);
    hash_slopes(level, x + i, y + i, z + i, block);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && C == 2) {
      __m512 along[2][3];
      for (int half = 0; half < 2; ++half) {
        const __mmask16 lanes = octet_lanes(n - i, half);
        const i64 at = 2 * i + 16 * half;
        Trilinear<__m512> blend;
        blend_half(block, half, level_table, blend);
        __m512 gx = _mm512_setzero_ps(), gy = gx, gz = gx;
        if constexpr (Jacobian) {
          gx = _mm512_maskz_loadu_ps(lanes, dx_grad + at) * spread_half(block.slope[0], half);
          gy = _mm512_maskz_loadu_ps(lanes, dy_grad + at) * spread_half(block.slope[1], half);
          gz = _mm512_maskz_loadu_ps(lanes, dz_grad + at) * spread_half(block.slope[2], half);
        }
        position_cotangents<Jacobian>(blend, _mm512_maskz_loadu_ps(lanes, value_grad + at), gx, gy, gz, along[half]);
      }
      for (int a = 0; a < 3; ++a) {
        const __m512 sum = sum_channels(along[0][a], along[1][a]) * _mm512_load_ps(block.slope[a]);
        _mm512_storeu_ps(position_grad[a] + i, _mm512_loadu_ps(position_grad[a] + i) + sum);
      }
      continue;
    }
#endif
    typedef typename RowVec<T, C>::type V;
    for (int s = 0; s < kHashBlock && i + s < n; ++s) {
      V corner[8], along[3], gx{}, gy{}, gz{};
      Trilinear<V> blend;
      fetch_corners<V, T, C>(block, s, level_table, corner);
      trilinear(corner, block.fraction[0][s], block.fraction[1][s], block.fraction[2][s], blend);
      const i64 at = C * (i + s);
      if constexpr (Jacobian) {
        gx = load_row<V>(dx_grad + at) * block.slope[0][s];
        gy = load_row<V>(dy_grad + at) * block.slope[1][s];
        gz = load_row<V>(dz_grad + at) * block.slope[2][s];
      }
      position_cotangents<Jacobian>(blend, load_row<V>(value_grad + at), gx, gy, gz, along);
      for (int a = 0; a < 3; ++a) {
        T channel[C], sum = T(0);
        store_row(channel, along[a]);
        for (int c = 0; c < C; ++c) sum += channel[c];
        position_grad[a][i + s] += sum * block.slope[a][s];
      }
    }
  }
}

namespace hash_detail {

template <int Bytes>
inline void gather_rows(const char* level_major, i64 level_bytes, i64 levels, i64 n, char* rows, i64 row_bytes) {
  for (i64 i = 0; i < n; ++i)
    for (i64 l = 0; l < levels; ++l)
      std::memcpy(rows + i * row_bytes + l * Bytes, level_major + l * level_bytes + i * Bytes, Bytes);
}

template <int Bytes>
inline void spread_rows(const char* rows, i64 row_bytes, i64 levels, i64 n, char* level_major, i64 level_bytes) {
  for (i64 i = 0; i < n; ++i)
    for (i64 l = 0; l < levels; ++l)
      std::memcpy(level_major + l * level_bytes + i * Bytes, rows + i * row_bytes + l * Bytes, Bytes);
}

#if defined(__AVX512F__)
// Transposes 8 x 8 values of 8 bytes; strides in bytes.
inline __attribute__((always_inline)) void transpose_8x8(const char* from, i64 from_stride, char* to, i64 to_stride) {
  __m512d r[8], q[8];
  for (int k = 0; k < 8; ++k) r[k] = _mm512_loadu_pd(from + k * from_stride);
  for (int k = 0; k < 8; k += 2) {
    q[k] = _mm512_unpacklo_pd(r[k], r[k + 1]);
    q[k + 1] = _mm512_unpackhi_pd(r[k], r[k + 1]);
  }
  for (int k = 0; k < 8; k += 4)
    for (int j = 0; j < 2; ++j) {
      r[k + j] = _mm512_shuffle_f64x2(q[k + j], q[k + j + 2], 0x88);
      r[k + j + 2] = _mm512_shuffle_f64x2(q[k + j], q[k + j + 2], 0xdd);
    }
  for (int j = 0; j < 4; ++j) {
    q[j] = _mm512_shuffle_f64x2(r[j], r[j + 4], 0x88);
    q[j + 4] = _mm512_shuffle_f64x2(r[j], r[j + 4], 0xdd);
  }
  for (int j = 0; j < 8; ++j) _mm512_storeu_pd(to + j * to_stride, q[j]);
}
#endif

// A unit is the C channels of one sample at one level; `to_rows` is the direction. Levels come in bands of 8.
template <int Bytes, bool ToRows>
inline void transpose_units(char* level_major, i64 level_bytes, i64 levels, i64 n, char* rows, i64 row_bytes) {
  i64 done = 0;
#if defined(__AVX512F__)
  if constexpr (Bytes == 8) {
    const i64 banded = levels / 8 * 8;
    for (; done + 8 <= n; done += 8) {
      char* row = rows + done * row_bytes;
      char* column = level_major + done * Bytes;
      for (i64 l = 0; l < banded; l += 8) {
        if constexpr (ToRows)
          transpose_8x8(column + l * level_bytes, level_bytes, row + l * Bytes, row_bytes);
        else
          transpose_8x8(row + l * Bytes, row_bytes, column + l * level_bytes, level_bytes);
      }
      char *rest = column + banded * level_bytes, *rest_row = row + banded * Bytes;
      if constexpr (ToRows)
        gather_rows<Bytes>(rest, level_bytes, levels - banded, 8, rest_row, row_bytes);
      else
        spread_rows<Bytes>(rest_row, row_bytes, levels - banded, 8, rest, level_bytes);
    }
  }
#endif
  if constexpr (ToRows)
    gather_rows<Bytes>(level_major + done * Bytes, level_bytes, levels, n - done, rows + done * row_bytes, row_bytes);
  else
    spread_rows<Bytes>(rows + done * row_bytes, row_bytes, levels, n - done, level_major + done * Bytes, level_bytes);
}

template <bool ToRows>
inline void transpose_units(char* level_major, i64 level_bytes, i64 levels, i64 n, char* rows, i64 row_bytes,
                            i64 unit) {
  switch (unit) {
    case 4:
      return transpose_units<4, ToRows>(level_major, level_bytes, levels, n, rows, row_bytes);
    case 8:
      return transpose_units<8, ToRows>(level_major, level_bytes, levels, n, rows, row_bytes);
    case 16:
      return transpose_units<16, ToRows>(level_major, level_bytes, levels, n, rows, row_bytes);
    case 32:
      return transpose_units<32, ToRows>(level_major, level_bytes, levels, n, rows, row_bytes);
    default:
      return transpose_units<64, ToRows>(level_major, level_bytes, levels, n, rows, row_bytes);
  }
}

}  // namespace hash_detail

// Samples first .. first + n of the level-major array (levels, stride, channels) -> rows (n, row_width), whose first
// levels * channels values are written. Channels is 1, 2, 4 or 8.
template <class T>
inline void level_major_to_rows(const T* level_major, i64 stride, i64 levels, i64 channels, i64 first, i64 n, T* rows,
                                i64 row_width) {
  const i64 unit = channels * i64(sizeof(T));
  char* from = const_cast<char*>(reinterpret_cast<const char*>(level_major)) + first * unit;  // only read
  hash_detail::transpose_units<true>(from, stride * unit, levels, n, reinterpret_cast<char*>(rows),
                                     row_width * i64(sizeof(T)), unit);
}

// The way back.
template <class T>
inline void rows_to_level_major(const T* rows, i64 row_width, i64 n, T* level_major, i64 stride, i64 levels,
                                i64 channels, i64 first) {
  const i64 unit = channels * i64(sizeof(T));
  char* from = const_cast<char*>(reinterpret_cast<const char*>(rows));  // only read
  hash_detail::transpose_units<false>(reinterpret_cast<char*>(level_major) + first * unit, stride * unit, levels, n,
                                      from, row_width * i64(sizeof(T)), unit);
}

}  // namespace polyfield

#pragma GCC diagnostic pop
