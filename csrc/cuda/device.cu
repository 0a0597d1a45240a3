// The GPUs of this machine, for `splip info`, and whether the process uses one.
#include <cuda.h>

#include "common.cuh"

namespace splip::cuda {

// The runtime has no such question, the driver has, and the static runtime finds it: nothing links
// against libcuda, which a machine without a GPU lacks.
bool has_context(int device) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found,
                                                              7000, cudaEnableDefault, &result);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &found, cudaEnableDefault, &result);
#endif
  if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) return true;
  unsigned flags = 0;
  int active = 0;
  const auto state = reinterpret_cast<CUresult (*)(CUdevice, unsigned*, int*)>(found);
  return state(device, &flags, &active) == CUDA_SUCCESS && active != 0;
}

std::vector<std::string> devices() {
  int count = 0;
  SPLIP_CUDA_CHECK(cudaGetDeviceCount(&count));
  std::vector<std::string> lines;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    SPLIP_CUDA_CHECK(cudaGetDeviceProperties(&properties, i));
    lines.push_back(detail::concat(properties.name, ", compute capability ", properties.major, ".",
                                   properties.minor, ", ", properties.totalGlobalMem >> 20,
                                   " MiB"));
  }
  return lines;
}

}  // namespace splip::cuda
