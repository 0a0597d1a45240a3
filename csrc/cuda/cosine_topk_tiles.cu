// CUDA cosine_topk, many queries: tiles of queries x gallery rows on the tensor cores (mma.sync,
// sm_80 and later), whose scores are compared with each query's cut and never written. Bound by
// arithmetic above about 300 queries, Q * N * D products; below it by the gallery's bytes, which
// come from memory once: all query tiles of some gallery rows run side by side and share the L2.
#include "cosine_topk.cuh"

namespace splip::cuda {
namespace {

constexpr int kStages = 3;       // tiles of 128 bytes of k: one multiplied, two on their way
constexpr int kStepBytes = 128;  // of every row, in one stage
constexpr int kSteps = kStepBytes / 32;  // products of 32 bytes of k
constexpr int kQueue = 160;              // rows that passed, waiting for a slot
constexpr int kBlocksPerMultiprocessor = 2;

// Shapes of a block: kWarpsQ x kWarpsN warps, each kWarpQueries x 64.
template <int kQueries>
struct Tile {
  static constexpr int kRows = 128;
  static constexpr int kWarpsQ = 2, kWarpsN = 2, kThreads = kWarp * kWarpsQ * kWarpsN;
  static constexpr int kWarpQueries = kQueries / kWarpsQ, kWarpRows = kRows / kWarpsN;
  static constexpr int kStageBytes = (kQueries + kRows) * kStepBytes;
  static_assert(kThreads == kRows, "a thread looks after the mask of one row");
};

template <int kQueries>
struct Shared {
  uint4 stages[kStages][Tile<kQueries>::kStageBytes / 16];
  float squares[Tile<kQueries>::kWarpsQ][Tile<kQueries>::kRows];
  int queue_query[kQueue];
  uint32_t queue_index[kQueue];
  float queue_score[kQueue];
  int queued;
};
static_assert(sizeof(Shared<128>) <= 99 * 1024, "sm_86, sm_89 and sm_120 have no more");

// Work item i is gallery tile i / query_tiles, query tile i % query_tiles; a block takes every
// gridDim.x-th. Stages of one item follow those of the last without a gap, so that the next tile
// is on its way while this one's scores are compared.
template <typename T, int kQueries>
__global__ void __launch_bounds__(Tile<kQueries>::kThreads, kBlocksPerMultiprocessor)
    tile_kernel(Pass p, unsigned items, unsigned query_tiles) {
  using Shape = Tile<kQueries>;
  extern __shared__ uint4 shared_bytes[];
  auto& s = *reinterpret_cast<Shared<kQueries>*>(shared_bytes);
  const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  const int warp_q = warp / Shape::kWarpsN, warp_n = warp % Shape::kWarpsN;
  constexpr int kBlocksQ = Shape::kWarpQueries / 16, kBlocksN = Shape::kWarpRows / 8;
  constexpr int kChunk = mma::kChunkBytes / sizeof(T), kColumns = kStepBytes / sizeof(T);
  const int k_steps = (p.D + kColumns - 1) / kColumns;
  if (blockIdx.x >= items) return;
  const unsigned own_items = (items - blockIdx.x + gridDim.x - 1) / gridDim.x;
  const int64_t steps = int64_t(own_items) * k_steps;
  const auto* queries = static_cast<const T*>(p.queries);
  const auto* gallery = static_cast<const T*>(p.gallery);

  // What is loaded next: kRowsAtOnce rows by one chunk per thread, several times.
  constexpr int kRowsAtOnce = Shape::kThreads / mma::kRowChunks;
  const int own_row = thread / mma::kRowChunks, own_chunk = thread % mma::kRowChunks;
  unsigned load_item = blockIdx.x;
  int load_k = 0;
  const auto issue = [&](int stage) {
    const int64_t q0 = int64_t(load_item % query_tiles) * kQueries;
    const int64_t n0 = int64_t(load_item / query_tiles) * Shape::kRows;
    const int column = load_k * kColumns + own_chunk * kChunk;
    const unsigned base = shared_address(s.stages[stage]);
    const bool inside = column < p.D;  // D is a multiple of a chunk
#pragma unroll
    for (int r = 0; r < kQueries; r += kRowsAtOnce) {
      const int row = r + own_row;
      const bool use = inside && q0 + row < p.Q;
      copy_async(base + mma::swizzled(row, own_chunk) * mma::kChunkBytes,
                 use ? queries + (q0 + row) * p.D + column : queries, use);
    }
#pragma unroll
    for (int r = 0; r < Shape::kRows; r += kRowsAtOnce) {
      const int row = r + own_row;
      const bool use = inside && n0 + row < p.rows;
      copy_async(base + mma::swizzled(kQueries + row, own_chunk) * mma::kChunkBytes,
                 use ? gallery + topk::sampled(n0 + row, p.step) * p.D + column : gallery, use);
    }
    if (++load_k == k_steps) {
      load_k = 0;
      load_item += gridDim.x;
    }
  };

  // The queue's rows to their queries. Between two barriers.
  const auto drain = [&] {
    const int n = s.queued < kQueue ? s.queued : kQueue;
    for (int i = thread; i < n; i += Shape::kThreads) {
      push(p.out, s.queue_query[i], s.queue_index[i], s.queue_score[i]);
    }
  };

  if (thread == 0) s.queued = 0;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) issue(stage);
    copy_commit();
  }

  float product[kBlocksQ][kBlocksN][4] = {};
  float squares[kBlocksN] = {};  // of the rows that are columns of this lane's B
  bool use_row = false;          // row `thread` of the tile may be a result
  unsigned item = blockIdx.x;
  int k = 0, stage = 0, load_stage = kStages - 1;
  for (int64_t step = 0; step < steps; ++step) {
    copy_wait<kStages - 2>();
    __syncthreads();  // this stage has arrived, and everyone is done with the one loaded next
    if (step + kStages - 1 < steps) issue(load_stage);
    copy_commit();
    load_stage = load_stage + 1 == kStages ? 0 : load_stage + 1;
    if (k == 0) {
      // The last item's queue is complete: nobody writes to it before the next barrier but one.
      if (s.queued > kQueue / 2) {
        drain();
        __syncthreads();
        if (thread == 0) s.queued = 0;
      }
      const int64_t row = int64_t(item / query_tiles) * Shape::kRows + thread;
      use_row =
          row < p.rows && (p.allowed == nullptr || p.allowed[topk::sampled(row, p.step)] != 0);
    }

    const unsigned tile = shared_address(s.stages[stage]);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    // Rounding to tf32 needs registers of its own: unrolled, it would spill.
#pragma unroll(sizeof(T) == 4 ? 1 : kSteps)
    for (int kk = 0; kk < kSteps; ++kk) {
      uint32_t a[kBlocksQ][4];
#pragma unroll
      for (int i = 0; i < kBlocksQ; ++i) {
        const mma::Source from = mma::a_source(lane, kk);
        const int row = warp_q * Shape::kWarpQueries + i * 16 + from.row;
        load_matrices(a[i], tile + mma::swizzled(row, from.chunk) * mma::kChunkBytes);
#pragma unroll
        for (int r = 0; r < 4; ++r) a[i][r] = Element<T>::operand(a[i][r]);
      }
#pragma unroll
      for (int j = 0; j < kBlocksN; j += 2) {
        uint32_t b[4];
        const mma::Source from = mma::b_source(lane, kk);
        const int row = kQueries + warp_n * Shape::kWarpRows + j * 8 + from.row;
        load_matrices(b, tile + mma::swizzled(row, from.chunk) * mma::kChunkBytes);
        // Warps of the same rows take turns at their squares.
        if (kk % Shape::kWarpsQ == warp_q) {
          squares[j] = Element<T>::squares(b[1], Element<T>::squares(b[0], squares[j]));
          squares[j + 1] = Element<T>::squares(b[3], Element<T>::squares(b[2], squares[j + 1]));
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) b[r] = Element<T>::operand(b[r]);
#pragma unroll
        for (int i = 0; i < kBlocksQ; ++i) {
          mma_sync<T>(product[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
          mma_sync<T>(product[i][j + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
        }
      }
    }
    if (++k < k_steps) continue;
    k = 0;

    // The tile's products are complete: norms of its rows, then every score against its cut.
#pragma unroll
    for (int j = 0; j < kBlocksN; ++j) {
      squares[j] += __shfl_xor_sync(kFullMask, squares[j], 1);
      squares[j] += __shfl_xor_sync(kFullMask, squares[j], 2);
      if (lane % 4 == 0) {
        s.squares[warp_q][warp_n * Shape::kWarpRows + j * 8 + lane / 4] = squares[j];
      }
      squares[j] = 0;
    }
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int w = 0; w < Shape::kWarpsQ; ++w) sum += s.squares[w][thread];
    const float own_inverse = use_row ? inverse_norm(sum) : NAN;
    s.squares[0][thread] = own_inverse;  // each thread reads and writes its own row's place only
    __syncthreads();
    const int q0 = static_cast<int>(item % query_tiles) * kQueries + warp_q * Shape::kWarpQueries;
    const int64_t n0 = int64_t(item / query_tiles) * Shape::kRows + warp_n * Shape::kWarpRows;
    item += gridDim.x;
#pragma unroll
    for (int i = 0; i < kBlocksQ; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int q = q0 + i * 16 + mma::c_row(lane, half * 2);
        const float cut = q < p.Q ? p.out.cuts[q] : INFINITY;
#pragma unroll
        for (int j = 0; j < kBlocksN; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = j * 8 + mma::c_column(lane, e);
            const float inverse = s.squares[0][warp_n * Shape::kWarpRows + column];
            const float score = product[i][j][half * 2 + e] * inverse;
            const int64_t row = n0 + column;
            if (p.dense) {
              if (q < p.Q && row < p.rows) {
                p.out.keys[int64_t(q) * p.out.capacity + row] =
                    score == score
                        ? topk::make_key(score, static_cast<uint32_t>(topk::sampled(row, p.step)))
                        : 0;
              }
            } else if (score >= cut) {
              const int slot = atomicAdd(&s.queued, 1);
              if (slot < kQueue) {
                s.queue_query[slot] = q;
                s.queue_index[slot] = static_cast<uint32_t>(topk::sampled(row, p.step));
                s.queue_score[slot] = score;
              } else {
                p.out.lost[q] = 1;
              }
            }
            product[i][j][half * 2 + e] = 0;
          }
        }
      }
    }
  }
  copy_wait<0>();
  __syncthreads();
  drain();
}

template <typename T, int kQueries>
void launch(const Pass& p, int device, cudaStream_t stream) {
  using Shape = Tile<kQueries>;
  const int64_t query_tiles = (p.Q + kQueries - 1) / kQueries;
  const int64_t items = (p.rows + Shape::kRows - 1) / Shape::kRows * query_tiles;
  SPLIP_CHECK(items <= UINT32_MAX, "too many queries and rows in one call: ", p.Q, ", ", p.rows);
  constexpr int kBytes = sizeof(Shared<kQueries>);
  allow_shared(tile_kernel<T, kQueries>, kBytes);
  const unsigned blocks =
      grid_for(items, int64_t(multiprocessors(device)) * kBlocksPerMultiprocessor);
  tile_kernel<T, kQueries><<<blocks, Shape::kThreads, kBytes, stream>>>(
      p, static_cast<unsigned>(items), static_cast<unsigned>(query_tiles));
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch_any(const Pass& p, int tile_queries, int device, cudaStream_t stream) {
  if (tile_queries == 64) return launch<T, 64>(p, device, stream);
  launch<T, 128>(p, device, stream);
}

}  // namespace

void scan_tiles(const Pass& pass, DType dtype, int tile_queries, int device, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32:
      return launch_any<float>(pass, tile_queries, device, stream);
    case DType::f16:
      return launch_any<__half>(pass, tile_queries, device, stream);
    default:
      return launch_any<__nv_bfloat16>(pass, tile_queries, device, stream);
  }
}

}  // namespace splip::cuda
