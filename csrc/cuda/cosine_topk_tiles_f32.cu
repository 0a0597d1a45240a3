// CUDA cosine_topk in tiles, rows in float32.
#include "cosine_topk_tiles.cuh"

namespace splip::cuda {

void scan_tiles_f32(const Pass& pass, int tile_queries, int tile_rows, int device,
                    cudaStream_t stream) {
  launch_any<float>(pass, tile_queries, tile_rows, device, stream);
}

}  // namespace splip::cuda
