// CUDA on the host, for tests without a GPU: enough of the runtime to run the kernels of csrc/cuda
// as they are, one block after another, each thread of a block a fiber. Fibers change places at
// barriers and warp operations only, in an order drawn at random, and warps stand still for a while
// at random, so a barrier that is missing shows as a wrong result more often than not. What the
// hardware does behind the threads' back (copies, products of a warpgroup) happens as late or as
// early as it may, drawn at random, too. Memory is guarded (guards.h), and a launch that a GPU
// would refuse is an error. Two devices that differ in nothing but their number. Slow; it shows
// that results are right, not that they are fast.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#undef __device__
#undef __global__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

namespace on_host {

struct Thread {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
const Thread& here();
void* shared_memory();  // of the block, dynamic
void block_barrier();
void some_barrier(int barrier, int threads);
void wait_for_phase(unsigned barrier, int parity);  // of a barrier in shared memory
void pause();                                       // others go on
bool coin();
// All lanes of a warp post a value of some bytes and see all values.
void exchange(const void* own, size_t bytes, void* all);

struct Config {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
template <typename Grid, typename Block>
Config config(Grid grid, Block block, size_t shared, cudaStream_t stream) {
  return {dim3(grid), dim3(static_cast<unsigned>(block)), shared, stream};
}
// `function` tells kernels apart.
void launch(const char* name, const void* function, const Config& config,
            const std::function<void()>& kernel);
// What a kernel says of itself in __launch_bounds__.
void launch_bounds(unsigned threads, unsigned blocks = 1);
cudaError_t allow_shared(const void* function, int bytes);
// Ends the launch: what this thread did is an error.
[[noreturn]] void fail(const std::string& message);
// An access of global memory that must lie within a buffer, at a multiple of its size.
void check_global(const char* what, const void* p, size_t bytes);
// The same in dynamic shared memory, by its address there.
void* shared_at(const char* what, unsigned address, size_t bytes);

}  // namespace on_host

#define threadIdx (on_host::here().thread)
#define blockIdx (on_host::here().block)
#define blockDim (on_host::here().block_dim)
#define gridDim (on_host::here().grid_dim)

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetLastError();
inline const char* cudaGetErrorName(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "cudaErrorInvalidValue";
  return error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration" : "another error";
}
inline const char* cudaGetErrorString(cudaError_t) { return "as the test wants it"; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  return on_host::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}

inline void __syncthreads() { on_host::block_barrier(); }
inline void __syncwarp() {
  char own = 0, all[32];
  on_host::exchange(&own, 1, all);
}
inline void __trap() { on_host::fail("__trap"); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  T all[32];
  on_host::exchange(&value, sizeof value, all);
  return all[threadIdx.x % 32 ^ mask];
}
inline int __any_sync(unsigned, int value) {
  int all[32], any = 0;
  on_host::exchange(&value, sizeof value, all);
  for (int v : all) any |= v != 0;
  return any;
}
inline uint32_t __reduce_add_sync(unsigned, uint32_t value) {
  uint32_t all[32], sum = 0;
  on_host::exchange(&value, sizeof value, all);
  for (int v : all) sum += v;
  return sum;
}
template <typename T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p += value;
  return before;
}
template <typename T>
T __ldg(const T* p) {
  on_host::check_global("__ldg", p, sizeof(T));
  return *p;
}
inline int __ffs(int v) { return __builtin_ffs(v); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __uint_as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, sizeof f);
  return f;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}
