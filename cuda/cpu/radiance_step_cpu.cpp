// The fused train step of grid-encoded radiance fields: encode, density network, colour network, compositing and loss,
// all backward, scatter into the table and lazy Adam, over packed samples of rays.
//
// Order of work (measured in benchmarks/train_step.py): the gather is NOT fused, one level of the table stays hot for
// the whole batch; everything between gather and scatter runs on groups of rays that fit the L2 cache, so activations
// never reach memory. Gradients of the networks are summed in a fixed number of slots, so that results do not depend on
// the thread count. The composed operators (hash_encode, fused_mlp, composite, lazy_adam_) compute the same numbers.
#include <algorithm>
#include <vector>

#include "adam_rows.h"
#include "hash_grid_levels.h"
#include "mlp_tile.h"
#include "parallel.h"
#include "polyfield/density.h"
#include "polyfield/spherical_harmonics.h"
#include "simd_math.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // see hash_grid_levels.h

namespace polyfield {
namespace {

constexpr i64 kGroupSamples = 384;  // samples of a group: features, activations and gradients stay inside a 1 MiB L2
constexpr i64 kSlots = 64;          // partial sums of network gradients: enough for balance, small enough to reduce

struct Batch {
  const float *positions, *deltas, *features;  // (M,3) in [0,1], (M,), (M,F) or null
  const i32 *index, *offsets;                  // (N,) rows of the above or null for the identity; (R+1,)
  i64 samples, rays;
  const float *directions, *targets, *backgrounds;  // (R,3)
};

struct Objective {
  i64 activation;  // density activation code
  i64 loss;        // 0 mean squared error, 1 Huber
  float huber;     // where Huber turns linear
  float stop;      // transmittance below which a ray ends
  i64 bands;       // spherical-harmonics bands
};

i64 round_up(i64 value, i64 multiple) { return (value + multiple - 1) / multiple * multiple; }

// Colour network as the tile engine sees it: its inputs are [density network's padded output | SH], where the columns
// that are not features (raw density, padding) have zero weights.
struct ColorLayout {
  MlpShape given, extended;
  i64 features, head;  // features of the field; padded outputs of the density network

  ColorLayout(const MlpShape& density, const MlpShape& color, i64 bands)
      : given(color), extended(color), features(density.outputs - 1), head(density.padded_outputs()) {
    extended.inputs = head + bands * bands;
  }
  i64 column(i64 input) const { return input < features ? 1 + input : head + input - features; }

  void extend(const float* flat, float* wide) const {
    const i64 first = given.width * given.inputs;
    for (i64 k = 0; k < extended.width * extended.inputs; ++k) wide[k] = 0.0f;
    for (i64 o = 0; o < given.width; ++o)
      for (i64 i = 0; i < given.inputs; ++i) wide[o * extended.inputs + column(i)] = flat[o * given.inputs + i];
    std::memcpy(wide + extended.width * extended.inputs, flat + first,
                (given.parameter_count() - first) * sizeof(float));
  }
  void restrict_to(const float* wide, float* flat) const {
    const i64 first = given.width * given.inputs;
    for (i64 o = 0; o < given.width; ++o)
      for (i64 i = 0; i < given.inputs; ++i) flat[o * given.inputs + i] = wide[o * extended.inputs + column(i)];
    std::memcpy(flat + first, wide + extended.width * extended.inputs,
                (given.parameter_count() - first) * sizeof(float));
  }
};

// Buffers of one thread for one group.
template <class P> struct Workspace {
  MlpState<P> density, color;
  Scratch<float> floats;
};

struct Networks {
  MlpShape density;
  ColorLayout layout;
  i64 levels, channels;
};

// What a step writes: pixels (R,3), alphas (R,) and, in training, gradients of the flat network parameters and of the
// encoding, level-major (L, stride, C).
struct Outputs {
  float *pixels, *alphas, *grad_density, *grad_color, *level_gradient;
  i64 stride;
};

// One ray, forward and backward. `pass` is the transmittance of each sample, `slope` the derivative of its density with
// respect to the raw one, `colors` (rows, color_width) after the sigmoid. Writes the pixel, d loss / d(raw density) and
// d loss / d(colour before the sigmoid); returns the ray's part of the loss, not yet divided by 3 R.
double composite_ray(const Objective& objective, i64 begin, i64 end, const float* deltas, const float* pass,
                     const float* slope, const float* colors, i64 color_width, const float* target,
                     const float* background, float scale, float* grad_raw, float* grad_colors, float* pixel,
                     float* alpha) {
  float transmittance = 1.0f, color[3] = {0.0f, 0.0f, 0.0f};
  i64 stop = end;
  for (i64 i = begin; i < end; ++i) {
    const float weight = transmittance * (1.0f - pass[i]);
    const float* rgb = colors + i * color_width;
    for (int c = 0; c < 3; ++c) color[c] += weight * rgb[c];
    transmittance *= pass[i];
    if (transmittance < objective.stop) {
      stop = i + 1;
      break;
    }
  }
  double loss = 0.0;
  float grad[3], remaining = 0.0f;
  for (int c = 0; c < 3; ++c) {
    color[c] += transmittance * background[c];
    pixel[c] = color[c];
    const float error = color[c] - target[c];
    if (objective.loss == 0) {
      loss += double(error) * error;
      grad[c] = 2.0f * error * scale;
    } else {
      const float size = fabs(error), h = objective.huber;
      loss += size < h ? 0.5f * error * error / h : size - 0.5f * h;
      grad[c] = clamp(error / h, -1.0f, 1.0f) * scale;
    }
    remaining += grad[c] * color[c];
  }
  *alpha = 1.0f - transmittance;
  transmittance = 1.0f;
  for (i64 i = begin; i < stop; ++i) {
    const float weight = transmittance * (1.0f - pass[i]);
    const float* rgb = colors + i * color_width;
    float* out = grad_colors + i * color_width;
    float along = 0.0f;
    for (int c = 0; c < 3; ++c) {
      along += grad[c] * rgb[c];
      out[c] = weight * grad[c] * rgb[c] * (1.0f - rgb[c]);
    }
    remaining -= weight * along;
    transmittance *= pass[i];
    grad_raw[i] = deltas[i] * (transmittance * along - remaining) * slope[i];
  }
  return loss;
}

// pass = exp(-density * delta) and slope = d density / d raw for `rows` samples (a multiple of the vector width).
template <int kActivation>
void transmittances(const float* raw, i64 raw_stride, const float* deltas, i64 rows, float* pass, float* slope) {
  for (i64 i = 0; i < rows; ++i) pass[i] = raw[i * raw_stride];
  for (i64 i = 0; i < rows; i += kLanes<float>) {
    Vec<float> value = load(pass + i), density, derivative;
    if constexpr (kActivation == kDensityExp) {
      const Vec<float> limit = splat(float(kDensityExpClamp));
      density = vec_exp(value);
      derivative = vec_exp(value > limit ? limit : value < -limit ? -limit : value);
    } else {
      for (int k = 0; k < kLanes<float>; ++k) {
        density[k] = density_value<kActivation>(float(value[k]));
        derivative[k] = density_derivative<kActivation>(float(value[k]));
      }
    }
    store(pass + i, vec_exp(-density * load(deltas + i)));
    store(slope + i, derivative);
  }
}

// Sigmoid of the first four columns (three are colour); as many rows as fit share a vector.
void sigmoid_rows(float* values, i64 rows, i64 width) {
  constexpr i64 kTogether = kLanes<float> / 4;
  for (i64 i = 0; i < rows; i += kTogether) {
    float packed[kLanes<float>];
    for (i64 k = 0; k < kTogether; ++k) std::memcpy(packed + 4 * k, values + (i + k) * width, 16);
    const Vec<float> v = load(packed);
    store(packed, 1.0f / (1.0f + vec_exp(-v)));
    for (i64 k = 0; k < kTogether; ++k) std::memcpy(values + (i + k) * width, packed + 4 * k, 16);
  }
}

// Rays first_ray..last_ray, whose samples are `count` from `first`: features in, pixels and gradients out.
template <class P, int kActivation>
double run_group(const Batch& batch, const Objective& objective, const Networks& networks, const MlpWeights<P>& density,
                 const MlpWeights<P>& color, Workspace<P>& space, i64 first_ray, i64 last_ray, float* grad_density,
                 float* grad_color, const Outputs& outputs) {
  const i64 first = batch.offsets[first_ray], count = batch.offsets[last_ray] - first;
  const i64 rows = round_up(count, kTileRows), encoded = networks.levels * networks.channels;
  const MlpShape& color_shape = networks.layout.extended;
  const i64 in_width = networks.density.padded_inputs(), head = networks.layout.head;
  const i64 color_width = color_shape.padded_inputs(), out_width = color_shape.padded_outputs();
  float* x = space.floats.reserve(rows * (2 * in_width + 2 * color_width + 2 * out_width + 4) + 3 * 16);
  float* color_in = x + rows * in_width;
  float* out = color_in + rows * color_width;
  float* grad_out = out + rows * out_width;
  float* grad_in = grad_out + rows * out_width;
  float* grad_x = grad_in + rows * color_width;
  float* deltas = grad_x + rows * in_width;
  float* pass = deltas + rows + 16;
  float* slope = pass + rows + 16;
  float* grad_raw = slope + rows;
  space.density.reserve(networks.density, rows);
  space.color.reserve(color_shape, rows);

  for (i64 i = 0; i < count; ++i) {
    const i64 row = batch.index ? batch.index[first + i] : first + i;
    std::memcpy(x + i * in_width, batch.features + row * encoded, encoded * sizeof(float));
    for (i64 k = encoded; k < in_width; ++k) x[i * in_width + k] = 0.0f;
    deltas[i] = batch.deltas[row];
  }
  std::memset(x + count * in_width, 0, (rows - count) * in_width * sizeof(float));
  for (i64 i = count; i < rows + 16; ++i) deltas[i] = 0.0f;

  // The density network writes the first columns of the colour network's input; the basis follows.
  MlpRows head_rows;
  head_rows.y_stride = color_width;
  mlp_forward<P>(density, space.density, x, color_in, 0, rows, head_rows);
  for (i64 ray = first_ray; ray < last_ray; ++ray) {
    alignas(64) float basis[16 + 16] = {};
    const float* d = batch.directions + 3 * ray;
    sh_basis<float>(d[0], d[1], d[2], int(objective.bands), basis);
    for (i64 i = batch.offsets[ray] - first; i < batch.offsets[ray + 1] - first; ++i)
      std::memcpy(color_in + i * color_width + head, basis, (color_width - head) * sizeof(float));
  }
  for (i64 i = count; i < rows; ++i)
    std::memset(color_in + i * color_width + head, 0, (color_width - head) * sizeof(float));
  mlp_forward<P>(color, space.color, color_in, out, 0, rows);

  transmittances<kActivation>(color_in, color_width, deltas, rows, pass, slope);
  sigmoid_rows(out, rows, out_width);
  std::memset(grad_out, 0, rows * out_width * sizeof(float));
  std::memset(grad_raw, 0, rows * sizeof(float));
  const float scale = 1.0f / (3.0f * float(batch.rays));
  double loss = 0.0;
  for (i64 ray = first_ray; ray < last_ray; ++ray)
    loss += composite_ray(objective, batch.offsets[ray] - first, batch.offsets[ray + 1] - first, deltas, pass, slope,
                          out, out_width, batch.targets + 3 * ray, batch.backgrounds + 3 * ray, scale, grad_raw,
                          grad_out, outputs.pixels + 3 * ray, outputs.alphas + ray);
  MlpRows in_rows;
  in_rows.dx_columns = head;
  mlp_backward<P>(color, space.color, color_in, grad_out, grad_in, grad_color, 0, rows, in_rows);
  for (i64 i = 0; i < rows; ++i) grad_in[i * color_width] = grad_raw[i];
  mlp_backward<P>(density, space.density, x, grad_in, grad_x, grad_density, 0, rows, head_rows);
  rows_to_level_major(grad_x, in_width, count, outputs.level_gradient, outputs.stride, networks.levels,
                      networks.channels, first);
  return loss;
}

// All rays. Slot s owns the rays whose first sample lies in its share of the samples, and sums of its own.
template <class P, int kActivation>
double run_slots(const Batch& batch, const Objective& objective, const Networks& networks,
                 const float* density_parameters, const float* color_parameters, const Outputs& outputs, i64 threads) {
  static thread_local MlpWeights<P> own_density, own_color;
  MlpWeights<P>&density = own_density, &color = own_color;  // workers read the caller's
  const ColorLayout& layout = networks.layout;
  std::vector<float> wide(layout.extended.parameter_count());
  layout.extend(color_parameters, wide.data());
  density.pack(networks.density, density_parameters);
  color.pack(layout.extended, wide.data());

  std::vector<i64> begins(kSlots + 1, batch.rays);
  begins[0] = 0;
  for (i64 ray = 0, slot = 1; ray < batch.rays && slot < kSlots; ++ray)
    while (slot < kSlots && i64(batch.offsets[ray]) * kSlots >= slot * max_of(batch.samples, i64(1)))
      begins[slot++] = ray;
  const i64 density_size = round_up(mlp_gradient_size(networks.density), 16);
  const i64 slot_size = density_size + round_up(mlp_gradient_size(layout.extended), 16);
  static thread_local Scratch<float> partial;
  float* sums = partial.reserve(kSlots * slot_size);
  double losses[kSlots] = {};
  parallel_for(threads, kSlots, [&](i64 slot) {
    static thread_local Workspace<P> space;
    float* sum = sums + slot * slot_size;
    std::memset(sum, 0, slot_size * sizeof(float));
    for (i64 ray = begins[slot]; ray < begins[slot + 1];) {
      i64 last = ray + 1;
      while (last < begins[slot + 1] && batch.offsets[last + 1] - batch.offsets[ray] <= kGroupSamples) ++last;
      losses[slot] += run_group<P, kActivation>(batch, objective, networks, density, color, space, ray, last, sum,
                                                sum + density_size, outputs);
      ray = last;
    }
  });
  double loss = losses[0];
  for (i64 slot = 1; slot < kSlots; ++slot) {
    loss += losses[slot];
    for (i64 k = 0; k < slot_size; ++k) sums[k] += sums[slot * slot_size + k];
  }
  std::memset(outputs.grad_density, 0, networks.density.parameter_count() * sizeof(float));
  mlp_add_gradient(networks.density, sums, outputs.grad_density);
  std::fill(wide.begin(), wide.end(), 0.0f);
  mlp_add_gradient(layout.extended, sums + density_size, wide.data());
  layout.restrict_to(wide.data(), outputs.grad_color);
  return loss / (3.0 * double(max_of(batch.rays, i64(1))));
}

template <class P, class... Arguments> double run_activation(i64 activation, const Arguments&... arguments) {
  if (activation == 0) return run_slots<P, 0>(arguments...);
  if (activation == 1) return run_slots<P, 1>(arguments...);
  return run_slots<P, 2>(arguments...);
}

bool all_finite(const float* values, i64 count) {
  float sum = 0.0f;  // NaN and Inf survive the multiplication by zero
  for (i64 k = 0; k < count; ++k) sum += values[k] * 0.0f;
  return sum == 0.0f;
}

struct Soa {
  float *x, *y, *z;
};

// features (N, L C), level by level through `level_major`.
void encode(const std::vector<HashLevel>& levels, i64 channels, const float* table, const Soa& soa, i64 samples,
            float* level_major, i64 stride, float* rows, i64 threads) {
  constexpr i64 kChunk = 1 << 15;
  const i64 chunks = (samples + kChunk - 1) / kChunk, count = i64(levels.size());
  with_channels(channels, [&](auto c) {
    constexpr int C = decltype(c)::value;
    parallel_for(threads, count * chunks, [&](i64 task) {
      const HashLevel& level = levels[count - 1 - task / chunks];  // the expensive hashed levels first
      const i64 begin = task % chunks * kChunk, n = min_of(kChunk, samples - begin);
      hash_encode_level<float, C, float>(level, table + i64(level.offset) * C, soa.x + begin, soa.y + begin,
                                         soa.z + begin, n,
                                         level_major + ((count - 1 - task / chunks) * stride + begin) * C);
    });
  });
  parallel_chunks(threads, samples, 4096, [&](i64 begin, i64 end) {
    level_major_to_rows(level_major, stride, count, channels, begin, end - begin, rows + begin * count * channels,
                        count * channels);
  });
}

struct Table {
  float *values, *m, *v, *gradient;  // gradient (entries, C): written instead of a step where given
  Half* rounded;                     // binary16 copy of the values that follows them, or null
};

// Scatter of the encoding's gradient, level by level, and Adam on the level while it is in the cache.
template <int C>
void scatter(const std::vector<HashLevel>& levels, const Soa& soa, i64 samples, const float* level_gradient, i64 stride,
             const Table& table, const AdamStep<float>& adam, i64 threads) {
  parallel_for(threads, i64(levels.size()), [&](i64 task) {
    const i64 l = i64(levels.size()) - 1 - task;
    const HashLevel& level = levels[l];
    const i64 begin = i64(level.offset) * C, size = i64(level.size) * C;
    if (table.gradient) {
      std::memset(table.gradient + begin, 0, size * sizeof(float));
      hash_scatter_level<float, C>(level, soa.x, soa.y, soa.z, samples, level_gradient + l * stride * C,
                                   table.gradient + begin);
      return;
    }
    // One level's sums: a thread's own, zero between uses, since Adam clears what it consumed.
    static thread_local Scratch<float> sums;
    if (sums.capacity < size) {
      sums.reserve(size);
      std::memset(sums.data, 0, sums.capacity * sizeof(float));
    }
    hash_scatter_level<float, C>(level, soa.x, soa.y, soa.z, samples, level_gradient + l * stride * C, sums.data);
    adam_rows<float>(table.values + begin, table.m + begin, table.v + begin, sums.data, level.size, C, adam, true, true,
                     table.rounded ? table.rounded + begin : nullptr);
  });
}

}  // namespace
}  // namespace polyfield

using namespace polyfield;

// One step. Returns 0, or 1 where loss or network gradients are not finite and nothing was changed.
//
// sizes: samples N, rays R, levels L, channels C, SH bands, density activation, loss (0 mean squared, 1 Huber), hidden
//   activation, density width, density hidden layers, density outputs, colour width, colour hidden layers, bf16, step.
// scalars: Huber threshold, transmittance to stop at, lr of the table, lr of the networks, beta1, beta2, epsilon.
// level_rows (L, 5): as `hash_levels` reads them. features and index may be null. With grad_table (entries, C) given,
// the gradients are written and no step is made; else Adam changes table, density and color in place (step counts from
// 1), and table_rounded (entries, C), where given, with the table.
PF_API i64 pf_radiance_step_f32(const float* positions, const float* deltas, const float* features, const i32* index,
                                const i32* offsets, const float* directions, const float* targets,
                                const float* backgrounds, const i64* sizes, const double* scalars,
                                const double* level_rows, float* table, float* table_m, float* table_v,
                                Half* table_rounded, float* density, float* density_m, float* density_v, float* color,
                                float* color_m, float* color_v, float* grad_table, float* grad_density,
                                float* grad_color, double* loss, float* pixels, float* alphas, i64 threads) {
  Batch batch{positions, deltas, features, index, offsets, sizes[0], sizes[1], directions, targets, backgrounds};
  const i64 level_count = sizes[2], channels = sizes[3], bands = sizes[4];
  const Objective objective{sizes[5], sizes[6], float(scalars[0]), float(scalars[1]), bands};
  std::vector<HashLevel> levels(level_count);
  hash_levels(level_count, level_rows, levels.data());
  const MlpShape density_shape{level_count * channels, sizes[10], sizes[8], sizes[9], sizes[7], 0, 0};
  const MlpShape color_shape{sizes[10] - 1 + bands * bands, 3, sizes[11], sizes[12], sizes[7], 0, 0};
  const Networks networks{density_shape, ColorLayout(density_shape, color_shape, bands), level_count, channels};

  static thread_local Scratch<float> places, level_major, encoded;
  const i64 samples = batch.samples, stride = round_up(samples, 16) + 16;
  const Soa soa{places.reserve(4 * stride), places.data + stride, places.data + 2 * stride};
  float* packed_deltas = places.data + 3 * stride;
  parallel_chunks(threads, samples, 8192, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const i64 row = index ? i64(index[i]) : i;
      const float* p = positions + 3 * row;
      soa.x[i] = p[0], soa.y[i] = p[1], soa.z[i] = p[2], packed_deltas[i] = deltas[row];
    }
  });
  for (i64 i = samples; i < stride; ++i) soa.x[i] = soa.y[i] = soa.z[i] = 0.5f;
  float* by_level = level_major.reserve(level_count * stride * channels);
  if (!features) {
    float* rows = encoded.reserve(samples * level_count * channels);
    encode(levels, channels, table, soa, samples, by_level, stride, rows, threads);
    batch.features = rows, batch.deltas = packed_deltas, batch.index = nullptr;
  }
  const Outputs outputs{pixels, alphas, grad_density, grad_color, by_level, stride};
  *loss = sizes[13]
              ? run_activation<BF16>(objective.activation, batch, objective, networks, density, color, outputs, threads)
              : run_activation<F32>(objective.activation, batch, objective, networks, density, color, outputs, threads);
  const i64 density_count = density_shape.parameter_count(), color_count = color_shape.parameter_count();
  if (!(*loss - *loss == 0.0) || !all_finite(grad_density, density_count) || !all_finite(grad_color, color_count))
    return 1;
  const auto adam = [&](double lr) { return adam_step<float>(lr, scalars[4], scalars[5], scalars[6], 0.0, sizes[14]); };
  const Table state{table, table_m, table_v, grad_table, table_rounded};
  with_channels(channels, [&](auto c) {
    scatter<decltype(c)::value>(levels, soa, samples, by_level, stride, state, adam(scalars[2]), threads);
  });
  if (!grad_table) {
    const AdamStep<float> step = adam(scalars[3]);
    adam_rows<float>(density, density_m, density_v, grad_density, density_count, 1, step, false, false);
    adam_rows<float>(color, color_m, color_v, grad_color, color_count, 1, step, false, false);
  }
  return 0;
}
