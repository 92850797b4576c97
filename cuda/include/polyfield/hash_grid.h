// The multiresolution hash grid of one level (Mueller et al. 2022, "Instant neural graphics primitives", section 3):
// which eight entries surround a position, how they blend, and the derivatives of the blend.
//
// A position x in [0, 1] lies at p = x * scale + 0.5 of the level's lattice; its cell is floor(p), its place in the
// cell the fraction of p. Positions outside [0, 1] are taken at the nearest point inside and have derivative zero along
// that axis; NaN counts as 0. Coarse levels address their lattice densely, fine ones by the paper's spatial hash. The
// blend is written once for a value type V: a scalar on a GPU, the C channels of one sample or of eight samples on a
// CPU.
#pragma once
#include "common.h"

namespace polyfield {

constexpr u32 kHashPrimeY = 2654435761u;
constexpr u32 kHashPrimeZ = 805459861u;

struct HashLevel {
  float scale;             // lattice steps across the unit interval
  u32 resolution;          // lattice points per axis
  u32 stride_y, stride_z;  // dense strides, or the primes where hashed; stride_z is 0 where the lattice is flat
  u32 offset, size;        // first entry in the whole table, and how many
  u32 hashed;              // 1: index = (x ^ y * prime ^ z * prime) mod size, size a power of two
};

// Levels from the rows [scale, resolution, offset, size, kind] of `table` (levels, 5), which
// `HashGridSpec.level_tensor` computes: the rule itself is written there and nowhere else. Kind is 1 where hashed, plus
// 2 where the lattice is flat: z then makes no difference, both of its corners being one entry.
inline void hash_levels(i64 levels, const double* table, HashLevel* out) {
  for (i64 l = 0; l < levels; ++l, table += 5) {
    const u32 kind = u32(table[4]);
    const bool hashed = kind & 1, flat = kind & 2;
    const u32 resolution = u32(table[1]);
    out[l] = {float(table[0]),
              resolution,
              hashed ? kHashPrimeY : resolution,
              flat     ? 0
              : hashed ? kHashPrimeZ
                       : resolution * resolution,
              u32(table[2]),
              u32(table[3]),
              hashed ? 1u : 0u};
  }
}

// d (lattice position) / d x: the scale, or 0 outside [0, 1].
template <class T> PF_HD T lattice_slope(T x, float scale) { return x >= T(0) && x <= T(1) ? T(scale) : T(0); }

PF_HD u32 hash_corner_index(const HashLevel& level, u32 x, u32 y, u32 z) {
  return level.hashed ? (x ^ (y * level.stride_y) ^ (z * level.stride_z)) & (level.size - 1)
                      : x + y * level.stride_y + z * level.stride_z;
}

// The cell of one position. Bits 0, 1, 2 of a corner's number say whether it is the upper one along x, y, z.
template <class T> struct HashCell {
  u32 index[8];   // entries within the level
  T fraction[3];  // place inside the cell, [0, 1)
  T slope[3];     // d fraction / d x
};

template <class T> PF_HD void hash_cell(const HashLevel& level, T x, T y, T z, HashCell<T>& cell) {
  const T position[3] = {x, y, z};
  u32 low[3];
  for (int a = 0; a < 3; ++a) {
    const T p = multiply_add(unit_clamp(position[a]), T(level.scale), T(0.5));
    low[a] = u32(i32(p));
    cell.fraction[a] = p - T(i32(p));
    cell.slope[a] = lattice_slope(position[a], level.scale);
  }
  for (u32 c = 0; c < 8; ++c)
    cell.index[c] = hash_corner_index(level, low[0] + (c & 1), low[1] + (c >> 1 & 1), low[2] + (c >> 2));
}

template <class T> PF_HD T trilinear_weight(int corner, T fx, T fy, T fz) {
  return (corner & 1 ? fx : T(1) - fx) * (corner & 2 ? fy : T(1) - fy) * (corner & 4 ? fz : T(1) - fz);
}

// The blend and its derivatives with respect to the fractions. Pure second derivatives vanish.
template <class V> struct Trilinear {
  V value, x, y, z, xy, xz, yz;
};

// S: scalar or vector that multiplies V. What the caller does not read, the compiler does not compute.
template <class V, class S> PF_HD void trilinear(const V* corner, const S& fx, const S& fy, const S& fz,
                                                 Trilinear<V>& out) {
  V along_x[4], slope_x[4];
  for (int k = 0; k < 4; ++k) {
    slope_x[k] = corner[2 * k + 1] - corner[2 * k];
    along_x[k] = corner[2 * k] + fx * slope_x[k];
  }
  const V slope_y0 = along_x[1] - along_x[0], slope_y1 = along_x[3] - along_x[2];
  const V along_y0 = along_x[0] + fy * slope_y0, along_y1 = along_x[2] + fy * slope_y1;
  const V slope_xy0 = slope_x[1] - slope_x[0], slope_xy1 = slope_x[3] - slope_x[2];
  const V slope_x0 = slope_x[0] + fy * slope_xy0, slope_x1 = slope_x[2] + fy * slope_xy1;
  out.z = along_y1 - along_y0;
  out.value = along_y0 + fz * out.z;
  out.yz = slope_y1 - slope_y0;
  out.y = slope_y0 + fz * out.yz;
  out.xz = slope_x1 - slope_x0;
  out.x = slope_x0 + fz * out.xz;
  out.xy = slope_xy0 + fz * (slope_xy1 - slope_xy0);
}

// Cotangents of the eight corners from those of the value and of its three first derivatives (`trilinear` backwards).
template <class V, class S>
PF_HD void trilinear_adjoint(const V& value, const V& dx, const V& dy, const V& dz, const S& fx, const S& fy,
                             const S& fz, V* corner) {
  const V value_z = fz * value, dx_z = fz * dx, dy_z = fz * dy;
  const V along_y[2] = {value - value_z - dz, value_z + dz};
  const V slope_x[2] = {dx - dx_z, dx_z};
  const V slope_y[2] = {dy - dy_z, dy_z};
  for (int k = 0; k < 2; ++k) {
    const V value_y = fy * along_y[k], dx_y = fy * slope_x[k];
    const V along_x[2] = {along_y[k] - value_y - slope_y[k], value_y + slope_y[k]};
    const V slope[2] = {slope_x[k] - dx_y, dx_y};
    for (int j = 0; j < 2; ++j) {
      const V upper = fx * along_x[j] + slope[j];
      corner[4 * k + 2 * j + 1] = upper;
      corner[4 * k + 2 * j] = along_x[j] - upper;
    }
  }
}

}  // namespace polyfield
