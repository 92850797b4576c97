// Marching, early termination and packing of waves on the CPU. Rays go in chunks of 64: each chunk walks its rays once
// into a buffer of its own, counts become offsets in ray order, then the chunks write their places. Nothing depends on
// the thread count. Products are not contracted into FMA here, so that all builds agree with the torch reference.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#include <cstring>
#include <utility>

#include "parallel.h"
#include "polyfield/march.h"
#include "simd.h"

namespace polyfield {
namespace {

constexpr i64 kChunk = 64;  // rays: enough to amortise a task, few enough to balance

struct MarchBatch {
  const float *origins, *directions, *near, *far, *cursor;  // (R,3), (R,3), (R,), (R,), (R,) or null
  const i32* rays;                                          // (A,) or null for all
  u64 seed, step;
  bool jitter;

  i64 ray_of(i64 a) const { return rays ? rays[a] : a; }
  MarchRay prepare(const Stepping& stepping, i64 ray) const {
    const float u = jitter ? random_uniform(seed, step, u64(ray), kJitterStream) : 0.5f;
    return make_march_ray(stepping, origins + 3 * ray, directions + 3 * ray, near[ray], far[ray], u);
  }
};

struct MarchOutput {
  float *positions, *distances, *deltas;  // (capacity, 3), (capacity,), (capacity,)
  i32* offsets;                           // (A + 1,)
  float* cursor;                          // (A,)
};

// Distances found by a chunk of rays, in ray order; kept until every chunk knows its place.
struct ChunkSamples {
  float* distances;
  i64 count;
};

// A growing list of distances of one thread.
struct DistanceList {
  Scratch<float> data;
  i64 count = 0;

  void make_room(i64 more) {
    if (count + more <= data.capacity) return;
    Scratch<float> larger;
    larger.reserve(2 * (count + more));
    if (count) std::memcpy(larger.data, data.data, count * sizeof(float));
    std::swap(larger.data, data.data);
    std::swap(larger.capacity, data.capacity);
  }
  void append(float t) {
    make_room(1);
    data.data[count++] = t;
  }
};

#if defined(__AVX512F__) || defined(__AVX2__)
constexpr bool kWide = true;

inline Vec<float> absolute(Vec<float> v) {
  typename VecType<float>::mask bits;
  std::memcpy(&bits, &v, sizeof bits);
  bits &= 0x7fffffff;
  std::memcpy(&v, &bits, sizeof bits);
  return v;
}

// One bit a lane: is the lattice point at `t` a sample? The rule of march.h on a whole vector of points.
inline u32 sample_mask(const Stepping& s, const OccupancyView& grid, const MarchRay& ray, Vec<float> t, Vec<float> dt) {
  using F = Vec<float>;
  using I = typename VecType<float>::mask;
  const float half = 0.5f * float(s.resolution), reach = float(i64(1) << (s.cascades - 1));
  const i32 cells = i32(s.resolution), last = i32(s.resolution) - 1;
  const F x = ray.origin[0] + t * ray.direction[0];
  const F y = ray.origin[1] + t * ray.direction[1];
  const F z = ray.origin[2] + t * ray.direction[2];
  const F ax = absolute(x), ay = absolute(y), az = absolute(z);
  F norm = ay > az ? ay : az;
  norm = ax > norm ? ax : norm;
  I cascade{};
  F scale = splat(half);
  if (s.cascades > 1) {
    const F by_step = dt * float(cells);
    const F asked = norm > by_step ? norm : by_step;
    float side = 1.0f;
    for (i64 k = 1; k < s.cascades; ++k, side += side) cascade += (asked < side) + 1;
    const I bits = (127 - cascade) << 23;
    F shrink;
    std::memcpy(&shrink, &bits, sizeof shrink);
    scale = half * shrink;
  }
  const auto cell = [&](F v) {
    I c = __builtin_convertvector(v * scale + half, I);  // outside the grid whatever it gives, clamped below
    c = c < 0 ? I{} : c;
    return c > last ? I{} + last : c;
  };
  const I flat = ((cascade * cells + cell(z)) * cells + cell(y)) * cells + cell(x);
  const I inside = (norm < reach) & (t < ray.end);
#if defined(__AVX512F__)
  // The masked form, since GCC 12 warns of the plain one's own undefined source.
  const I words = (I)_mm512_mask_i32gather_epi32(__m512i{}, 0xffff, (__m512i)(flat >> 5), grid.bits, 4);
  const I hit = inside & (words >> (flat & 31)) & 1;
  return u32(_mm512_test_epi32_mask((__m512i)hit, (__m512i)hit));
#else
  const I words = (I)_mm256_i32gather_epi32(reinterpret_cast<const int*>(grid.bits), (__m256i)(flat >> 5), 4);
  const I hit = (inside & (words >> (flat & 31))) << 31;
  return u32(_mm256_movemask_ps((__m256)hit));
#endif
}

// The lattice from the walk's point on, one vector long.
template <bool Cone> inline Vec<float> lattice_points(const Stepping& s, const MarchRay& ray,
                                                      const LatticeWalk<Cone>& walk) {
  constexpr int kWidth = kLanes<float>;
  alignas(64) float t[kWidth];
  if (Cone) {
    t[0] = walk.t;
    for (int k = 1; k < kWidth; ++k) t[k] = t[k - 1] + s.dt(t[k - 1]);
  } else {
    for (int k = 0; k < kWidth; ++k) t[k] = ray.first + (walk.index + float(k)) * s.step_size;
  }
  return load(t);
}

// march_ray of march.h where blocks are leapt over as there, and the points in a block that is not empty are looked up
// a vector at a time: a branch and a chain of latencies for many points, not for each.
template <bool Cone>
float march_wide(const Stepping& s, const OccupancyView& grid, const MarchRay& ray, float cursor, i64 limit,
                 DistanceList& out) {
  constexpr int kWidth = kLanes<float>;
  const float infinity = 1e30f * 1e30f;
  if (!(ray.begin < ray.end) || !(cursor < ray.end)) return infinity;
  const int cells = int(s.resolution);
  const float half = 0.5f * float(cells), reach = float(i64(1) << (s.cascades - 1));
  LatticeWalk<Cone> walk;
  walk.start(s, ray, cursor);
  CascadeScale at;
  i64 left = limit;
  while (walk.t < ray.end) {
    const float t = walk.t;
    float x[3], f[3];
    int c[3];
    for (int a = 0; a < 3; ++a) x[a] = ray.origin[a] + t * ray.direction[a];
    const float norm = max_of(fabs(x[0]), max_of(fabs(x[1]), fabs(x[2])));
    if (!(norm < reach)) {
      walk.next(s, ray);
      continue;
    }
    at.choose(s, norm, t);
    for (int a = 0; a < 3; ++a) {
      f[a] = x[a] * at.scale + half;
      c[a] = clamp(int(f[a]), 0, cells - 1);
    }
    if (const int blocks = grid.empty_blocks(at.cascade, c[0] >> 3, c[1] >> 3, c[2] >> 3)) {
      walk.advance(s, ray, leap_target<Cone>(ray, at, t, f, c, blocks, cells));
      continue;
    }
    const Vec<float> points = lattice_points<Cone>(s, ray, walk);
    Vec<float> dt = splat(s.step_size);
    if (Cone) {
      dt = points * s.cone_angle;
      dt = dt > s.step_size ? dt : splat(s.step_size);
      dt = dt < s.max_step ? dt : splat(s.max_step);
    }
    const u32 mask = sample_mask(s, grid, ray, points, dt);
    const i64 found = __builtin_popcount(mask);
    alignas(64) float distances[kWidth];
    store(distances, points);
    out.make_room(kWidth);
    float* place = out.data.data + out.count;
    if (found > left) {
      int k = 0;
      for (;; ++k) {
        if (!(mask >> k & 1)) continue;
        if (left-- == 0) return distances[k];
        *place++ = distances[k];
        ++out.count;
      }
    }
    left -= found;
    out.count += found;
    for (int k = 0; k < kWidth; ++k) {  // writes every point, keeps the place of those that count
      *place = distances[k];
      place += mask >> k & 1;
    }
    if (Cone) {
      walk.t = distances[kWidth - 1];
      walk.next(s, ray);
    } else {
      walk.seek(s, ray, walk.index + float(kWidth));
    }
  }
  return infinity;
}
#else
constexpr bool kWide = false;
template <bool Cone>
float march_wide(const Stepping&, const OccupancyView&, const MarchRay&, float, i64, DistanceList&) {
  return 0.0f;
}
#endif

template <bool Cone>
void march_chunk(const MarchBatch& batch, const Stepping& stepping, const OccupancyView& grid, i64 begin, i64 end,
                 i64 limit, const MarchOutput& out, ChunkSamples* found) {
  static thread_local DistanceList list;
  list.count = 0;
  for (i64 a = begin; a < end; ++a) {
    const i64 id = batch.ray_of(a), before = list.count;
    const MarchRay ray = batch.prepare(stepping, id);
    const float cursor = batch.cursor ? batch.cursor[id] : 0.0f;
    if (kWide) {
      out.cursor[a] = march_wide<Cone>(stepping, grid, ray, cursor, limit, list);
    } else {
      out.cursor[a] = march_ray<Cone>(stepping, grid, ray, cursor, limit, [&](float t) { list.append(t); });
    }
    out.offsets[a + 1] = i32(list.count - before);
  }
  found->count = list.count;
  found->distances = static_cast<float*>(std::malloc((list.count + 1) * sizeof(float)));
  if (list.count) std::memcpy(found->distances, list.data.data, list.count * sizeof(float));
}

void write_chunk(const MarchBatch& batch, const Stepping& stepping, i64 begin, i64 end, const ChunkSamples& found,
                 const MarchOutput& out) {
  const float* distances = found.distances;
  for (i64 a = begin; a < end; ++a) {
    const i64 ray = batch.ray_of(a);
    const float *o = batch.origins + 3 * ray, *d = batch.directions + 3 * ray;
    for (i64 i = out.offsets[a]; i < out.offsets[a + 1]; ++i) {
      const float t = *distances++;
      for (int axis = 0; axis < 3; ++axis) out.positions[3 * i + axis] = o[axis] + t * d[axis];
      out.distances[i] = t;
      out.deltas[i] = stepping.dt(t);
    }
  }
}

// Turns the counts in offsets[1..A] into offsets. From the first ray that does not fit on, rays get nothing and are to
// begin again at their first sample. Returns how many rays with samples were left out.
i64 place_rays(i64 rays, i64 capacity, const ChunkSamples* found, const MarchOutput& out) {
  i64 total = 0, dropped = 0;
  bool full = false;
  out.offsets[0] = 0;
  for (i64 a = 0, at = 0; a < rays; ++a) {
    if (a % kChunk == 0) at = 0;
    const i64 count = out.offsets[a + 1];
    full = full || total + count > capacity;
    if (full && count > 0) {
      ++dropped;
      out.cursor[a] = found[a / kChunk].distances[at];
    }
    total += full ? 0 : count;
    out.offsets[a + 1] = i32(total);
    at += count;
  }
  return dropped;
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// Returns the number of samples, or -1 where a ray index is out of range. `dropped` is (1,).
PF_API i64 pf_march_rays_f32(const float* origins, const float* directions, const float* near, const float* far,
                             const float* cursor, const i32* rays, const u8* bits, const u8* coarse, i64 batch_rays,
                             i64 active, i64 cascades, i64 resolution, double step_size, double cone_angle,
                             i64 samples_per_ray, i64 capacity, i64 seed, i64 step, i64 jitter, float* positions,
                             float* distances, float* deltas, i32* offsets, float* cursor_out, i64* dropped,
                             i64 threads) {
  for (i64 a = 0; rays && a < active; ++a)
    if (rays[a] < 0 || rays[a] >= batch_rays) return -1;
  const MarchBatch batch{origins, directions, near, far, cursor, rays, u64(seed), u64(step), jitter != 0};
  const Stepping stepping(float(step_size), float(cone_angle), cascades, resolution);
  const OccupancyView grid{bits, coarse, cascades, resolution};
  const MarchOutput out{positions, distances, deltas, offsets, cursor_out};
  static thread_local Scratch<ChunkSamples> chunks;
  ChunkSamples* found = chunks.reserve((active + kChunk - 1) / kChunk);
  parallel_chunks(threads, active, kChunk, [&](i64 begin, i64 end) {
    if (cone_angle > 0.0) {
      march_chunk<true>(batch, stepping, grid, begin, end, samples_per_ray, out, found + begin / kChunk);
    } else {
      march_chunk<false>(batch, stepping, grid, begin, end, samples_per_ray, out, found + begin / kChunk);
    }
  });
  *dropped = place_rays(active, capacity, found, out);
  parallel_chunks(threads, active, kChunk, [&](i64 begin, i64 end) {
    write_chunk(batch, stepping, begin, end, found[begin / kChunk], out);
    std::free(found[begin / kChunk].distances);
  });
  return offsets[active];
}

// Groups the live samples of all waves by ray. Segment m holds counts[m] rows from starts[m] on of ray ids[m]; segments
// of one ray come in marching order. Returns 0, or -1 where a ray or a count is out of range.
PF_API i64 pf_pack_waves_count(const i32* ids, const i32* counts, i64 segments, i64 rays, i32* offsets, i64 threads) {
  (void)threads;
  std::memset(offsets, 0, (rays + 1) * sizeof(i32));
  i64 total = 0;
  for (i64 m = 0; m < segments; ++m) {
    if (ids[m] < 0 || ids[m] >= rays || counts[m] < 0) return -1;
    offsets[ids[m] + 1] += counts[m];
    total += counts[m];
  }
  if (total > 2147483647) return -1;
  for (i64 r = 0; r < rays; ++r) offsets[r + 1] += offsets[r];
  return total;
}

PF_API i64 pf_pack_waves_index(const i32* ids, const i32* starts, const i32* counts, i64 segments, i64 rays,
                               const i32* offsets, i32* index, i64 threads) {
  // Each task takes a range of rays and reads all segments: writes never meet, order within a ray is kept.
  static thread_local Scratch<i32> heads;
  i32* next = heads.reserve(rays);
  const i64 tasks = segments < 4096 ? 1 : threads;
  parallel_for(threads, tasks, [&](i64 task) {
    const i64 low = rays * task / tasks, high = rays * (task + 1) / tasks;
    for (i64 r = low; r < high; ++r) next[r] = offsets[r];
    for (i64 m = 0; m < segments; ++m) {
      const i64 ray = ids[m];
      if (ray < low || ray >= high) continue;
      i32* place = index + next[ray];
      for (i32 k = 0; k < counts[m]; ++k) place[k] = i32(i64(starts[m]) + k);
      next[ray] += counts[m];
    }
  });
  return 0;
}
