// The GPUs of this machine, for `splip info`.
#include "common.cuh"

namespace splip::cuda {

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
