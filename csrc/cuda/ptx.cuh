// The instructions that CUDA C++ has no name for, one function each. Alone in this file so that
// tests/cuda_on_host can put their definition in its place and run the kernels without a GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace splip::cuda {

// Sixteen bytes that are read once: past the L1 cache, which has better things to hold.
__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Sixteen bytes from memory to shared memory behind the threads' back; zeros if not `use`.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool use) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(use ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most kPending of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers; lane i points at row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ uint32_t round_to_tf32(uint32_t word) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(word)));
  return rounded;
}

// c += a * b over 32 bytes of k; T names what the registers hold.
template <typename T>
__device__ __forceinline__ void mma_sync(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1);

#define SPLIP_MMA(type, shape_and_types)                                                  \
  template <>                                                                             \
  __device__ __forceinline__ void mma_sync<type>(float (&c)[4], uint32_t a0, uint32_t a1, \
                                                 uint32_t a2, uint32_t a3, uint32_t b0,   \
                                                 uint32_t b1) {                           \
    asm volatile("mma.sync.aligned." shape_and_types                                      \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"       \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                         \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                 \
  }
SPLIP_MMA(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
SPLIP_MMA(__half, "m16n8k16.row.col.f32.f16.f16.f32")
SPLIP_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef SPLIP_MMA

}  // namespace splip::cuda
