// A sparse grid of voxels (Plenoxels; Fridovich-Keil and Yu et al. 2022): rows of C channels that are blended
// trilinearly between the vertices of a lattice, of which only some are stored; the others are zero everywhere. And the
// total variation of such a grid.
//
// Vertices lie on the ends of the unit interval: x in [0, 1] is at x (resolution - 1). Positions outside are taken at
// the nearest point inside and have derivative zero along that axis; NaN counts as 0.
#pragma once
#include "grid_place.h"

namespace polyfield {

// Which row holds a vertex: index (x, y, z). A row that there is not counts as empty, so that no index reads outside.
struct SparseLattice {
  const i32* index;
  i64 x, y, z;  // vertices along the axes, at least 2
  i64 rows;

  PF_HD i64 cell(i64 i, i64 j, i64 k) const { return (i * y + j) * z + k; }
  PF_HD i64 row(i64 cell) const {
    const i64 found = index[cell];
    return found < rows ? found : i64(-1);
  }
};

// The vertices round a position and how they blend. Corner k lies ahead along x, y, z where bit 2, 1, 0 of k is set.
template <class T> struct SparseCell {
  GridPlace<T> x, y, z;

  PF_HD SparseCell(const SparseLattice& grid, const T* position)
      : x(position[0], grid.x), y(position[1], grid.y), z(position[2], grid.z) {}

  PF_HD static T part(T fraction, int ahead) { return ahead ? fraction : T(1) - fraction; }
  PF_HD T weight(int k) const {
    return part(x.fraction, k >> 2) * part(y.fraction, k >> 1 & 1) * part(z.fraction, k & 1);
  }
  // d weight(k) / d position along the axes.
  PF_HD void slopes(int k, T (&out)[3]) const {
    const T a = part(x.fraction, k >> 2), b = part(y.fraction, k >> 1 & 1), c = part(z.fraction, k & 1);
    out[0] = (k >> 2 ? x.slope : -x.slope) * b * c;
    out[1] = (k >> 1 & 1 ? y.slope : -y.slope) * a * c;
    out[2] = (k & 1 ? z.slope : -z.slope) * a * b;
  }
  // Row of corner k; -1 where it is empty.
  PF_HD i64 row(const SparseLattice& grid, int k) const {
    return grid.row(grid.cell(x.low + (k >> 2), y.low + (k >> 1 & 1), z.low + (k & 1)));
  }
};

// Keeps the root's slope finite where a vertex equals those ahead: differences below 3e-5 hardly count.
constexpr double kVariationFloor = 1e-9;

// The rows that the total variation's derivative by one row takes. Total variation: the sum, over rows and channels, of
// sqrt(kVariationFloor + the squared differences to the next vertices along x, y and z); towards an empty vertex there
// is no difference. So a row that is missing is replaced by the one it would be compared with.
struct VariationStencil {
  i64 self, ahead[3], behind[3], beside[3][2];  // beside: ahead of those behind, along the other two axes

  PF_HD VariationStencil() {}
  PF_HD VariationStencil(const SparseLattice& grid, i64 row, i64 cell) : self(row) {
    const i64 size[3] = {grid.x, grid.y, grid.z}, stride[3] = {grid.y * grid.z, grid.z, 1};
    const i64 at[3] = {cell / stride[0], cell / grid.z % grid.y, cell % grid.z};
    for (int a = 0; a < 3; ++a) {
      ahead[a] = at[a] + 1 < size[a] ? or_else(grid.row(cell + stride[a]), row) : row;
      const i64 found = at[a] > 0 ? grid.row(cell - stride[a]) : i64(-1);
      behind[a] = or_else(found, row);
      for (int k = 0; k < 2; ++k) {
        const int other = (a + 1 + k) % 3;
        const bool there = found >= 0 && at[other] + 1 < size[other];
        beside[a][k] = there ? or_else(grid.row(cell - stride[a] + stride[other]), found) : behind[a];
      }
    }
  }
  PF_HD static i64 or_else(i64 row, i64 other) { return row >= 0 ? row : other; }

  // Derivative of the total variation by one channel of the row; `read(row)` gives that channel.
  template <class T, class Read> PF_HD T slope(const Read& read) const {
    const T value = read(self);
    const T x = read(ahead[0]) - value, y = read(ahead[1]) - value, z = read(ahead[2]) - value;
    T sum = -(x + y + z) / sqrt(T(kVariationFloor) + x * x + y * y + z * z);
    for (int a = 0; a < 3; ++a) {
      const T from = read(behind[a]), mine = value - from;
      const T first = read(beside[a][0]) - from, second = read(beside[a][1]) - from;
      sum += mine / sqrt(T(kVariationFloor) + mine * mine + first * first + second * second);
    }
    return sum;
  }
};

}  // namespace polyfield
