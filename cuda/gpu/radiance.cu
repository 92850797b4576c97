// What joins the operators of a train step into one list of launches that the host never waits for: how many rays,
// samples and live samples there are stays on the device (`StepState`), between `pf_radiance_begin`, which takes what
// changes from step to step, and `pf_radiance_finish`, which leaves what the host reads later.
//
// A ray is whole if the waves of marching reached its end and its samples found room; only whole rays are learned from.
#include "composite_warp.h"
#include "polyfield/adam.h"
#include "polyfield/ray_box.h"
#include "polyfield/spherical_harmonics.h"
#include "scan.h"

namespace polyfield {

// Every member takes 8 bytes; the host knows their places (`_State` of radiance_program.py).
struct StepState {
  i64 rays, step;
  double rate;        // factor of the learning rates
  i64 live;           // samples that are learned from
  i64 whole;          // rays that are learned from
  i64 dropped;        // how often a ray found no room
  i64 failed;         // 1: something was not finite, or there is nothing to learn from; nothing is updated
  i64 loss, squared;  // sums over rays and channels, in units of 2^-32, so that their order does not matter
  i64 skipped;        // steps that failed so far
};

constexpr double kUnit = 4294967296.0;  // 2^32

// The samples of marching: wave after wave in one buffer, each wave with room of its own.
struct Waves {
  i64 number, room_of_rays;
  const i64* first;    // (number,) first row of each wave
  const i32* offsets;  // (number, room_of_rays + 1)
  const i32* live;     // (number, room_of_rays)
  __device__ i64 row(i64 wave, i64 ray) const { return first[wave] + offsets[wave * (room_of_rays + 1) + ray]; }
  __device__ i64 count(i64 wave, i64 ray) const { return live[wave * room_of_rays + ray]; }
};

// Huber's function, or the square where `huber` is not positive; `slope` is its derivative.
__device__ inline double loss_of(double error, double huber, double* slope) {
  if (!(huber > 0)) {
    *slope = 2 * error;
    return error * error;
  }
  const double size = fabs(error);
  *slope = size < huber ? error / huber : (error > 0 ? 1.0 : -1.0);
  return size < huber ? 0.5 * size * size / huber : size - 0.5 * huber;
}

// In units, cut where 2^18 rays of it would leave 63 bits; NaN is not summed.
__device__ inline i64 in_units(double value) { return value == value ? i64(rint(min_of(value, 4096.0) * kUnit)) : 0; }

__device__ inline void fail(StepState* state) { atomicMax(reinterpret_cast<u32*>(&state->failed), 1u); }

__device__ inline bool not_finite(float value) { return !(fabs(value) < 1e30f * 1e30f); }

}  // namespace polyfield

using namespace polyfield;

// A thread a ray: where it enters and leaves the box of the outermost cascade. One thread begins the step.
PF_KERNEL(pf_radiance_begin,
          (const float* origins, const float* directions, i64 rays, i64 step, double rate, double nearest, double reach,
           StepState* state, i64* marched, i64 waves, float* near, float* far, float* cursor, float* optical)) {
  const i64 ray = thread_number();
  if (ray == 0) {
    *state = {rays, step, rate, 0, 0, 0, 0, 0, 0, state->skipped};
    for (i64 wave = 0; wave < waves; ++wave) marched[wave] = 0;
  }
  if (ray >= rays) return;
  const float low[3] = {-float(reach), -float(reach), -float(reach)},
              high[3] = {float(reach), float(reach), float(reach)};
  const RayInterval<float> hit = intersect_box<float>(origins + 3 * ray, directions + 3 * ray, low, high);
  near[ray] = max_of(hit.near, float(nearest));
  far[ray] = hit.far;
  cursor[ray] = 0.0f;
  optical[ray] = 0.0f;
}

// A warp a ray, after a wave: how many of its samples it needs, and where the next wave goes on (infinity: not at all).
PF_KERNEL(pf_radiance_trim,
          (const float* head, i64 columns, const float* deltas, const i32* offsets, Number rays, Number samples,
           i64 activation, double limit, const float* next, i32* live, float* optical, float* cursor)) {
  for (i64 ray = warp_number(), count = rays; ray < count; ray += warp_count()) {
    const RayRows rows(offsets, ray, samples);
    const float before = optical[ray];
    __syncwarp(kAllLanes);
    u8 finished = 0;
    with_activation(activation, [&](auto a) {
      trim<decltype(a)::value, float>(head, columns, deltas, rows, float(limit), before, 0, live + ray, optical + ray,
                                      &finished);
    });
    if (lane_number() == 0) cursor[ray] = finished ? 1e30f * 1e30f : next[ray];
  }
}

// A thread a ray, after the last wave: running sums of the live samples of rays that reached their end.
PF_KERNEL(pf_radiance_count, (i64 waves, i64 room_of_rays, const i64* first, const i32* offsets, const i32* live,
                              Number rays, const float* cursor, i32* ends, i64* totals)) {
  const i64 ray = thread_number();
  const Waves samples{waves, room_of_rays, first, offsets, live};
  i64 count = 0;
  if (ray < rays && not_finite(cursor[ray]))
    for (i64 wave = 0; wave < waves; ++wave) count += samples.count(wave, ray);
  RunningSums{ends, totals, rays}.put(count);
}

// offsets_out (rays + 1,) of the live samples, and which rays are whole.
PF_KERNEL(pf_radiance_place,
          (i32 * ends, i64* totals, const float* cursor, i64 room, i32* offsets_out, u8* whole, StepState* state)) {
  const i64 ray = thread_number(), rays = state->rays;
  const RunningSums sums{ends, totals, rays};
  const i64 before = sums.before_block();
  bool is_whole = false, is_dropped = false;
  if (ray < rays) {
    const i64 end = before + ends[ray], written = end > room ? sums.last_within(room) : end;
    if (ray == 0) offsets_out[0] = 0;
    offsets_out[ray + 1] = i32(written);
    is_whole = end <= room && not_finite(cursor[ray]);
    is_dropped = !is_whole;
    whole[ray] = is_whole;
    if (ray == rays - 1) {
      state->live = written;
      if (written == 0) fail(state);
    }
  }
  const int whole_rays = __popc(votes(is_whole)), dropped_rays = __popc(votes(is_dropped));
  if (lane_number()) return;
  if (whole_rays) atomicAdd(reinterpret_cast<u64*>(&state->whole), u64(whole_rays));
  if (dropped_rays) atomicAdd(reinterpret_cast<u64*>(&state->dropped), u64(dropped_rays));
}

// A warp a ray: its live samples side by side. `head` (rows, 1 + features): raw density and features; `seen` (live,
// features + bands^2): what the colour network is given.
PF_KERNEL(pf_radiance_gather,
          (i64 waves, i64 room_of_rays, const i64* first, const i32* offsets, const i32* live, Number rays,
           const i32* places, const float* directions, i64 bands, i64 features, i64 width, const float* positions,
           const float* deltas, const float* encoded, const float* head, float* positions_out, float* deltas_out,
           float* encoded_out, float* raw_out, float* seen)) {
  __shared__ float bases[kWarps][16];
  float* basis = bases[threadIdx.x / kWarp];
  const Waves samples{waves, room_of_rays, first, offsets, live};
  const i64 lane = lane_number(), columns = features + bands * bands;
  for (i64 ray = warp_number(), count = rays; ray < count; ray += warp_count()) {
    i64 place = places[ray];
    if (place == places[ray + 1]) continue;
    const float* d = directions + 3 * ray;
    __syncwarp(kAllLanes);
    if (lane == 0) sh_basis(d[0], d[1], d[2], bands, basis);
    __syncwarp(kAllLanes);
    for (i64 wave = 0; wave < waves; ++wave) {
      const i64 begin = samples.row(wave, ray), end = begin + samples.count(wave, ray);
      for (i64 row = begin; row < end; ++row, ++place) {
        for (i64 c = lane; c < width; c += kWarp) encoded_out[place * width + c] = encoded[row * width + c];
        const float* heads = head + row * (1 + features);
        for (i64 c = lane; c < columns; c += kWarp)
          seen[place * columns + c] = c < features ? heads[1 + c] : basis[c - features];
        if (lane < 3) positions_out[3 * place + lane] = positions[3 * row + lane];
        if (lane == 3) deltas_out[place] = deltas[row];
        if (lane == 4) raw_out[place] = heads[0];
      }
    }
  }
}

// A warp a ray: what it sees, its loss, and the gradients of raw densities and colours. `pixels` and `slopes`
// (rays, 3), `alpha` (rays,) are scratch.
PF_KERNEL(pf_radiance_composite,
          (const float* raw, const float* rgb, const float* deltas, const i32* offsets, const float* backgrounds,
           const float* targets, const u8* whole, i64 activation, double limit, double huber, StepState* state,
           float* pixels, float* alpha, float* slopes, float* raw_gradient, float* rgb_gradient)) {
  const i64 rays = state->rays, live = state->live;
  const double share = 1.0 / (3.0 * double(max_of(state->whole, i64(1))));
  const CompositeInput<float> in{raw, rgb, nullptr, deltas, offsets, backgrounds, rays, live, float(limit)};
  const CompositeOutput<float> out{pixels, alpha, nullptr, nullptr, nullptr};
  const CompositeGradients<float> g{slopes, nullptr, nullptr, nullptr, raw_gradient, rgb_gradient, nullptr};
  i64 loss = 0, squared = 0;
  bool failed = false;
  for (i64 ray = warp_number(); ray < rays; ray += warp_count()) {
    if (!whole[ray]) continue;
    with_activation(activation, [&](auto a) {
      composite<decltype(a)::value, float>(in, ray, out);
      __syncwarp(kAllLanes);
      if (lane_number() == 0)
        for (i64 i = 3 * ray; i < 3 * ray + 3; ++i) {
          const double error = double(pixels[i]) - double(targets[i]);
          double slope;
          loss += in_units(loss_of(error, huber, &slope));
          squared += in_units(error * error);
          slopes[i] = float(slope * share);
          failed = failed || !(error * error < 1e300);
        }
      __syncwarp(kAllLanes);
      composite_backward<decltype(a)::value, float>(in, ray, g);
    });
  }
  if (lane_number()) return;
  if (loss) atomicAdd(reinterpret_cast<u64*>(&state->loss), u64(loss));
  if (squared) atomicAdd(reinterpret_cast<u64*>(&state->squared), u64(squared));
  if (failed) fail(state);
}

// Gradient of the density network's outputs (live, 1 + features) from those of raw densities (live,) and of what the
// colour network was given (live, columns).
PF_KERNEL(pf_radiance_head, (const float* raw_gradient, const float* seen_gradient, i64 features, i64 columns,
                             Number live, float* head_gradient)) {
  const i64 width = 1 + features, count = live * width;
  for (i64 i = thread_number(); i < count; i += thread_count()) {
    const i64 sample = i / width, c = i % width;
    head_gradient[i] = c ? seen_gradient[sample * columns + c - 1] : raw_gradient[sample];
  }
}

// What sums of the table's gradient are multiplied by to be integers: the largest of (live, width) values first, by its
// bits, then the scale.
PF_KERNEL(pf_radiance_largest, (const float* values, Number live, i64 width, u32* largest)) {
  u32 bits = 0;
  for (i64 i = thread_number(), count = live * width; i < count; i += thread_count())
    bits = max_of(bits, __float_as_uint(fabs(values[i])));
  for (int by = kWarp / 2; by; by /= 2) bits = max_of(bits, __shfl_xor_sync(kAllLanes, bits, by));
  if (lane_number() == 0) atomicMax(largest, bits);
}
PF_KERNEL(pf_radiance_scale, (u32 * largest, i64 room, double* scale, StepState* state)) {
  if (thread_number()) return;
  if (not_finite(__uint_as_float(*largest))) fail(state);  // integers would hide it
  *scale = 4611686018427387904.0 / (8.0 * double(room)) / max_of(double(__uint_as_float(*largest)), 1e-250);
  *largest = 0;
}
// sums / scale, and zeros in their place.
PF_KERNEL(pf_radiance_unscale, (i64 * sums, i64 count, const double* scale, float* gradient)) {
  for (i64 i = thread_number(); i < count; i += thread_count()) {
    gradient[i] = float(double(sums[i]) / *scale);
    sums[i] = 0;
  }
}

PF_KERNEL(pf_radiance_check, (const float* gradient, i64 count, StepState* state)) {
  bool failed = false;
  for (i64 i = thread_number(); i < count; i += thread_count()) failed = failed || not_finite(gradient[i]);
  if (failed) fail(state);
}

// Adam of a parameter (rows, channels) unless the step failed; zeroes the gradient either way. Where `lazy`, rows
// without gradient keep value and moments. `rounded`, a copy in binary16, may be null.
PF_KERNEL(pf_radiance_adam,
          (float* parameter, float* gradient, float* m, float* v, Half* rounded, i64 rows, i64 channels, double lr,
           double beta1, double beta2, double epsilon, i64 lazy, const StepState* state)) {
  __shared__ AdamStep<float> shared;
  if (threadIdx.x == 0) {
    const double done = double(state->step + 1), rest1 = 1 - pow(beta1, done), rest2 = 1 - pow(beta2, done);
    shared = {float(beta1), float(beta2), float(epsilon), 0.0f, float(lr * state->rate / rest1), float(1 / rest2)};
  }
  __syncthreads();
  const AdamStep<float> s = shared;
  const bool failed = state->failed;
  for (i64 row = thread_number(); row < rows; row += thread_count()) {
    const i64 begin = row * channels, end = begin + channels;
    bool touched = !lazy;
    for (i64 k = begin; k < end; ++k) touched = touched || gradient[k] != 0.0f;  // NaN counts as touched
    for (i64 k = begin; touched && k < end; ++k) {
      if (!failed) {
        adam_element(parameter[k], m[k], v[k], gradient[k], s);
        if (rounded) rounded[k] = float_to_half(parameter[k]);
      }
      gradient[k] = 0.0f;
    }
  }
}

// results (8,): loss, squared error (means over whole rays and channels), live samples, marched ones, whole rays, rays
// without room, whether the step failed, steps that failed so far.
PF_KERNEL(pf_radiance_finish, (StepState * state, const i64* marched, i64 waves, double* results)) {
  if (thread_number()) return;
  double rows = 0;
  for (i64 wave = 0; wave < waves; ++wave) rows += double(marched[wave]);
  state->skipped += state->failed;
  const double share = 1.0 / (3.0 * double(max_of(state->whole, i64(1))) * kUnit);
  const double values[8] = {
      double(state->loss) * share, double(state->squared) * share, double(state->live),   rows,
      double(state->whole),        double(state->dropped),         double(state->failed), double(state->skipped)};
  for (int k = 0; k < 8; ++k) results[k] = values[k];
}
