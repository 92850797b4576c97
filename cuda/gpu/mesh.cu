// A mesh's tree of boxes: a thread a query. The tree is built on the host (cuda/cpu/mesh_build.h).
#include "polyfield/mesh.h"
#include "prelude.h"

using namespace polyfield;

// Arguments as the CPU library's.
#define PF_MESH(T, SUFFIX)                                                                                         \
  PF_KERNEL(pf_mesh_closest_##SUFFIX, (const T* boxes, const i32* children, const T* corners, const i32* numbers,  \
                                       const T* points, i64 n, T* distance, i64* triangle, T* barycentric)) {      \
    const i64 i = thread_number();                                                                                 \
    if (i >= n) return;                                                                                            \
    const MeshTree<T> tree{boxes, children, nullptr, corners, numbers};                                            \
    const Nearest<T> found = nearest_in_tree<Singly<T>>(tree, points + 3 * i, -1);                                 \
    tell_nearest(tree, found, points + 3 * i, distance + i, triangle + i, barycentric + 3 * i);                    \
  }                                                                                                                \
  PF_KERNEL(pf_mesh_winding_##SUFFIX, (const T* boxes, const i32* children, const T* moments, const T* corners,    \
                                       const i32* numbers, const T* points, i64 n, double accuracy, T* winding)) { \
    const i64 i = thread_number();                                                                                 \
    if (i >= n) return;                                                                                            \
    const MeshTree<T> tree{boxes, children, moments, corners, numbers};                                            \
    winding[i] = winding_in_tree<Singly<T>>(tree, points + 3 * i, T(accuracy));                                    \
  }                                                                                                                \
  PF_KERNEL(pf_mesh_hits_##SUFFIX,                                                                                 \
            (const T* boxes, const i32* children, const T* corners, const i32* numbers, const T* origins,          \
             const T* directions, i64 n, double near, double far, T* distance, i64* triangle, T* barycentric)) {   \
    const i64 i = thread_number();                                                                                 \
    if (i >= n) return;                                                                                            \
    const MeshTree<T> tree{boxes, children, nullptr, corners, numbers};                                            \
    const Shear<T> ray(origins + 3 * i, directions + 3 * i);                                                       \
    const Hit<T> found = hit_in_tree<Singly<T>>(tree, ray, T(near), T(far));                                       \
    tell_hit(tree, found, ray, distance + i, triangle + i, barycentric + 3 * i);                                   \
  }

PF_MESH(float, f32)
PF_MESH(double, f64)
