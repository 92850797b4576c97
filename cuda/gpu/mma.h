// Tensor cores on bfloat16 with float32 sums: m16n8k16 and the transposition of 8x8 blocks, by a whole warp.
//
// With g = lane / 4 and t = lane % 4, of every 8x8 block (16-bit elements) a lane holds row g, columns 2 t and 2 t + 1.
// An A operand (16 rows x 16 k) is four such blocks: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15. A B
// operand (16 k x 8 columns) is two, by columns: block row g is column g. Sums (16 x 8): rows g (first two) and g + 8.
// Compute capability 8.0 and newer; on 7.5 the kernels compile and trap.
#pragma once
#include "warp.h"

namespace polyfield {

struct alignas(16) OperandA {
  u32 block[4];
};
struct alignas(8) OperandB {
  u32 block[2];
};

#if defined(PF_EMULATOR)
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  return emulator::bf16_of(low) | u32(emulator::bf16_of(high)) << 16;
}
__device__ __forceinline__ void multiply_add(float* sums, const OperandA& a, const OperandB& b) {
  emulator::mma_bf16(sums, a.block, b.block, "mma");
}
__device__ __forceinline__ u32 transposed(u32 block) { return emulator::transpose_8x8(block, "movmatrix"); }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
__device__ __forceinline__ u32 pack_bf16(float, float) { return 0; }
__device__ __forceinline__ void multiply_add(float*, const OperandA&, const OperandB&) { __trap(); }
__device__ __forceinline__ u32 transposed(u32 block) { return block; }
#else
// To the nearest, ties to even.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
// sums += a b
__device__ __forceinline__ void multiply_add(float* sums, const OperandA& a, const OperandB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a.block[0]), "r"(a.block[1]), "r"(a.block[2]), "r"(a.block[3]), "r"(b.block[0]), "r"(b.block[1]));
}
__device__ __forceinline__ u32 transposed(u32 block) {
  u32 out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(block));
  return out;
}
#endif

__device__ __forceinline__ float low_bf16(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high_bf16(u32 both) { return __uint_as_float(both & 0xffff0000u); }

// Sums of two neighbouring column blocks as the A operand of the next product.
__device__ __forceinline__ OperandA as_operand(const float* left, const float* right) {
  return {{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]), pack_bf16(right[0], right[1]),
           pack_bf16(right[2], right[3])}};
}

}  // namespace polyfield
