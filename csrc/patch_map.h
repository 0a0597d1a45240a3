// Where a pixel of the shuffled image comes from. Shared by the CPU and CUDA versions of patchify.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SPLIP_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPLIP_HOST_DEVICE inline
#endif

namespace splip {

struct Pixel {
  int64_t y, x;
};

// permutation: the source tile of each output tile of one image, or null. tile_h = H / grid,
// tile_w = W / grid; pixels past the last whole tile stay where they are.
SPLIP_HOST_DEVICE Pixel source_pixel(int64_t y, int64_t x, const int64_t* permutation, int64_t grid,
                                     int64_t tile_h, int64_t tile_w) {
  if (permutation == nullptr || y >= grid * tile_h || x >= grid * tile_w) return {y, x};
  const int64_t tile = permutation[(y / tile_h) * grid + x / tile_w];
  return {(tile / grid) * tile_h + y % tile_h, (tile % grid) * tile_w + x % tile_w};
}

}  // namespace splip
