// CUDA cosine_topk in tiles, rows in 8 bits.
#include "cosine_topk_tiles.cuh"

namespace splip::cuda {

void scan_tiles_i8(const Pass& pass, int tile_queries, int tile_rows, int device,
                   cudaStream_t stream) {
  launch_any<int8_t>(pass, tile_queries, tile_rows, device, stream);
}

}  // namespace splip::cuda
