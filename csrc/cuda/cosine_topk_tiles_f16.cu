// CUDA cosine_topk in tiles, rows in float16.
#include "cosine_topk_tiles.cuh"

namespace splip::cuda {

void scan_tiles_f16(const Pass& pass, int tile_queries, int tile_rows, int device,
                    cudaStream_t stream) {
  launch_any<__half>(pass, tile_queries, tile_rows, device, stream);
}

}  // namespace splip::cuda
