// A triangle mesh in a tree of boxes: the nearest point of the mesh, how often the mesh winds round a point, and where
// a ray meets it first. One query, host and device; `mesh_cpu.cpp` builds the tree.
//
// Node layout: 8 children a node, side by side (boxes (6, 8): lower and upper x, y, z; moments (13, 8): see `Moment`).
// A child is a node (>= 0), a leaf (its complement, < 0) or kNoChild; children lie first. A leaf is a block of 8
// triangles (corners (9, 8): x, y, z of a, b, c; numbers (8)), in the order of their numbers; where it has fewer, the
// last is repeated under the number -1. So 8 lanes of a vector, or 8 turns of a loop, do a node or a leaf.
//
// `L` says how lanes are done: L::V is a scalar or a vector of 8, L::kStep how many lanes it holds.
//
// Sources: nearest point by regions as Ericson, Real-Time Collision Detection, 5.1.5, without branches; rays as Woop,
// Benthin and Wald 2013 (JCGT 2:1); solid angle by van Oosterom and Strackee 1983; moments as Barill et al. 2018,
// second order.
#pragma once
#include "common.h"

namespace polyfield {

constexpr int kFan = 8;          // children of a node, triangles of a leaf
constexpr int kMostLevels = 16;  // of nodes: the build makes no more
constexpr i32 kNoChild = -2147483647 - 1;
// A node is taken off the stack and puts up to 8 children on it, so that each level leaves at most 7 behind.
constexpr int kMostWaiting = (kFan - 1) * kMostLevels + 1;

// Rows of `moments`: centre of area, square of the radius about it, area vector, and the symmetric part of the first
// moment of the area vector about the centre (xx, yy, zz, xy + yx, yz + zy, zx + xz).
enum Moment { kCentre = 0, kRadius2 = 3, kArea = 4, kFirst = 7, kMoments = 13 };

template <class T> struct MeshTree {
  const T* boxes;       // (nodes, 6, 8)
  const i32* children;  // (nodes, 8)
  const T* moments;     // (nodes, 13, 8)
  const T* corners;     // (leaves, 9, 8)
  const i32* numbers;   // (leaves, 8)
};

template <class V> struct Three {
  V x, y, z;
};
template <class V, class W> PF_HD Three<V> operator-(const Three<V>& a, const Three<W>& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class V> PF_HD V dot(const Three<V>& a, const Three<V>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class V> PF_HD Three<V> cross(const Three<V>& a, const Three<V>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
template <class V, class T> PF_HD Three<V> everywhere(const T* p) { return {V{} + p[0], V{} + p[1], V{} + p[2]}; }
template <class T> PF_HD bool all_finite(const T* p) {
  const T zero = (p[0] - p[0]) + (p[1] - p[1]) + (p[2] - p[2]);  // NaN otherwise
  return zero == T(0);
}

// One lane after the other.
template <class T> struct Singly {
  using V = T;
  static constexpr int kStep = 1;
  static PF_HD V read(const T* p) { return *p; }
  static PF_HD void write(T* p, V v) { *p = v; }
  static PF_HD u32 bits(bool mask) { return mask; }
  static PF_HD V root(V v) { return sqrt(v); }
  static PF_HD V angle(V over, V under) { return atan2(over, under); }
  // a b - c d with the right sign (Kahan): the rounding of c d is given back.
  static PF_HD V determinant(V a, V b, V c, V d) {
    const V product = c * d;
    return fma(a, b, -product) + fma(-c, d, product);
  }
};

template <class L, class T> PF_HD Three<typename L::V> read_three(const T* p) {
  return {L::read(p), L::read(p + kFan), L::read(p + 2 * kFan)};
}

// --- the nearest point -----------------------------------------------------------------------------------------------

template <class V> struct OnTriangle {
  V square, v, w;  // of the distance; the point is a + v (b - a) + w (c - a)
};

// Of the points t e, t in [0, 1], the nearest to d; `square` of its distance.
template <class V> PF_HD V nearest_on_edge(const Three<V>& d, const Three<V>& e, V& square) {
  const V zero = V{}, one = zero + 1.0f, length2 = dot(e, e);
  V t = dot(d, e) / (length2 > zero ? length2 : one);
  t = t > zero ? t : zero;
  t = t < one ? t : one;
  const Three<V> rest = {d.x - t * e.x, d.y - t * e.y, d.z - t * e.z};
  square = dot(rest, rest);
  return t;
}

// The inside counts where the triangle has an area; the edges count always, so that needles and points are no
// exception. Whatever is found is the distance of some point of the triangle: rounding never makes it come out nearer
// than it is.
template <class V>
PF_HD OnTriangle<V> nearest_on_triangle(const Three<V>& p, const Three<V>& a, const Three<V>& b, const Three<V>& c) {
  const V zero = V{}, one = zero + 1.0f;
  const Three<V> ab = b - a, ac = c - a, ap = p - a, normal = cross(ab, ac);
  const V area2 = dot(normal, normal), scale = one / (area2 > zero ? area2 : one);
  const V v = dot(cross(ap, ac), normal) * scale, w = dot(cross(ab, ap), normal) * scale;
  const auto inside = (area2 > zero) & (v >= zero) & (w >= zero) & (v + w <= one);
  const Three<V> rest = {ap.x - v * ab.x - w * ac.x, ap.y - v * ab.y - w * ac.y, ap.z - v * ab.z - w * ac.z};
  V square;
  V t = nearest_on_edge(ap, ab, square);
  OnTriangle<V> best = {square, t, zero};
  t = nearest_on_edge(ap, ac, square);
  auto nearer = square < best.square;
  best = {nearer ? square : best.square, nearer ? zero : best.v, nearer ? t : best.w};
  t = nearest_on_edge(p - b, c - b, square);
  nearer = square < best.square;
  best = {nearer ? square : best.square, nearer ? one - t : best.v, nearer ? t : best.w};
  square = dot(rest, rest);
  nearer = inside & (square < best.square);
  return {nearer ? square : best.square, nearer ? v : best.v, nearer ? w : best.w};
}

template <class V> PF_HD V outside(V low, V high) {  // how far 0 lies outside [low, high]
  const V zero = V{}, d = low > -high ? low : -high;
  return d > zero ? d : zero;
}

// What waits to be visited, the nearest on top: a node, its key (distance, or its square) and how many there are.
template <class T> struct Waiting {
  T key[kMostWaiting];
  i32 child[kMostWaiting];
  int count = 0;

  // Puts on the children of a node that `lanes` names by bits; keys of all lanes.
  PF_HD void push(const i32* children, u32 lanes, const T* keys) {
    const int bottom = count;
    for (int lane = 0; lane < kFan; ++lane) {
      if (!(lanes >> lane & 1u) || children[lane] == kNoChild) continue;
      int at = count++;
      for (; at > bottom && key[at - 1] < keys[lane]; --at) key[at] = key[at - 1], child[at] = child[at - 1];
      key[at] = keys[lane], child[at] = children[lane];
    }
  }
  // The next whose key is at most `limit`.
  PF_HD bool pop(T limit, i32& next) {
    while (count > 0) {
      if (key[--count] <= limit) {
        next = child[count];
        return true;
      }
    }
    return false;
  }
};

// A triangle by its place: 8 leaf + lane; negative where there is none.
template <class T> PF_HD Three<T> corner(const MeshTree<T>& tree, i64 place, int which) {
  const T* block = tree.corners + (place / kFan) * (9 * kFan) + 3 * which * kFan + place % kFan;
  return {block[0], block[kFan], block[2 * kFan]};
}

template <class T> struct Nearest {
  T square;
  i64 place;
};

template <class L, class T>
PF_HD void nearest_in_leaf(const MeshTree<T>& tree, i64 leaf, const T* point, Nearest<T>& best) {
  using V = typename L::V;
  const T* block = tree.corners + leaf * (9 * kFan);
  const Three<V> p = everywhere<V>(point);
  T squares[kFan];
  u32 lanes = 0;
  for (int k = 0; k < kFan; k += L::kStep) {
    const V square = nearest_on_triangle<V>(p, read_three<L>(block + k), read_three<L>(block + 3 * kFan + k),
                                            read_three<L>(block + 6 * kFan + k))
                         .square;
    L::write(squares + k, square);
    lanes |= L::bits(square <= V{} + best.square) << k;
  }
  // Equally near: the lowest number, whatever came first.
  const i32* numbers = tree.numbers + leaf * kFan;
  for (int k = 0; lanes >> k; ++k) {
    if (!(lanes >> k & 1u) || numbers[k] < 0) continue;
    const bool first = best.place < 0 || squares[k] < best.square;
    if (first || (squares[k] == best.square && numbers[k] < tree.numbers[best.place]))
      best = {squares[k], leaf * kFan + k};
  }
}

// `guess`: a place to start from (any), or -1. Finds place -1 for points that are not finite or whose square overflows.
template <class L, class T> PF_HD Nearest<T> nearest_in_tree(const MeshTree<T>& tree, const T* point, i64 guess) {
  using V = typename L::V;
  // The largest number: squares that are infinite find nothing, instead of everything.
  Nearest<T> best = {sizeof(T) == 4 ? T(3.40282346e38) : T(1.7976931348623157e308), -1};
  if (!all_finite(point)) return best;
  if (guess >= 0) nearest_in_leaf<L>(tree, guess / kFan, point, best);
  const Three<V> p = everywhere<V>(point);
  Waiting<T> waiting;
  i32 next = 0;
  do {
    if (next < 0) {
      nearest_in_leaf<L>(tree, ~next, point, best);
      continue;
    }
    const T* box = tree.boxes + i64(next) * (6 * kFan);
    T squares[kFan];
    u32 lanes = 0;
    for (int k = 0; k < kFan; k += L::kStep) {
      const Three<V> low = read_three<L>(box + k) - p, high = read_three<L>(box + 3 * kFan + k) - p;
      const Three<V> d = {outside(low.x, high.x), outside(low.y, high.y), outside(low.z, high.z)};
      const V square = dot(d, d);
      L::write(squares + k, square);
      lanes |= L::bits(square <= V{} + best.square) << k;
    }
    waiting.push(tree.children + i64(next) * kFan, lanes, squares);
  } while (waiting.pop(best.square, next));
  return best;
}

// What a query of the nearest point tells: distance, number of the triangle and weights of its corners.
template <class T>
PF_HD void tell_nearest(const MeshTree<T>& tree, const Nearest<T>& found, const T* point, T* distance, i64* triangle,
                        T* weights) {
  if (found.place < 0) {
    const T infinity = T(1e300) * T(1e300);
    *distance = all_finite(point) ? infinity : infinity - infinity;
    *triangle = -1;
    weights[0] = weights[1] = weights[2] = T(0);
    return;
  }
  const Three<T> p = {point[0], point[1], point[2]};
  const OnTriangle<T> at = nearest_on_triangle<T>(p, corner(tree, found.place, 0), corner(tree, found.place, 1),
                                                  corner(tree, found.place, 2));
  *distance = sqrt(found.square);
  *triangle = tree.numbers[found.place];
  weights[0] = max_of(T(1) - at.v - at.w, T(0)), weights[1] = at.v, weights[2] = at.w;
}

// --- rays ------------------------------------------------------------------------------------------------------------

// A ray sheared so that it runs along +z from the origin. Vertices go through it one by one, so that triangles with a
// common edge agree on which side of it the ray passes: no ray slips through between them.
template <class T> struct Shear {
  T origin[3], inverse[3];  // 1 / direction, +infinity where it is 0
  T sx, sy, sz;
  int kx, ky, kz;
  bool valid;
  PF_HD Shear(const T* from, const T* along) {
    valid = all_finite(from) && all_finite(along) && (along[0] != T(0) || along[1] != T(0) || along[2] != T(0));
    kz = fabs(along[1]) > fabs(along[0]) ? 1 : 0;
    if (fabs(along[2]) > fabs(along[kz])) kz = 2;
    kx = (kz + 1) % 3, ky = (kz + 2) % 3;
    if (along[kz] < T(0)) {
      const int swapped = kx;
      kx = ky, ky = swapped;
    }
    sx = along[kx] / along[kz], sy = along[ky] / along[kz], sz = T(1) / along[kz];
    for (int a = 0; a < 3; ++a) {
      origin[a] = from[a];
      inverse[a] = along[a] != T(0) ? T(1) / along[a] : T(1e300) * T(1e300);
    }
  }
};

template <class V> struct OnRay {
  V distance, u, v, w;  // infinity where the ray misses; weights of a, b and c
};

// `corners` at a lane: x, y, z of a, b, c, kFan apart. Edges and corners belong to the triangle; triangles seen edge-on
// and those without area are missed.
template <class L, class T> PF_HD OnRay<typename L::V> hit_triangle(const Shear<T>& ray, const T* corners) {
  using V = typename L::V;
  const V zero = V{};
  V x[3], y[3], z[3];
  for (int k = 0; k < 3; ++k) {
    const T* at = corners + 3 * k * kFan;
    z[k] = L::read(at + ray.kz * kFan) - ray.origin[ray.kz];
    x[k] = L::read(at + ray.kx * kFan) - ray.origin[ray.kx] - ray.sx * z[k];
    y[k] = L::read(at + ray.ky * kFan) - ray.origin[ray.ky] - ray.sy * z[k];
  }
  const V u = L::determinant(x[2], y[1], y[2], x[1]);
  const V v = L::determinant(x[0], y[2], y[0], x[2]);
  const V w = L::determinant(x[1], y[0], y[1], x[0]);
  const V sum = u + v + w;
  const auto hit =
      (((u >= zero) & (v >= zero) & (w >= zero)) | ((u <= zero) & (v <= zero) & (w <= zero))) & (sum != zero);
  const V scale = (zero + 1.0f) / (hit ? sum : zero + 1.0f);
  const V distance = (u * z[0] + v * z[1] + w * z[2]) * scale * ray.sz;
  return {hit ? distance : zero + T(1e300) * T(1e300), u * scale, v * scale, w * scale};
}

template <class T> struct Hit {
  T distance;
  i64 place;
};

// The first hit at a distance in [near, far], in lengths of the direction.
template <class L, class T> PF_HD Hit<T> hit_in_tree(const MeshTree<T>& tree, const Shear<T>& ray, T near, T far) {
  using V = typename L::V;
  const T infinity = T(1e300) * T(1e300);
  Hit<T> best = {far, -1};
  if (!ray.valid || !(near <= far)) return {infinity, -1};
  const T slack = sizeof(T) == 4 ? T(1) + T(8) / T(1 << 24) : T(1) + T(8) / T(i64(1) << 53);  // of 4 roundings, twice
  Waiting<T> waiting;
  i32 next = 0;
  do {
    T keys[kFan];
    u32 lanes = 0;
    if (next >= 0) {
      const T* box = tree.boxes + i64(next) * (6 * kFan);
      for (int k = 0; k < kFan; k += L::kStep) {
        V enter = V{} + near, leave = V{} + best.distance;
        for (int a = 0; a < 3; ++a) {
          // Where the ray runs within a face of the box 0 * infinity is NaN, and the axis does not count.
          const int behind = ray.inverse[a] < T(0) ? 3 : 0;
          const V t0 = (L::read(box + (a + behind) * kFan + k) - ray.origin[a]) * ray.inverse[a];
          const V t1 = (L::read(box + (a + 3 - behind) * kFan + k) - ray.origin[a]) * ray.inverse[a] * slack;
          enter = t0 > enter ? t0 : enter;
          leave = t1 < leave ? t1 : leave;
        }
        L::write(keys + k, enter);
        lanes |= L::bits(enter <= leave * slack) << k;
      }
      waiting.push(tree.children + i64(next) * kFan, lanes, keys);
      continue;
    }
    const i64 leaf = ~next;
    for (int k = 0; k < kFan; k += L::kStep) {
      const V distance = hit_triangle<L>(ray, tree.corners + leaf * (9 * kFan) + k).distance;
      L::write(keys + k, distance);
      lanes |= L::bits((distance >= V{} + near) & (distance <= V{} + best.distance)) << k;
    }
    const i32* numbers = tree.numbers + leaf * kFan;
    for (int k = 0; lanes >> k; ++k) {
      if (!(lanes >> k & 1u) || numbers[k] < 0 || !(keys[k] < infinity)) continue;
      const bool first = best.place < 0 || keys[k] < best.distance;
      if (first || (keys[k] == best.distance && numbers[k] < tree.numbers[best.place]))
        best = {keys[k], leaf * kFan + k};
    }
  } while (waiting.pop(best.distance * slack, next));
  if (best.place < 0) best.distance = infinity;
  return best;
}

template <class T>
PF_HD void tell_hit(const MeshTree<T>& tree, const Hit<T>& found, const Shear<T>& ray, T* distance, i64* triangle,
                    T* weights) {
  *distance = found.distance;
  *triangle = found.place < 0 ? -1 : tree.numbers[found.place];
  OnRay<T> at = {T(0), T(0), T(0), T(0)};
  if (found.place >= 0)
    at = hit_triangle<Singly<T>>(ray, tree.corners + found.place / kFan * (9 * kFan) + found.place % kFan);
  weights[0] = at.u, weights[1] = at.v, weights[2] = at.w;
}

// --- winding numbers -------------------------------------------------------------------------------------------------

// Half the solid angle of a triangle; corners relative to the eye.
template <class L, class V = typename L::V>
PF_HD V half_solid_angle(const Three<V>& a, const Three<V>& b, const Three<V>& c) {
  const V la = L::root(dot(a, a)), lb = L::root(dot(b, b)), lc = L::root(dot(c, c));
  return L::angle(dot(a, cross(b, c)), la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb);
}

// How often the mesh winds round the point. A part of the mesh is seen as its moments from farther than `accuracy` of
// its radii.
template <class L, class T> PF_HD T winding_in_tree(const MeshTree<T>& tree, const T* point, T accuracy) {
  using V = typename L::V;
  if (!all_finite(point)) return point[0] - point[0] + point[1] - point[1] + point[2] - point[2];  // NaN
  const Three<V> p = everywhere<V>(point);
  const T nearby = accuracy * accuracy;
  T total = T(0);  // solid angle
  i32 waiting[kMostWaiting];
  int count = 0;
  i32 next = 0;
  for (;;) {
    if (next >= 0) {
      const T* moments = tree.moments + i64(next) * (kMoments * kFan);
      const i32* children = tree.children + i64(next) * kFan;
      u32 far_lanes = 0;
      T values[kFan];
      for (int k = 0; k < kFan; k += L::kStep) {
        const Three<V> r = read_three<L>(moments + kCentre * kFan + k) - p,
                       n = read_three<L>(moments + kArea * kFan + k);
        const Three<V> d = read_three<L>(moments + kFirst * kFan + k),
                       e = read_three<L>(moments + (kFirst + 3) * kFan + k);
        const V r2 = dot(r, r);
        const V i2 = (V{} + 1.0f) / r2, i3 = i2 / L::root(r2);
        const V bent =
            d.x * r.x * r.x + d.y * r.y * r.y + d.z * r.z * r.z + e.x * r.x * r.y + e.y * r.y * r.z + e.z * r.z * r.x;
        L::write(values + k, i3 * (dot(n, r) + (d.x + d.y + d.z) - bent * i2 * T(3)));
        far_lanes |= L::bits(r2 > L::read(moments + kRadius2 * kFan + k) * nearby) << k;
      }
      for (int k = 0; k < kFan && children[k] != kNoChild; ++k) {
        if (far_lanes >> k & 1u) {
          total += values[k];
        } else {
          waiting[count++] = children[k];
        }
      }
    } else {
      const i64 leaf = ~next;
      const T* block = tree.corners + leaf * (9 * kFan);
      T angles[kFan];
      for (int k = 0; k < kFan; k += L::kStep) {
        L::write(angles + k, half_solid_angle<L>(read_three<L>(block + k) - p, read_three<L>(block + 3 * kFan + k) - p,
                                                 read_three<L>(block + 6 * kFan + k) - p));
      }
      for (int k = 0; k < kFan && tree.numbers[leaf * kFan + k] >= 0; ++k) total += T(2) * angles[k];
    }
    if (count == 0) break;
    next = waiting[--count];
  }
  return total * T(0.07957747154594767);  // 1 / 4 pi
}

}  // namespace polyfield
