// CUDA cosine_topk, many queries: tiles of queries x gallery rows on the tensor cores (mma.sync,
// sm_80 and later), whose scores are compared with each query's cut and never written. Bound by
// arithmetic above about 300 queries, Q * N * D products; below it by the gallery's bytes, which
// come from memory once: all query tiles of some gallery rows run side by side and share the L2.
// One source file for each dtype of the rows includes this, so that they compile side by side.
#pragma once

#include "cosine_topk.cuh"

namespace splip::cuda {
namespace {

constexpr int kStages = 3;       // tiles of 128 bytes of k: one multiplied, two on their way
constexpr int kStepBytes = 128;  // of every row, in one stage
constexpr int kSteps = kStepBytes / 32;  // products of 32 bytes of k
constexpr int kQueue = 160;              // rows that passed, waiting for a slot

// Shapes of a block: kWarpsQ x kWarpsN warps, each kWarpQueries x 64. A tile of 128 x 128 is sent
// 32 KB from the L2 cache for its products, one of 128 x 256 three quarters of that for each.
template <int kTileQueries, int kTileRows>
struct Tile {
  static constexpr int kQueries = kTileQueries, kRows = kTileRows;
  static constexpr int kWarpsQ = 2, kWarpsN = kRows / 64, kThreads = kWarp * kWarpsQ * kWarpsN;
  static constexpr int kWarpQueries = kQueries / kWarpsQ, kWarpRows = kRows / kWarpsN;
  static constexpr int kStageBytes = (kQueries + kRows) * kStepBytes;
  static constexpr int kBlocksPerMultiprocessor = kRows == 128 ? 2 : 1;
  static_assert(kThreads == kRows, "a thread looks after the mask of one row");
};

template <typename Shape>
struct Shared {
  uint4 stages[kStages][Shape::kStageBytes / 16];
  union {
    float squares[Shape::kWarpsQ][Shape::kRows];
    float factors[2][Shape::kRows];  // then what scores are multiplied with, and what is added
  };
  Queue<kQueue> queue;
};
static_assert(sizeof(Shared<Tile<128, 128>>) <= 99 * 1024, "sm_86, sm_89, sm_120 have no more");

// Work item i is gallery tile i / query_tiles, query tile i % query_tiles; a block takes every
// gridDim.x-th. Stages of one item follow those of the last without a gap, so that the next tile
// is on its way while this one's scores are compared.
//
// kStored: the pass brings what a row's products are multiplied with. kDense: every score is kept.
//
// Long, because it is one: with any of its steps as a function the compiler gives it other
// registers and other code, and whether that is as fast only a GPU can tell.
template <typename T, typename Shape, bool kStored, bool kDense>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerMultiprocessor)
    tile_kernel(Pass p, unsigned items, unsigned query_tiles) {
  extern __shared__ uint4 shared_bytes[];
  auto& s = *reinterpret_cast<Shared<Shape>*>(shared_bytes);
  constexpr int kQueries = Shape::kQueries;
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

  // What is loaded next: kRowsAtOnce rows by one chunk per thread, several times. Rows beyond the
  // last are that one again: their scores are dropped.
  constexpr int kRowsAtOnce = Shape::kThreads / mma::kRowChunks;
  const int own_row = thread / mma::kRowChunks, own_chunk = thread % mma::kRowChunks;
  unsigned load_item = blockIdx.x;
  int load_k = 0;
  uint32_t own_rows[Shape::kRows / kRowsAtOnce];  // of the gallery; the same for all k
  const auto issue = [&](int stage) {
    if (load_k == 0) {
      const int64_t n0 = int64_t(load_item / query_tiles) * Shape::kRows + own_row;
#pragma unroll
      for (int r = 0; r < Shape::kRows / kRowsAtOnce; ++r) {
        const int64_t row = n0 + r * kRowsAtOnce;
        own_rows[r] = static_cast<uint32_t>(topk::sampled(row < p.rows ? row : p.rows - 1, p.step));
      }
    }
    const int column = load_k * kColumns + own_chunk * kChunk;
    const bool inside = column < p.D;  // D is a multiple of a chunk
    const int from = inside ? column : 0;
    const unsigned base =
        shared_address(s.stages[stage]) + mma::swizzled(own_row, own_chunk) * mma::kChunkBytes;
    static_assert(kRowsAtOnce % mma::kRowChunks == 0, "the swizzle is the same for all rows");
    const int first = static_cast<int>(load_item % query_tiles) * kQueries + own_row;
#pragma unroll
    for (int r = 0; r < kQueries / kRowsAtOnce; ++r) {
      const int row = first + r * kRowsAtOnce;
      copy_async(base + r * kRowsAtOnce * kStepBytes,
                 queries + int64_t(row < p.Q ? row : p.Q - 1) * p.D + from, inside);
    }
#pragma unroll
    for (int r = 0; r < Shape::kRows / kRowsAtOnce; ++r) {
      copy_async(base + (kQueries + r * kRowsAtOnce) * kStepBytes,
                 gallery + int64_t(own_rows[r]) * p.D + from, inside);
    }
    if (++load_k == k_steps) {
      load_k = 0;
      load_item += gridDim.x;
    }
  };

  if (thread == 0) s.queue.count = 0;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < steps) issue(stage);
    copy_commit();
  }

  typename Element<T>::Sum product[kBlocksQ][kBlocksN][4] = {};  // the MMAs' accumulators
  float squares[kBlocksN] = {};  // of the rows that are columns of this lane's B
  bool use_row = false;          // row `thread` of the tile may be a result
  RowFactors own_factors = {NAN, 0};
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
      if (s.queue.count > kQueue / 2) {
        s.queue.drain(p.out, thread, Shape::kThreads);
        __syncthreads();
        if (thread == 0) s.queue.count = 0;
      }
      const int64_t row = int64_t(item / query_tiles) * Shape::kRows + thread;
      const int64_t index = topk::sampled(row, p.step);
      use_row = row < p.rows && (p.allowed == nullptr || p.allowed[index] != 0);
      if constexpr (kStored) {
        own_factors = use_row ? row_factors(p, index) : RowFactors{NAN, 0};
      }
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
        if (!kStored && kk % Shape::kWarpsQ == warp_q) {
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

    // The tile's products are complete: factors of its rows, then every score against its cut.
    if constexpr (kStored) {
      s.factors[0][thread] = own_factors.scale;  // last read before this step's barrier
      s.factors[1][thread] = own_factors.error;
    } else {
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
      s.factors[0][thread] = own_inverse;  // each thread reads and writes its own row's place only
    }
    __syncthreads();
    const int q0 = static_cast<int>(item % query_tiles) * kQueries + warp_q * Shape::kWarpQueries;
    const int64_t n0 = int64_t(item / query_tiles) * Shape::kRows + warp_n * Shape::kWarpRows;
    item += gridDim.x;
    static_assert(2 * kBlocksN == kTogether, "the scores of a thread and a query");
    float2 scale[kBlocksN], error[Element<T>::kFactors ? kBlocksN : 1];
#pragma unroll
    for (int j = 0; j < kBlocksN; ++j) {
      const int place = warp_n * Shape::kWarpRows + j * 8 + mma::c_column(lane, 0);
      scale[j] = *reinterpret_cast<const float2*>(&s.factors[0][place]);
      if constexpr (Element<T>::kFactors) {
        error[j] = *reinterpret_cast<const float2*>(&s.factors[1][place]);
      }
    }
#pragma unroll
    for (int i = 0; i < kBlocksQ; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int q = q0 + i * 16 + mma::c_row(lane, half * 2);
        float query_scale = 1;
        if constexpr (Element<T>::kFactors) query_scale = q < p.Q ? p.query_scale[q] : 0.0f;
        float score[kTogether];
#pragma unroll
        for (int j = 0; j < kBlocksN; ++j) {
          auto& sums = product[i][j];
          const float2 more = Element<T>::kFactors ? error[Element<T>::kFactors ? j : 0] : float2{};
          score[2 * j] = score_of<T>(sums[half * 2], query_scale, scale[j].x, more.x);
          score[2 * j + 1] = score_of<T>(sums[half * 2 + 1], query_scale, scale[j].y, more.y);
          sums[half * 2] = sums[half * 2 + 1] = 0;
        }
        // Columns of this thread: two neighbours of every eight.
        const auto row_of = [&](int e) { return n0 + e / 2 * 8 + mma::c_column(lane, e % 2); };
        if constexpr (kDense) {
          if (q >= p.Q) continue;
          uint64_t* keys = p.out.keys + int64_t(q) * p.out.capacity;
#pragma unroll
          for (int e = 0; e < kTogether; ++e) {
            const int64_t row = row_of(e);
            if (row >= p.rows) continue;
            const auto index = static_cast<uint32_t>(topk::sampled(row, p.step));
            keys[row] = score[e] == score[e] ? topk::make_key(score[e], index) : 0;
          }
        } else {
          const float threshold = q < p.Q ? p.out.cuts[q] : NAN;
          if (!(largest(score) >= threshold)) continue;
          uint32_t passed = 0;
#pragma unroll
          for (int e = 0; e < kTogether; ++e) passed |= uint32_t(score[e] >= threshold) << e;
          keep_some(passed, score, [&](int e, float value) {
            s.queue.add(p.out, q, static_cast<uint32_t>(topk::sampled(row_of(e), p.step)), value);
          });
        }
      }
    }
  }
  copy_wait<0>();
  __syncthreads();
  s.queue.drain(p.out, thread, Shape::kThreads);
}

template <typename T, typename Shape, bool kStored, bool kDense>
void launch(const Pass& p, int device, cudaStream_t stream) {
  const int64_t query_tiles = (p.Q + Shape::kQueries - 1) / Shape::kQueries;
  const int64_t items = (p.rows + Shape::kRows - 1) / Shape::kRows * query_tiles;
  SPLIP_CHECK(items <= UINT32_MAX, "too many queries and rows in one call: ", p.Q, ", ", p.rows);
  constexpr int kBytes = sizeof(Shared<Shape>);
  allow_shared(tile_kernel<T, Shape, kStored, kDense>, kBytes);
  const unsigned blocks =
      grid_for(items, int64_t(multiprocessors(device)) * Shape::kBlocksPerMultiprocessor);
  tile_kernel<T, Shape, kStored, kDense><<<blocks, Shape::kThreads, kBytes, stream>>>(
      p, static_cast<unsigned>(items), static_cast<unsigned>(query_tiles));
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename T, bool kStored>
void launch_shape(const Pass& p, int tile_queries, int tile_rows, int device, cudaStream_t stream) {
  using Wide = Tile<128, 256>;
  if (p.dense) return launch<T, Tile<64, 128>, kStored, true>(p, device, stream);
  if (tile_queries == 64) return launch<T, Tile<64, 128>, kStored, false>(p, device, stream);
  if (tile_rows == 256 && most_shared(device) >= static_cast<int>(sizeof(Shared<Wide>))) {
    return launch<T, Wide, kStored, false>(p, device, stream);
  }
  launch<T, Tile<128, 128>, kStored, false>(p, device, stream);
}

template <typename T>
void launch_any(const Pass& p, int tile_queries, int tile_rows, int device, cudaStream_t stream) {
  if constexpr (!Element<T>::kFactors) {
    if (p.row_scale == nullptr) {
      return launch_shape<T, false>(p, tile_queries, tile_rows, device, stream);
    }
  }
  launch_shape<T, true>(p, tile_queries, tile_rows, device, stream);
}

}  // namespace
}  // namespace splip::cuda
