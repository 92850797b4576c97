// Marching and packing of waves: a thread a ray. The first launch counts samples and makes running sums of the counts,
// the second walks again and writes: no sample is moved, and nothing depends on the launch. Compiled without
// contracting products into FMA, so that it finds the samples that the CPU finds.
#include "polyfield/march.h"
#include "scan.h"

namespace polyfield {

struct MarchBatch {
  const float *origins, *directions, *near, *far, *cursor;  // (R,3), (R,3), (R,), (R,), (R,) or null
  const i32* rays;                                          // (A,) or null for all
  i64 batch_rays;
  u64 seed, step;
  bool jitter;

  // The ray's number, -1 where it is out of range.
  __device__ i64 ray_of(i64 a) const {
    const i64 ray = rays ? rays[a] : a;
    return ray >= 0 && ray < batch_rays ? ray : -1;
  }
  __device__ MarchRay prepare(const Stepping& stepping, i64 ray) const {
    const float u = jitter ? random_uniform(seed, step, u64(ray), kJitterStream) : 0.5f;
    return make_march_ray(stepping, origins + 3 * ray, directions + 3 * ray, near[ray], far[ray], u);
  }
  __device__ float begin_of(i64 ray) const { return cursor ? cursor[ray] : 0.0f; }
};

template <class Emit> __device__ float march(const Stepping& stepping, const OccupancyView& grid, const MarchRay& ray,
                                             float cursor, i64 limit, const Emit& emit) {
  return stepping.cone_angle > 0.0f ? march_ray<true>(stepping, grid, ray, cursor, limit, emit)
                                    : march_ray<false>(stepping, grid, ray, cursor, limit, emit);
}

}  // namespace polyfield

using namespace polyfield;

#define PF_MARCH_INPUT                                                                                               \
  const float *origins, const float *directions, const float *near, const float *far, const float *cursor,           \
      const i32 *rays, const u8 *bits, const u8 *coarse, i64 batch_rays, Number active_rays, i64 cascades,           \
      i64 resolution, double step_size, double cone_angle, i64 samples_per_ray, i64 capacity, i64 seed, Number step, \
      i64 jitter

// `a` is the thread's ray among the active ones, `ray` its number, -1 where there is none.
#define PF_MARCH_SETUP                                                                                \
  const i64 a = thread_number(), active = active_rays;                                                \
  const MarchBatch batch{                                                                             \
      origins, directions, near, far, cursor, rays, batch_rays, u64(seed), u64(i64(step)), !!jitter}; \
  const Stepping stepping(float(step_size), float(cone_angle), cascades, resolution);                 \
  const OccupancyView grid{bits, coarse, cascades, resolution};                                       \
  const i64 ray = a < active ? batch.ray_of(a) : -1;                                                  \
  (void)samples_per_ray, (void)capacity

// Running sums of the samples of rays (`scan.h`) and cursor_out (A,), as if there were room for all.
PF_KERNEL(pf_march_count_f32, (PF_MARCH_INPUT, i32* ends, i64* totals, float* cursor_out)) {
  PF_MARCH_SETUP;
  i64 count = 0;
  float end = 1e30f * 1e30f;
  if (ray >= 0)
    end = march(stepping, grid, batch.prepare(stepping, ray), batch.begin_of(ray), samples_per_ray,
                [&](float) { ++count; });
  if (a < active) cursor_out[a] = end;
  RunningSums{ends, totals, active}.put(count);
}

// From the first ray that does not fit on, rays get nothing and are to begin again at their first sample; `dropped`
// (1,), zero before, counts those that had any. Positions are written as position * scale + shift; the number of
// samples goes to `total` (1,) where there are rays. `distances` and `dropped` may be null.
PF_KERNEL(pf_march_write_f32,
          (PF_MARCH_INPUT, i32* ends, i64* totals, double scale, double shift, float* positions, float* distances,
           float* deltas, i32* offsets, float* cursor_out, i64* dropped, i64* total)) {
  PF_MARCH_SETUP;
  const RunningSums sums{ends, totals, active};
  const i64 before = sums.before_block();
  if (a >= active) return;
  const i64 begin = before + sums.within_block(), end = before + ends[a];
  const i64 written = end > capacity ? sums.last_within(capacity) : end;
  if (a == 0) offsets[0] = 0;
  if (a == active - 1) *total = written;
  offsets[a + 1] = i32(written);
  if (end == begin) return;
  if (end > capacity) {
    if (dropped) atomicAdd(reinterpret_cast<u64*>(dropped), u64(1));
    cursor_out[a] = march(stepping, grid, batch.prepare(stepping, ray), batch.begin_of(ray), 0, [](float) {});
    return;
  }
  i64 place = begin;
  const float *o = batch.origins + 3 * ray, *d = batch.directions + 3 * ray;
  march(stepping, grid, batch.prepare(stepping, ray), batch.begin_of(ray), end - begin, [&](float t) {
    for (int axis = 0; axis < 3; ++axis)
      positions[3 * place + axis] = (o[axis] + t * d[axis]) * float(scale) + float(shift);
    if (distances) distances[place] = t;
    deltas[place] = stepping.dt(t);
    ++place;
  });
}

// Segments in the order of their rays: `order` (M,) sorts them, `ends` (M,) are the running sums of their counts then.
PF_KERNEL(pf_pack_waves_index,
          (const i64* order, const i32* starts, const i32* counts, const i64* ends, i64 segments, i32* index)) {
  const i64 m = thread_number();
  if (m >= segments) return;
  const i32 start = starts[order[m]], count = counts[order[m]];
  i32* place = index + ends[m] - count;
  for (i32 k = 0; k < count; ++k) place[k] = i32(i64(start) + k);
}
