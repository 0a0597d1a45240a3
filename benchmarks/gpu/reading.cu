// Reads memory and does nothing else: what no scan of a gallery can exceed.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // of 16 bytes each, in flight before the first is used

__device__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// Each block takes pieces of kThreads * kLoads vectors, strided by the grid.
__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* from, int64_t vectors, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t piece = kThreads * kLoads, step = piece * gridDim.x;
  int64_t first = blockIdx.x * piece + threadIdx.x;
  for (; first + piece - kThreads < vectors; first += step) {
    uint4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) v[i] = load_once(from + first + i * kThreads);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  for (; first < vectors; first += kThreads) {  // the last piece, of one block
    const uint4 v = load_once(from + first);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  atomicXor(out, sum);
}

}  // namespace

// out ^= all 32-bit words of the vectors. The caller checks it: nothing was left out.
extern "C" int read_all(const void* from, int64_t vectors, uint32_t* out, int blocks,
                        cudaStream_t stream) {
  read_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const uint4*>(from), vectors, out);
  return cudaGetLastError();
}
