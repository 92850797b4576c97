// A mesh's tree of boxes on the CPU: queries, a vector of 8 lanes at a time. Points that lie near one another are asked
// one after the other, so that the tree stays in the cache and the triangle found last bounds the next search.
#pragma GCC diagnostic ignored "-Wpsabi"  // wide values are only passed to functions that are inlined
#include <vector>

#include "mesh_build.h"
#include "parallel.h"
#include "polyfield/mesh.h"
#include "simd.h"

namespace polyfield {
namespace {

template <class T> struct EightOf;
template <> struct EightOf<float> {
  typedef float type __attribute__((vector_size(32)));
  typedef i32 mask __attribute__((vector_size(32)));
};
template <> struct EightOf<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef i64 mask __attribute__((vector_size(64)));
};

// All lanes at once.
template <class T> struct Together {
  using V = typename EightOf<T>::type;
  using Mask = typename EightOf<T>::mask;
  static constexpr int kStep = kFan;
#define PF_LANES static inline __attribute__((always_inline))
  PF_LANES V read(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  PF_LANES void write(T* p, const V& v) { std::memcpy(p, &v, sizeof v); }
  PF_LANES u32 bits(const Mask& mask) {
#if defined(__AVX__)
    if (sizeof(T) == 4) {
      __m256 lanes;
      std::memcpy(&lanes, &mask, sizeof lanes);
      return u32(_mm256_movemask_ps(lanes));
    }
#endif
    u32 found = 0;
    for (int k = 0; k < kFan; ++k) found |= (mask[k] ? 1u : 0u) << k;
    return found;
  }
  PF_LANES V root(const V& v) {
    alignas(64) T lanes[kFan];
    write(lanes, v);
    for (int k = 0; k < kFan; ++k) lanes[k] = std::sqrt(lanes[k]);
    return read(lanes);
  }
  PF_LANES V angle(const V& over, const V& under) { return angle_of(over, under); }
  // a b - c d with the right sign: products of floats are exact in double. Without FMA the plain form will do: it
  // changes its sign where the products change places, which is what triangles with a common edge ask for.
  PF_LANES V determinant(const V& a, const V& b, const V& c, const V& d) { return determinant_of(a, b, c, d, T(0)); }

 private:
  using F = EightOf<float>::type;
  using D = EightOf<double>::type;

  // atan2 by the polynomial of Cephes (Moshier): errors below 3 ulp; 0 of 0 and 0.
  PF_LANES F angle_of(const F& over, const F& under) {
    const F zero = {}, y = over < zero ? -over : over, x = under < zero ? -under : under;
    const auto steep = y > x;
    const F low = steep ? x : y, high = steep ? y : x;
    const auto wide = low > high * 0.41421356f;  // tangent of pi / 8
    const F above = wide ? low - high : low, below = wide ? low + high : high;
    const F t = above / (below > zero ? below : zero + 1.0f), z = t * t;
    F angle = ((8.05374449538e-2f * z - 1.38776856032e-1f) * z + 1.99777106478e-1f) * z - 3.33329491539e-1f;
    angle = angle * z * t + t;
    angle = wide ? angle + 0.785398163f : angle;
    angle = steep ? 1.57079632679f - angle : angle;
    angle = under < zero ? 3.14159265359f - angle : angle;
    return over < zero ? -angle : angle;
  }
  PF_LANES D angle_of(const D& over, const D& under) {
    D angle;
    for (int k = 0; k < kFan; ++k) angle[k] = std::atan2(over[k], under[k]);
    return angle;
  }
  PF_LANES V determinant_of(const V& a, const V& b, const V& c, const V& d, float) {
    const D wide = __builtin_convertvector(a, D) * __builtin_convertvector(b, D) -
                   __builtin_convertvector(c, D) * __builtin_convertvector(d, D);
    return __builtin_convertvector(wide, V);
  }
  PF_LANES V determinant_of(const V& a, const V& b, const V& c, const V& d, double) {
#if defined(__FMA__) || !defined(__x86_64__)
    V result;
    for (int k = 0; k < kFan; ++k) result[k] = Singly<double>::determinant(a[k], b[k], c[k], d[k]);
    return result;
#else
    return a * b - c * d;
#endif
  }
#undef PF_LANES
};

constexpr i64 kRun = 256;              // queries per task; the first of a run starts without a guess
constexpr i64 kSorted = i64(1) << 22;  // points sorted at once: 48 MiB of numbers
constexpr i64 kLeastSorted = 64;       // fewer queries are asked as they come

u64 spread_bits(u64 v) {  // 21 bits, two zeros after each
  v &= 0x1fffff;
  v = (v | v << 32) & 0x1f00000000ffffull;
  v = (v | v << 16) & 0x1f0000ff0000ffull;
  v = (v | v << 8) & 0x100f00f00f00f00full;
  v = (v | v << 4) & 0x10c30c30c30c30c3ull;
  return (v | v << 2) & 0x1249249249249249ull;
}

// Points along a Morton curve of 2^10 cells an axis over their finite bounds; equal cells in the order given.
template <class T> std::vector<u32> order_of(const T* points, i64 n, i64 threads) {
  std::vector<u32> order(static_cast<size_t>(n)), codes(static_cast<size_t>(n));
  for (i64 i = 0; i < n; ++i) order[size_t(i)] = u32(i);
  if (n < kLeastSorted) return order;
  T low[3], scale[3];
  for (int a = 0; a < 3; ++a) {
    T least = std::numeric_limits<T>::max(), most = -least;
    for (i64 i = 0; i < n; ++i) {
      const T x = points[3 * i + a];
      least = x < least ? x : least;
      most = x > most ? x : most;
    }
    low[a] = least;
    scale[a] = most > least ? T(1024) / (most - least) : T(0);
  }
  parallel_chunks(threads, n, 1 << 14, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      u64 code = 0;
      for (int a = 0; a < 3; ++a) {
        const T cell = (points[3 * i + a] - low[a]) * scale[a];
        code |= spread_bits(u64(cell > T(0) ? (cell < T(1023) ? cell : T(1023)) : T(0))) << a;
      }
      codes[size_t(i)] = u32(code);
    }
  });
  std::vector<u32> other(static_cast<size_t>(n));
  for (int shift = 0; shift < 30; shift += 10) {
    i64 starts[1025] = {};
    for (i64 i = 0; i < n; ++i) ++starts[(codes[size_t(i)] >> shift & 1023) + 1];
    for (int k = 0; k < 1024; ++k) starts[k + 1] += starts[k];
    for (i64 i = 0; i < n; ++i) other[size_t(starts[codes[order[size_t(i)]] >> shift & 1023]++)] = order[size_t(i)];
    order.swap(other);
  }
  return order;
}

// body(i, guess) for every point i in the order of the curve; the body may change the guess of the next.
template <class T, class Body> void along_curve(const T* points, i64 n, i64 threads, const Body& body) {
  for (i64 first = 0; first < n; first += kSorted) {
    const i64 count = min_of(n - first, kSorted);
    const std::vector<u32> order = order_of(points + 3 * first, count, threads);
    parallel_chunks(threads, count, kRun, [&](i64 begin, i64 end) {
      i64 guess = -1;
      for (i64 k = begin; k < end; ++k) body(first + i64(order[size_t(k)]), guess);
    });
  }
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// The build is held until it is taken: `pf_mesh_build` says how many nodes and leaves there are and returns a handle.
// vertices (V, 3), triangles (T, 3) with indices in range, T >= 1. points, origins and directions (n, 3). Outputs as
// the operators of ops/mesh_bvh.py.
#define PF_MESH(T, SUFFIX)                                                                                            \
  PF_API i64 pf_mesh_build_##SUFFIX(const T* vertices, const i64* triangles, i64 count, i64* sizes, i64 threads) {    \
    auto* built = new BuiltMesh<T>(build_mesh<T>(vertices, triangles, count, threads));                               \
    sizes[0] = i64(built->children.size()) / kFan;                                                                    \
    sizes[1] = i64(built->numbers.size()) / kFan;                                                                     \
    return i64(reinterpret_cast<intptr_t>(built));                                                                    \
  }                                                                                                                   \
  PF_API void pf_mesh_take_##SUFFIX(i64 handle, T* boxes, i32* children, T* moments, T* corners, i32* numbers, i64) { \
    auto* built = reinterpret_cast<BuiltMesh<T>*>(intptr_t(handle));                                                  \
    built->copy_to(boxes, children, moments, corners, numbers);                                                       \
    delete built;                                                                                                     \
  }                                                                                                                   \
  PF_API void pf_mesh_closest_##SUFFIX(const T* boxes, const i32* children, const T* corners, const i32* numbers,     \
                                       const T* points, i64 n, T* distance, i64* triangle, T* barycentric,            \
                                       i64 threads) {                                                                 \
    const MeshTree<T> tree{boxes, children, nullptr, corners, numbers};                                               \
    along_curve(points, n, threads, [&](i64 i, i64& guess) {                                                          \
      const Nearest<T> found = nearest_in_tree<Together<T>>(tree, points + 3 * i, guess);                             \
      if (found.place >= 0) guess = found.place;                                                                      \
      tell_nearest(tree, found, points + 3 * i, distance + i, triangle + i, barycentric + 3 * i);                     \
    });                                                                                                               \
  }                                                                                                                   \
  PF_API void pf_mesh_winding_##SUFFIX(const T* boxes, const i32* children, const T* moments, const T* corners,       \
                                       const i32* numbers, const T* points, i64 n, double accuracy, T* winding,       \
                                       i64 threads) {                                                                 \
    const MeshTree<T> tree{boxes, children, moments, corners, numbers};                                               \
    along_curve(points, n, threads,                                                                                   \
                [&](i64 i, i64&) { winding[i] = winding_in_tree<Together<T>>(tree, points + 3 * i, T(accuracy)); });  \
  }                                                                                                                   \
  PF_API void pf_mesh_hits_##SUFFIX(const T* boxes, const i32* children, const T* corners, const i32* numbers,        \
                                    const T* origins, const T* directions, i64 n, double near, double far,            \
                                    T* distance, i64* triangle, T* barycentric, i64 threads) {                        \
    const MeshTree<T> tree{boxes, children, nullptr, corners, numbers};                                               \
    parallel_chunks(threads, n, kRun, [&](i64 begin, i64 end) {                                                       \
      for (i64 i = begin; i < end; ++i) {                                                                             \
        const Shear<T> ray(origins + 3 * i, directions + 3 * i);                                                      \
        const Hit<T> found = hit_in_tree<Together<T>>(tree, ray, T(near), T(far));                                    \
        tell_hit(tree, found, ray, distance + i, triangle + i, barycentric + 3 * i);                                  \
      }                                                                                                               \
    });                                                                                                               \
  }

PF_MESH(float, f32)
PF_MESH(double, f64)
