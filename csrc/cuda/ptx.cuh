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
template <typename T, typename Sum>
__device__ __forceinline__ void mma_sync(Sum (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1);

#define SPLIP_MMA(type, sum, constraint, shape_and_types)                                         \
  template <>                                                                                     \
  __device__ __forceinline__ void mma_sync<type, sum>(                                            \
      sum(&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned." shape_and_types                                              \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
                 : constraint(c[0]), constraint(c[1]), constraint(c[2]), constraint(c[3])         \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                         \
  }
SPLIP_MMA(__nv_bfloat16, float, "+f", "m16n8k16.row.col.f32.bf16.bf16.f32")
SPLIP_MMA(__half, float, "+f", "m16n8k16.row.col.f32.f16.f16.f32")
SPLIP_MMA(float, float, "+f", "m16n8k8.row.col.f32.tf32.tf32.f32")
SPLIP_MMA(int8_t, int, "+r", "m16n8k32.row.col.s32.s8.s8.s32")
#undef SPLIP_MMA

// ---- barriers in shared memory, which copies arrive at too ----

__device__ __forceinline__ void barrier_init(unsigned barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// An arrival once all copies that this thread has begun are there.
__device__ __forceinline__ void barrier_arrive_after_copies(unsigned barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity is complete; phases alternate, the first is 0, and the one before
// it counts as complete.
__device__ __forceinline__ void barrier_wait(unsigned barrier, int parity) {
  uint32_t complete = 0;
  while (complete == 0) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(complete)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// A barrier of some of the block's threads; 0 is that of __syncthreads.
__device__ __forceinline__ void sync_some(int barrier, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- Hopper's products of a warpgroup; compiled for sm_90a only ----

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// Registers per thread that the warpgroup wants from now on.
template <int kCount>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// What ordinary writes have put into shared memory is there for wgmma, too.
__device__ __forceinline__ void fence_for_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Before the first of some products: the registers are as they should be.
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// A register fence, after the wait: nothing that reads these registers may be moved before it.
__device__ __forceinline__ void settle(float& v) { asm volatile("" : "+f"(v)::"memory"); }
__device__ __forceinline__ void settle(int& v) { asm volatile("" : "+r"(v)::"memory"); }

// c = a * b, or c += a * b, over 32 bytes of k: 64 rows of a and 256 of b, by descriptor.
template <typename T, typename Sum>
__device__ __forceinline__ void wgmma(Sum (&c)[128], uint64_t a, uint64_t b, bool accumulate);

#define SPLIP_4(k, i) k(c[i]), k(c[i + 1]), k(c[i + 2]), k(c[i + 3])
#define SPLIP_16(k, i) SPLIP_4(k, i), SPLIP_4(k, i + 4), SPLIP_4(k, i + 8), SPLIP_4(k, i + 12)
#define SPLIP_64(k, i) SPLIP_16(k, i), SPLIP_16(k, i + 16), SPLIP_16(k, i + 32), SPLIP_16(k, i + 48)
#define SPLIP_WGMMA_PRODUCT(type, sum, constraint, shape_and_types, scales)                      \
  template <>                                                                                    \
  __device__ __forceinline__ void wgmma<type, sum>(sum(&c)[128], uint64_t a, uint64_t b,         \
                                                   bool accumulate) {                            \
    asm volatile(                                                                                \
        "{\n"                                                                                    \
        ".reg .pred p;\n"                                                                        \
        "setp.ne.b32 p, %130, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned." shape_and_types                                          \
        " "                                                                                      \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "  \
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "  \
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "  \
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "  \
        "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "    \
        "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "   \
        "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "                    \
        "%128, %129, p" scales                                                                   \
        ";\n"                                                                                    \
        "}"                                                                                      \
        : SPLIP_64(constraint, 0), SPLIP_64(constraint, 64)                                      \
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                    \
  }
SPLIP_WGMMA_PRODUCT(__nv_bfloat16, float, "+f", "m64n256k16.f32.bf16.bf16", ", 1, 1, 0, 0")
SPLIP_WGMMA_PRODUCT(__half, float, "+f", "m64n256k16.f32.f16.f16", ", 1, 1, 0, 0")
SPLIP_WGMMA_PRODUCT(float, float, "+f", "m64n256k8.f32.tf32.tf32", ", 1, 1")
SPLIP_WGMMA_PRODUCT(int8_t, int, "+r", "m64n256k32.s32.s8.s8", "")
#undef SPLIP_WGMMA_PRODUCT
#undef SPLIP_64
#undef SPLIP_16
#undef SPLIP_4

}  // namespace splip::cuda
