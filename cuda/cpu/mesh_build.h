// How the tree of boxes of a mesh is made (polyfield/mesh.h says what it is): from the top, each node cut in two where
// the surface area heuristic says (16 bins an axis, Wald 2007) until it has 8 children, the largest next. Parts of at
// most 8 triangles are leaves.
//
// The depth is bounded: a node with m levels left below it holds at most 8^(m + 1) triangles. Where a child of the
// heuristic's would hold too many for the levels it has left, the node is cut into 8 parts of equal number instead,
// which never do. So kMostLevels levels are enough for 8^kMostLevels triangles, more than i32 counts.
//
// The result depends on neither threads nor timing: parts small enough become tasks, whose nodes are joined in order.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "polyfield/mesh.h"

namespace polyfield {

template <class T> struct Box {
  T low[3], high[3];
  Box() {
    for (int a = 0; a < 3; ++a) low[a] = std::numeric_limits<T>::infinity(), high[a] = -low[a];
  }
  void add(const T* l, const T* h) {
    for (int a = 0; a < 3; ++a) low[a] = min_of(low[a], l[a]), high[a] = max_of(high[a], h[a]);
  }
  void add(const Box& other) { add(other.low, other.high); }
  T half_area() const {
    const T x = high[0] - low[0], y = high[1] - low[1], z = high[2] - low[2];
    return x * y + y * z + z * x;
  }
};

template <class T> struct BuiltMesh {
  std::vector<T> boxes, moments, corners;
  std::vector<i32> children, numbers;
  void copy_to(T* b, i32* c, T* m, T* k, i32* n) const {
    std::copy(boxes.begin(), boxes.end(), b);
    std::copy(children.begin(), children.end(), c);
    std::copy(moments.begin(), moments.end(), m);
    std::copy(corners.begin(), corners.end(), k);
    std::copy(numbers.begin(), numbers.end(), n);
  }
};

template <class T> class MeshBuilder {
 public:
  MeshBuilder(const T* vertices, const i64* triangles, i64 count, i64 threads)
      : vertices_(vertices), triangles_(triangles), threads_(threads), items_(size_t(count)) {
    parallel_chunks(threads, count, 1 << 14, [&](i64 begin, i64 end) {
      for (i64 t = begin; t < end; ++t) {
        Item& item = items_[size_t(t)];
        item.number = i32(t);
        for (int k = 0; k < 3; ++k) item.box.add(vertex(t, k), vertex(t, k));
      }
    });
  }

  BuiltMesh<T> build() {
    BuiltMesh<T> top;
    std::vector<Task> tasks;
    const Part all = bounded({0, i64(items_.size()), {}});
    build_node(all, kMostLevels - 1, top, &tasks);
    std::vector<BuiltMesh<T>> parts(tasks.size());
    parallel_for(threads_, i64(tasks.size()),
                 [&](i64 k) { build_node(tasks[size_t(k)].part, tasks[size_t(k)].levels, parts[size_t(k)], nullptr); });
    for (size_t k = 0; k < tasks.size(); ++k) {
      const i32 nodes = i32(top.children.size() / kFan), leaves = i32(top.numbers.size() / kFan);
      top.children[size_t(tasks[k].slot)] = nodes;
      for (const i32 child : parts[k].children)
        top.children.push_back(child == kNoChild ? child : child >= 0 ? child + nodes : ~(~child + leaves));
      append(top.boxes, parts[k].boxes), append(top.corners, parts[k].corners), append(top.numbers, parts[k].numbers);
      parts[k] = {};
    }
    add_moments(top);
    return top;
  }

 private:
  static constexpr int kBins = 16;
  static constexpr i64 kTask = 1 << 13;  // triangles of a part that is built by one thread

  struct Item {
    Box<T> box;
    i32 number;
    T middle(int axis) const { return (box.low[axis] + box.high[axis]) * T(0.5); }
  };
  struct Part {
    i64 begin, end;
    Box<T> box;
    i64 count() const { return end - begin; }
  };
  struct Task {
    Part part;
    int levels;
    i64 slot;  // of the parent's children
  };

  const T* vertex(i64 triangle, int k) const { return vertices_ + 3 * triangles_[3 * triangle + k]; }
  template <class S> static void append(std::vector<S>& to, const std::vector<S>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  static i64 room(int levels) {  // for triangles below a child with `levels` of nodes left
    return 3 * (levels + 1) >= 62 ? std::numeric_limits<i64>::max() : i64(1) << 3 * (levels + 1);
  }
  Part bounded(Part part) const {
    part.box = Box<T>();
    for (i64 i = part.begin; i < part.end; ++i) part.box.add(items_[size_t(i)].box);
    return part;
  }

  // Where the heuristic cuts; 0 where it finds no place.
  i64 cut_by_area(const Part& part) {
    Box<T> middles;
    for (i64 i = part.begin; i < part.end; ++i) {
      const Item& item = items_[size_t(i)];
      const T m[3] = {item.middle(0), item.middle(1), item.middle(2)};
      middles.add(m, m);
    }
    T scale[3];
    for (int a = 0; a < 3; ++a) {
      const T width = middles.high[a] - middles.low[a];
      scale[a] = width > T(0) ? T(kBins) / width : T(0);
      if (!(scale[a] < std::numeric_limits<T>::infinity())) scale[a] = T(0);
    }
    const auto bin_of = [&](const Item& item, int a) {
      const T at = (item.middle(a) - middles.low[a]) * scale[a];
      return at < T(kBins - 1) ? int(at) : kBins - 1;
    };
    Box<T> boxes[3][kBins];
    i64 counts[3][kBins] = {};
    for (i64 i = part.begin; i < part.end; ++i) {
      const Item& item = items_[size_t(i)];
      for (int a = 0; a < 3; ++a) {
        const int bin = bin_of(item, a);
        boxes[a][bin].add(item.box);
        ++counts[a][bin];
      }
    }
    T best = std::numeric_limits<T>::infinity();
    int axis = -1, last = 0;
    const auto cost = [](const Box<T>& box, i64 count) { return box.half_area() * T((count + kFan - 1) / kFan); };
    for (int a = 0; a < 3; ++a) {
      if (scale[a] == T(0)) continue;
      T above[kBins];
      Box<T> box;
      i64 count = 0;
      for (int bin = kBins - 1; bin > 0; --bin) {
        box.add(boxes[a][bin]), count += counts[a][bin];
        above[bin] = count ? cost(box, count) : T(0);
      }
      box = Box<T>(), count = 0;
      for (int bin = 0; bin + 1 < kBins; ++bin) {
        box.add(boxes[a][bin]), count += counts[a][bin];
        if (count == 0 || count == part.count()) continue;
        const T both = cost(box, count) + above[bin + 1];
        if (both < best) best = both, axis = a, last = bin;
      }
    }
    if (axis < 0) return 0;
    const auto first = items_.begin();
    const auto middle = std::partition(first + part.begin, first + part.end,
                                       [&](const Item& item) { return bin_of(item, axis) <= last; });
    return middle - first;
  }

  // In two of equal number, along the longest side.
  i64 cut_by_number(const Part& part) {
    int axis = 0;
    for (int a = 1; a < 3; ++a)
      if (part.box.high[a] - part.box.low[a] > part.box.high[axis] - part.box.low[axis]) axis = a;
    const i64 middle = part.begin + part.count() / 2;
    const auto first = items_.begin();
    std::nth_element(first + part.begin, first + middle, first + part.end, [&](const Item& a, const Item& b) {
      const T x = a.middle(axis), y = b.middle(axis);
      return x < y || (x == y && a.number < b.number);
    });
    return middle;
  }

  std::vector<Part> cut(const Part& whole, bool by_area) {
    std::vector<Part> parts = {whole};
    while (int(parts.size()) < kFan) {
      int chosen = -1;
      for (int k = 0; k < int(parts.size()); ++k) {
        if (parts[size_t(k)].count() <= kFan) continue;
        const bool larger =
            chosen < 0 || (by_area ? parts[size_t(k)].box.half_area() > parts[size_t(chosen)].box.half_area()
                                   : parts[size_t(k)].count() > parts[size_t(chosen)].count());
        if (larger) chosen = k;
      }
      if (chosen < 0) break;
      const Part part = parts[size_t(chosen)];
      i64 middle = by_area ? cut_by_area(part) : 0;
      if (middle == 0) middle = cut_by_number(part);
      parts[size_t(chosen)] = bounded({part.begin, middle, {}});
      parts.insert(parts.begin() + chosen + 1, bounded({middle, part.end, {}}));
    }
    return parts;
  }

  // Appends the node of a part and all below it; parts of a task's size only become tasks where `tasks` are gathered.
  void build_node(const Part& whole, int levels, BuiltMesh<T>& out, std::vector<Task>* tasks) {
    std::vector<Part> parts = cut(whole, true);
    for (const Part& part : parts) {
      if (part.count() > room(levels - 1)) {
        parts = cut(whole, false);
        break;
      }
    }
    const size_t node = out.children.size() / kFan;
    out.children.resize(out.children.size() + kFan, kNoChild);
    out.boxes.resize(out.boxes.size() + 6 * kFan, std::numeric_limits<T>::infinity());
    for (size_t lane = 0; lane < parts.size(); ++lane) {
      const Part& part = parts[lane];
      for (int a = 0; a < 3; ++a) {
        // Wider by what rounding may take from a distance.
        const T slack =
            T(2) * std::numeric_limits<T>::epsilon() * max_of(fabs(part.box.low[a]), fabs(part.box.high[a]));
        out.boxes[node * 6 * kFan + size_t(a) * kFan + lane] = part.box.low[a] - slack;
        out.boxes[node * 6 * kFan + size_t(a + 3) * kFan + lane] = part.box.high[a] + slack;
      }
      const size_t slot = node * kFan + lane;
      if (part.count() <= kFan) {
        out.children[slot] = add_leaf(part, out);
      } else if (tasks && part.count() <= kTask) {
        tasks->push_back({part, levels - 1, i64(slot)});
      } else {
        out.children[slot] = i32(out.children.size() / kFan);
        build_node(part, levels - 1, out, tasks);
      }
    }
    for (size_t lane = parts.size(); lane < kFan; ++lane)
      for (size_t a = 3; a < 6; ++a) out.boxes[(node * 6 + a) * kFan + lane] = -std::numeric_limits<T>::infinity();
  }

  i32 add_leaf(const Part& part, BuiltMesh<T>& out) {
    const size_t leaf = out.numbers.size() / kFan;
    std::sort(items_.begin() + part.begin, items_.begin() + part.end,
              [](const Item& a, const Item& b) { return a.number < b.number; });
    out.numbers.resize(out.numbers.size() + kFan, -1);
    out.corners.resize(out.corners.size() + 9 * kFan);
    for (int k = 0; k < kFan; ++k) {
      const i32 number = items_[size_t(min_of(part.begin + k, part.end - 1))].number;
      if (k < part.count()) out.numbers[leaf * kFan + size_t(k)] = number;
      for (int row = 0; row < 9; ++row)
        out.corners[(leaf * 9 + size_t(row)) * kFan + size_t(k)] = vertex(number, row / 3)[row % 3];
    }
    return ~i32(leaf);
  }

  // Sums over the triangles of a part of the mesh, about the origin.
  struct Sums {
    double area = 0, centre[3] = {}, normal[3] = {}, first[3][3] = {};
    void add(const Sums& other) {
      area += other.area;
      for (int i = 0; i < 3; ++i) {
        centre[i] += other.centre[i], normal[i] += other.normal[i];
        for (int j = 0; j < 3; ++j) first[i][j] += other.first[i][j];
      }
    }
  };

  Sums leaf_sums(const BuiltMesh<T>& tree, i32 leaf) const {
    Sums sums;
    for (int k = 0; k < kFan; ++k) {
      const i32 number = tree.numbers[size_t(leaf) * kFan + size_t(k)];
      if (number < 0) break;
      Three<double> v[3];
      for (int c = 0; c < 3; ++c)
        v[c] = {vertex(number, c)[0] - shift_[0], vertex(number, c)[1] - shift_[1], vertex(number, c)[2] - shift_[2]};
      const Three<double> twice = cross(v[1] - v[0], v[2] - v[0]);
      const double n[3] = {twice.x / 2, twice.y / 2, twice.z / 2}, area = std::sqrt(dot(twice, twice)) / 2;
      const double m[3] = {(v[0].x + v[1].x + v[2].x) / 3, (v[0].y + v[1].y + v[2].y) / 3,
                           (v[0].z + v[1].z + v[2].z) / 3};
      sums.area += area;
      for (int i = 0; i < 3; ++i) {
        sums.centre[i] += area * m[i], sums.normal[i] += n[i];
        for (int j = 0; j < 3; ++j) sums.first[i][j] += m[i] * n[j];
      }
    }
    return sums;
  }

  // Children come after their parents, so that sums are made from the end.
  void add_moments(BuiltMesh<T>& tree) {
    const i64 nodes = i64(tree.children.size()) / kFan;
    for (int a = 0; a < 3; ++a) shift_[a] = items_[0].middle(a);  // near the mesh, lest differences lose digits
    tree.moments.assign(size_t(nodes) * kMoments * kFan, T(0));
    std::vector<Sums> of_nodes(static_cast<size_t>(nodes)), of_leaves(tree.numbers.size() / kFan);
    parallel_chunks(threads_, i64(of_leaves.size()), 1024, [&](i64 begin, i64 end) {
      for (i64 leaf = begin; leaf < end; ++leaf) of_leaves[size_t(leaf)] = leaf_sums(tree, i32(leaf));
    });
    for (i64 node = nodes; node-- > 0;) {
      for (int lane = 0; lane < kFan; ++lane) {
        const i32 child = tree.children[size_t(node * kFan + lane)];
        if (child == kNoChild) break;
        const Sums& sums = child < 0 ? of_leaves[size_t(~child)] : of_nodes[size_t(child)];
        of_nodes[size_t(node)].add(sums);
        write_moments(sums, &tree.boxes[size_t(node) * 6 * kFan + size_t(lane)],
                      &tree.moments[size_t(node) * kMoments * kFan + size_t(lane)]);
      }
    }
  }

  void write_moments(const Sums& sums, const T* box, T* out) const {
    double radius2 = 0, about[3][3], centre[3];
    for (int a = 0; a < 3; ++a) {
      const double low = double(box[a * kFan]) - shift_[a], high = double(box[(a + 3) * kFan]) - shift_[a];
      centre[a] = sums.area > 0 ? sums.centre[a] / sums.area : (low + high) / 2;
      const double reach = max_of(high - centre[a], centre[a] - low);
      radius2 += reach * reach;
    }
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) about[i][j] = sums.first[i][j] - centre[i] * sums.normal[j];
    const double row[kMoments] = {centre[0] + shift_[0],
                                  centre[1] + shift_[1],
                                  centre[2] + shift_[2],
                                  radius2,
                                  sums.normal[0],
                                  sums.normal[1],
                                  sums.normal[2],
                                  about[0][0],
                                  about[1][1],
                                  about[2][2],
                                  about[0][1] + about[1][0],
                                  about[1][2] + about[2][1],
                                  about[2][0] + about[0][2]};
    for (int k = 0; k < kMoments; ++k) out[k * kFan] = T(row[k]);
  }

  const T* vertices_;
  const i64* triangles_;
  i64 threads_;
  std::vector<Item> items_;
  double shift_[3] = {};
};

template <class T> BuiltMesh<T> build_mesh(const T* vertices, const i64* triangles, i64 count, i64 threads) {
  return MeshBuilder<T>(vertices, triangles, count, threads).build();
}

}  // namespace polyfield
