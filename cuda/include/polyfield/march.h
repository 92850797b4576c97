// Which points of a ray lie in occupied cells? The stepping lattice and the walk over nested occupancy grids, one ray,
// host and device. After instant-ngp (Mueller et al. 2022, appendix E.1).
//
// Lattice. A ray has points t_0 = near + u dt(near), u in [0, 1) drawn or 1/2, and t_(i+1) = t_i + dt(t_i) with
// dt(t) = clamp(t cone_angle, step_size, max_step); where cone_angle is 0, t_i = t_0 + i step_size in closed form.
// Rule. Lattice point t is a sample if t < far, its position lies inside the outermost cascade and its cell is
// occupied, in the cascade that is the coarser of what position and step ask for (a cell is at least two steps wide).
// Everything else is acceleration that must not change the set: jumps over empty cells and blocks stop a margin early.
// This holds if products are not contracted into FMA: the CPU file turns contraction off, so that every build and the
// torch reference find the same samples.
#pragma once
#include "occupancy.h"

namespace polyfield {

constexpr float kSkipMargin = 1e-3f;   // cells; float error of a position is below this within 50 units of the origin
constexpr float kNoDirection = 1e-6f;  // directions are of unit length; shorter than this is none
constexpr float kMaxLattice = 4194304.0f;  // 2^22 steps: beyond, float distances no longer resolve a step

struct Stepping {
  float step_size, inverse_step, max_step, cone_angle;
  i64 cascades, resolution;

  // Where a cell of the outermost cascade is wider than a step, dt may grow up to its diagonal.
  PF_HD Stepping(float step, float cone, i64 cascade_count, i64 cells)
      : step_size(step), inverse_step(1.0f / step), cone_angle(cone), cascades(cascade_count), resolution(cells) {
    const float diagonal = 1.7320508f * float(i64(2) << (cascade_count - 1)) / float(cells);
    max_step = max_of(step, diagonal);
  }
  PF_HD float dt(float t) const { return cone_angle > 0.0f ? clamp(t * cone_angle, step_size, max_step) : step_size; }
  // Distance at which steps become too long for cells of `cascade`, a margin early; huge where they never do.
  PF_HD float cascade_limit(int cascade) const {
    if (!(cone_angle > 0.0f) || cascade + 1 >= cascades) return 1e30f;
    return float(i64(1) << cascade) / (float(resolution) * cone_angle) * 0.99999f;
  }
};

struct MarchRay {
  float origin[3], direction[3], inverse[3];
  float begin, end;  // where samples can be: [near, far) cut to the outermost cascade, a margin wide
  float first;       // t_0
};

// Prepares a ray; begin >= end where it has no samples.
PF_HD MarchRay make_march_ray(const Stepping& stepping, const float* o, const float* d, float near, float far,
                              float u) {
  MarchRay ray;
  const float reach = float(i64(1) << (stepping.cascades - 1)), infinity = 1e30f * 1e30f;
  float enter = near, leave = far;
  bool valid = near < far && near >= 0.0f && near < 1e30f;
  valid = valid && max_of(fabs(d[0]), max_of(fabs(d[1]), fabs(d[2]))) > kNoDirection;
  for (int a = 0; a < 3; ++a) {
    ray.origin[a] = o[a];
    ray.direction[a] = d[a];
    ray.inverse[a] = fabs(d[a]) > 1e-20f ? 1.0f / d[a] : (d[a] < 0.0f ? -1e20f : 1e20f);
    valid = valid && fabs(o[a]) < infinity && fabs(d[a]) < infinity;
    if (fabs(d[a]) > 1e-20f) {
      const float p = (-reach - o[a]) * ray.inverse[a], q = (reach - o[a]) * ray.inverse[a];
      enter = max_of(enter, min_of(p, q));
      leave = min_of(leave, max_of(p, q));
    } else {
      valid = valid && fabs(o[a]) <= reach;
    }
  }
  const float margin = 1e-4f + 1e-5f * fabs(leave < infinity ? leave : 0.0f);
  ray.first = near + u * stepping.dt(near);
  ray.begin = max_of(enter - margin, near);
  ray.end = min_of(min_of(leave + margin, far), min_of(1e30f, stepping.step_size * kMaxLattice));
  if (!valid) ray.begin = 0.0f, ray.end = 0.0f, ray.first = 0.0f;
  return ray;
}

// Walks the lattice of one ray. `Cone` is whether cone_angle > 0.
template <bool Cone> struct LatticeWalk {
  float t;
  float index = 0.0f;  // t = first + index step_size where the step is constant; exact, being at most 2^22

  PF_HD void start(const Stepping& s, const MarchRay& ray, float cursor) {
    t = ray.first;
    if (cursor > t) {  // a point of this lattice where an earlier wave stopped
      if (Cone) {
        t = cursor;
      } else {
        seek(s, ray, floor((cursor - ray.first) * s.inverse_step + 0.5f));
      }
    }
    if (t < ray.begin) advance(s, ray, ray.begin);
  }
  PF_HD void seek(const Stepping& s, const MarchRay& ray, float i) {
    index = i;
    t = ray.first + i * s.step_size;
  }
  PF_HD void next(const Stepping& s, const MarchRay& ray) {
    if (Cone) {
      t = t + s.dt(t);
    } else {
      seek(s, ray, index + 1.0f);
    }
  }
  // To the first lattice point after t that is not before `target`, or somewhat earlier.
  PF_HD void advance(const Stepping& s, const MarchRay& ray, float target) {
    if (Cone) {
      do next(s, ray);
      while (t < target);
    } else {
      const float steps = (target - ray.first) * s.inverse_step;
      const float safe = ceil(steps * (1.0f - 1e-6f) - 1e-3f);
      seek(s, ray, max_of(safe, index + 1.0f));
    }
  }
};

// What a cascade means for a walk: cells per scene unit and back, and up to where steps are short enough for its cells.
struct CascadeScale {
  int cascade = -1;
  float scale = 0.0f, width = 0.0f, limit = 0.0f;

  PF_HD void choose(const Stepping& s, float norm, float t) {
    const int k = cascade_of(max_of(norm, s.dt(t) * float(s.resolution)), int(s.cascades) - 1);
    if (k == cascade) return;
    cascade = k;
    scale = 0.5f * float(s.resolution) / float(i64(1) << k);
    width = 1.0f / scale;
    limit = s.cascade_limit(k);
  }
};

// How far the walk may leap from t, whose position is f in cells: out of its empty cell, or where its block is empty,
// out of the cube of blocks [b - n + 1, b + n) around it, less a margin. Not past the cascade, nor to where steps ask
// for the next one.
template <bool Cone>
PF_HD float leap_target(const MarchRay& ray, const CascadeScale& at, float t, const float* f, const int* cell,
                        int blocks, int cells) {
  const int mask = blocks ? kOccupancyBlock - 1 : 0;
  const int before = blocks ? kOccupancyBlock * (blocks - 1) : 0, after = blocks ? kOccupancyBlock * blocks : 1;
  float leave = 1e30f;
  for (int a = 0; a < 3; ++a) {
    const int corner = cell[a] & ~mask;
    const bool up = ray.direction[a] > 0.0f;
    const int face = up ? min_of(corner + after, cells) : max_of(corner - before, 0);
    const float edge = up ? float(face) - f[a] : f[a] - float(face);
    leave = min_of(leave, (edge - kSkipMargin) * fabs(ray.inverse[a]));
  }
  const float target = min_of(t + max_of(leave, 0.0f) * at.width, ray.end);
  if (Cone) return t < at.limit ? min_of(target, at.limit) : t;
  return target;
}

// Calls emit(t) for at most `limit` samples of the ray from `cursor` on. Returns the distance of the first sample that
// was not emitted, infinity where there is none.
template <bool Cone, class Emit>
PF_HD float march_ray(const Stepping& s, const OccupancyView& grid, const MarchRay& ray, float cursor, i64 limit,
                      const Emit& emit) {
  const float infinity = 1e30f * 1e30f;
  if (!(ray.begin < ray.end) || !(cursor < ray.end)) return infinity;
  const int cells = int(s.resolution);
  const float half = 0.5f * float(cells), reach = float(i64(1) << (s.cascades - 1));
  LatticeWalk<Cone> walk;
  walk.start(s, ray, cursor);
  CascadeScale at;
  i64 emitted = 0;
  while (walk.t < ray.end) {
    const float t = walk.t;
    float x[3], f[3];
    int c[3];
    for (int a = 0; a < 3; ++a) x[a] = ray.origin[a] + t * ray.direction[a];
    const float norm = max_of(fabs(x[0]), max_of(fabs(x[1]), fabs(x[2])));
    if (!(norm < reach)) {  // within the margin, before entering or after leaving
      walk.next(s, ray);
      continue;
    }
    at.choose(s, norm, t);
    for (int a = 0; a < 3; ++a) {
      f[a] = x[a] * at.scale + half;
      c[a] = clamp(int(f[a]), 0, cells - 1);
    }
    const int blocks = grid.empty_blocks(at.cascade, c[0] >> 3, c[1] >> 3, c[2] >> 3);
    if (blocks || !grid.cell(at.cascade, c[0], c[1], c[2])) {
      walk.advance(s, ray, leap_target<Cone>(ray, at, t, f, c, blocks, cells));
      continue;
    }
    if (emitted == limit) return t;
    emit(t);
    ++emitted;
    walk.next(s, ray);
  }
  return infinity;
}

}  // namespace polyfield
