// CUDA cosine_topk in tiles, rows in bfloat16.
#include "cosine_topk_tiles.cuh"

namespace splip::cuda {

void scan_tiles_bf16(const Pass& pass, int tile_queries, int tile_rows, int device,
                     cudaStream_t stream) {
  launch_any<__nv_bfloat16>(pass, tile_queries, tile_rows, device, stream);
}

}  // namespace splip::cuda
