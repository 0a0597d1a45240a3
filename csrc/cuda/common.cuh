// What the CUDA files share: errors, device guard, conversions, warp sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>

#include "../common.h"
#include "../splip.h"
#include "ptx.cuh"

// A failed CUDA call is a RuntimeError in Python, with the place and CUDA's name for it.
#define SPLIP_CUDA_CHECK(call)                                                       \
  do {                                                                               \
    const cudaError_t status = (call);                                               \
    if (status != cudaSuccess) {                                                     \
      throw std::runtime_error(splip::detail::concat(__FILE__, ":", __LINE__, ": ",  \
                                                     cudaGetErrorName(status), ": ", \
                                                     cudaGetErrorString(status)));   \
    }                                                                                \
  } while (0)

namespace splip::cuda {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

// True if this process uses the device. Asking does not make it so. (device.cu)
bool has_context(int device);

// Makes `device` current, and the previous one again at the end of the scope, if the process uses
// that: a thread that never chose a device has GPU 0, and cudaSetDevice(0) would set up a context
// there, some hundred MB for nothing. PyTorch's guards do the same.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    SPLIP_CUDA_CHECK(cudaGetDevice(&previous_));
    if (device == previous_) return;
    changed_ = has_context(previous_);
    SPLIP_CUDA_CHECK(cudaSetDevice(device));
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

__device__ __forceinline__ float load(float v) { return v; }
__device__ __forceinline__ float load(uint8_t v) { return static_cast<float>(v); }
__device__ __forceinline__ float load(__half v) { return __half2float(v); }
__device__ __forceinline__ float load(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ void store(float* p, float v) { *p = v; }
__device__ __forceinline__ void store(__half* p, float v) { *p = __float2half_rn(v); }
__device__ __forceinline__ void store(__nv_bfloat16* p, float v) { *p = __float2bfloat16_rn(v); }

inline bool aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Butterfly: every lane ends with the same sum, added in the same order.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kFullMask, v, offset);
  return v;
}

// Multiprocessors of the current device.
inline int multiprocessors(int device) {
  int count = 0;
  SPLIP_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Bytes of shared memory that a block of the device may ask for.
inline int most_shared(int device) {
  int bytes = 0;
  SPLIP_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Let a kernel use `bytes` of dynamic shared memory; above 48 KB it must ask.
template <typename Kernel>
void allow_shared(Kernel kernel, int bytes) {
  if (bytes <= 48 * 1024) return;
  SPLIP_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

// A grid dimension for `items` blocks; the kernels stride over what does not fit.
inline unsigned grid_for(int64_t items, int64_t most = 1 << 20) {
  return static_cast<unsigned>(items < most ? items : most);
}

}  // namespace splip::cuda
