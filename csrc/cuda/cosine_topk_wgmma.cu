// CUDA cosine_topk, more than 32 queries on Hopper (sm_90a): tiles of 128 queries x 256 gallery
// rows by wgmma, whose factors come straight from shared memory. One warpgroup copies, two multiply
// 64 queries each; scores are compared with each query's cut and never written, as in the other
// tiles. Bound by arithmetic, Q * N * D products, or by what the L2 cache sends: 32 KB of rows for
// the products of 128 bytes of k (1,024 clocks in 16 bits at the full rate), and 16 KB of queries
// unless these stay in shared memory, which 1 KB a query (D = 512 in 16 bits) can beside three
// stages.
//
// Copies are cp.async, not the bulk copy engine: a pass over a sample takes rows at uneven
// distances, which a tensor map cannot name, and every thread's copies arrive at the stage's
// barrier by themselves. wgmma reads shared memory through another path than ordinary copies write
// it, so who has waited for a stage fences before multiplying.
//
// The two warpgroups that multiply go their own ways as far as the ring of stages lets them: while
// one compares its scores, the other has the tensor cores. Without stored norms they cannot: norms
// are summed from shared memory by the warps that multiply, one row a thread, for both.
#include "cosine_topk.cuh"

namespace splip::cuda {
namespace {

constexpr int kQueries = 128, kRows = 256;
constexpr int kConsumers = 256, kProducers = 128, kThreads = kConsumers + kProducers;
constexpr int kStepBytes = 128;  // of every row, in one stage
constexpr int kMostStages = 4, kLeastStages = 3;
constexpr int kQueryStep = kQueries * kStepBytes, kRowStep = kRows * kStepBytes;
constexpr int kQueue = 12;  // rows that passed, of a warp and a tile: more wait for their slots
static_assert(kConsumers == kRows, "a thread looks after the norm and the mask of one row");

// Scores of a warp's part of a tile that passed, on their way to memory.
template <int kRoom>
struct WarpQueue {
  uint2 entries[kRoom];  // the score's bits; its query and row in the part
  int count;
};

// Behind the stages in shared memory.
template <typename T>
struct Fixed {
  uint64_t full[kMostStages], empty[kMostStages];
  // Of a tile's rows: for each warpgroup, or, where norms are summed, for two tiles in turn.
  float factors[2][Element<T>::kFactors ? 2 : 1][kRows];
  WarpQueue<kQueue> queues[kConsumers / kWarp];

  __device__ __forceinline__ unsigned full_at(int stage) { return shared_address(&full[stage]); }
  __device__ __forceinline__ unsigned empty_at(int stage) { return shared_address(&empty[stage]); }
};
// 128 queries of 1 KB and three stages beside it, in the 227 KB that a block may have.
static_assert(sizeof(Fixed<__half>) + 8 * kQueryStep + 3 * kRowStep <= 227 * 1024,
              "at D = 512 the queries stay in shared memory");

// How shared memory is divided. `resident`: all of the block's queries stand before the stages,
// which then hold gallery rows only.
struct Layout {
  int first_tile, query_tiles, k_steps, stages;  // query_tiles: of this launch
  bool resident;

  SPLIP_HOST_DEVICE int stage_bytes() const { return kRowStep + (resident ? 0 : kQueryStep); }
  SPLIP_HOST_DEVICE int first_stage() const { return resident ? k_steps * kQueryStep : 0; }
  SPLIP_HOST_DEVICE int fixed() const { return first_stage() + stages * stage_bytes(); }
};

// A block keeps one query tile and takes every so many row tiles, so that the blocks that run side
// by side share gallery rows in the L2 cache.
struct Work {
  int query_tile;
  int64_t row_tile, stride, row_tiles;  // the first, the distance to the next, all of the pass
};

// The last tile's queue, one entry a lane: a slot of its query's list is asked for, and used when
// it has come.
template <int kRoom>
struct Waiting {
  int slot = -1, query = 0;
  uint64_t key = 0;

  __device__ __forceinline__ void write(const Candidates& out) {
    if (slot >= 0 && slot < out.capacity) out.keys[int64_t(query) * out.capacity + slot] = key;
    slot = -1;
  }
  __device__ __forceinline__ void ask(const Pass& p, WarpQueue<kRoom>& queue, int first_query,
                                      int64_t tile, int lane) {
    __syncwarp();
    const int count = queue.count < kRoom ? queue.count : kRoom;
    if (lane < count) {
      const uint2 entry = queue.entries[lane];
      const int64_t row = tile * kRows + (entry.y & 0xff);
      query = first_query + static_cast<int>(entry.y >> 8);
      key = topk::make_key(__uint_as_float(entry.x),
                           static_cast<uint32_t>(topk::sampled(row, p.step)));
      slot = atomicAdd(p.out.counts + query, 1);
    }
    __syncwarp();
    if (lane == 0) queue.count = 0;
    __syncwarp();
  }
};

// A tile's products to scores: those that reach their query's threshold go to the warp's queue, or
// past it where that is full.
template <typename T>
__device__ __forceinline__ void score_tile(const Pass& p,
                                           const typename Element<T>::Sum (&product)[128],
                                           const float (&scales)[2], const float (&thresholds)[2],
                                           const float (&multiply)[kRows],
                                           const float (&add)[kRows], WarpQueue<kQueue>& queue,
                                           int first_query, int64_t tile, int own) {
#pragma unroll
  for (int first = 0; first < 128; first += kTogether) {
    float score[kTogether];
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kTogether; i += 4) {
      const int column = mma::group_column(own, first + i);
      const float2 factor = *reinterpret_cast<const float2*>(&multiply[column]);
      float2 error = {0, 0};
      if constexpr (Element<T>::kFactors) {
        error = *reinterpret_cast<const float2*>(&add[column]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = i + 2 * half;
        score[j] = score_of<T>(product[first + j], scales[half], factor.x, error.x);
        score[j + 1] = score_of<T>(product[first + j + 1], scales[half], factor.y, error.y);
        most[half] = fmaxf(most[half], fmaxf(score[j], score[j + 1]));
      }
    }
    if (!(most[0] >= thresholds[0] || most[1] >= thresholds[1])) continue;
    uint32_t passed = 0;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      passed |= uint32_t(score[i] >= thresholds[i / 2 % 2]) << i;
    }
    keep_some(passed, score, [&](int i, float value) {
      const int row = mma::group_row(own, i), column = mma::group_column(own, first + i);
      const int place = atomicAdd(&queue.count, 1);
      if (place < kQueue) {
        queue.entries[place] = {__float_as_uint(value), uint32_t(row << 8 | column)};
      } else {
        const auto index = static_cast<uint32_t>(topk::sampled(tile * kRows + column, p.step));
        push(p.out, first_query + row, index, value);
      }
    });
  }
}

// The warpgroup that copies: every row tile of the block, and its queries with it unless they stay.
template <typename T>
__device__ __forceinline__ void copy_tiles(const Pass& p, const Layout& layout, unsigned memory,
                                           Fixed<T>& s, const Work& work) {
  constexpr int kChunk = mma::kChunkBytes / sizeof(T), kColumns = kStepBytes / sizeof(T);
  constexpr int kRowsAtOnce = kProducers / mma::kRowChunks;
  static_assert(kRowsAtOnce % mma::kRowChunks == 0, "the swizzle is the same for all rows");
  const int own = threadIdx.x - kConsumers;
  const int own_row = own / mma::kRowChunks, own_chunk = own % mma::kRowChunks;
  const int place = mma::swizzled(own_row, own_chunk) * mma::kChunkBytes;
  const auto* queries = static_cast<const T*>(p.queries);
  const auto* gallery = static_cast<const T*>(p.gallery);
  Ring ring = {0, 1};  // all stages are empty
  bool load_queries = true;
  for (int64_t tile = work.row_tile; tile < work.row_tiles; tile += work.stride) {
    uint32_t own_rows[kRows / kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRows / kRowsAtOnce; ++r) {
      // Rows beyond the last are that one again: their scores are dropped.
      const int64_t row = tile * kRows + own_row + r * kRowsAtOnce;
      own_rows[r] = static_cast<uint32_t>(topk::sampled(row < p.rows ? row : p.rows - 1, p.step));
    }
    for (int k = 0; k < layout.k_steps; ++k) {
      barrier_wait(s.empty_at(ring.stage), ring.parity);
      const int column = k * kColumns + own_chunk * kChunk;
      const bool inside = column < p.D;  // D is a multiple of a chunk
      const int from = inside ? column : 0;
      const unsigned rows_at =
          memory + layout.first_stage() + ring.stage * layout.stage_bytes() + place;
      if (load_queries) {
        const unsigned queries_at =
            layout.resident ? memory + k * kQueryStep + place : rows_at + kRowStep;
#pragma unroll
        for (int r = 0; r < kQueries / kRowsAtOnce; ++r) {
          const int row = work.query_tile * kQueries + own_row + r * kRowsAtOnce;
          copy_async(queries_at + r * kRowsAtOnce * kStepBytes,
                     queries + int64_t(row < p.Q ? row : p.Q - 1) * p.D + from, inside);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows / kRowsAtOnce; ++r) {
        copy_async(rows_at + r * kRowsAtOnce * kStepBytes,
                   gallery + int64_t(own_rows[r]) * p.D + from, inside);
      }
      barrier_arrive_after_copies(s.full_at(ring.stage));
      ring.next(layout.stages);
    }
    load_queries = !layout.resident;
  }
  copy_commit();
  copy_wait<0>();  // not to leave before what was begun has arrived
}

// Begins the products of one stage; add: to those so far. Not kStored: meanwhile the squares of row
// threadIdx.x of `rows`, which are those at rows_at.
template <typename T, bool kStored>
__device__ __forceinline__ void multiply_stage(unsigned queries_at, unsigned rows_at,
                                               const uint4* rows, bool add,
                                               typename Element<T>::Sum (&product)[128],
                                               float& squares) {
  constexpr int kSteps = kStepBytes / 32;  // products of 32 bytes of k
  const uint64_t a = mma::descriptor(queries_at);
  const uint64_t b = mma::descriptor(rows_at);
  wgmma_begin();
#pragma unroll
  for (int kk = 0; kk < kSteps; ++kk) {
    wgmma<T>(product, mma::descriptor_at(a, kk), mma::descriptor_at(b, kk), add || kk > 0);
  }
  wgmma_commit();
  if constexpr (!kStored) {
#pragma unroll
    for (int chunk = 0; chunk < mma::kRowChunks; ++chunk) {
      const uint4 words = rows[mma::swizzled(threadIdx.x, chunk)];
      squares = Element<T>::squares(words.x, squares);
      squares = Element<T>::squares(words.y, squares);
      squares = Element<T>::squares(words.z, squares);
      squares = Element<T>::squares(words.w, squares);
    }
  }
}

// A warpgroup that multiplies: 64 of the block's queries with every row tile of it.
template <typename T, bool kStored>
__device__ __forceinline__ void multiply_tiles(const Pass& p, const Layout& layout, unsigned memory,
                                               const uint4* shared_bytes, Fixed<T>& s,
                                               const Work& work) {
  constexpr int kGroup = 128;        // threads of a warpgroup
  constexpr int kGroupQueries = 64;  // of the block's queries, those of one warpgroup
  constexpr int kBarrier = 1;        // of the threads that multiply; then of each warpgroup
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int group = thread / kGroup, own = thread % kGroup;
  WarpQueue<kQueue>& queue = s.queues[thread / kWarp];
  const int first_query = work.query_tile * kQueries + group * kGroupQueries;
  typename Element<T>::Sum product[128];    // accumulators, written by the tensor cores meanwhile
  float thresholds[2], scales[2] = {1, 1};  // of this thread's two queries
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int q = first_query + mma::group_row(own, 2 * half);
    thresholds[half] = q < p.Q ? p.out.cuts[q] : NAN;
    if constexpr (Element<T>::kFactors) scales[half] = q < p.Q ? p.query_scale[q] : 0.0f;
  }
  Ring ring = {0, 0};
  // A warp's reads of a stage are over.
  const auto release = [&](int stage) {
    __syncwarp();
    if (lane == 0) barrier_arrive(s.empty_at(stage));
  };
  Waiting<kQueue> waiting;
  int turn = 0;
  for (int64_t tile = work.row_tile; tile < work.row_tiles; tile += work.stride) {
    RowFactors factors[2];
    bool use_row = false;
    if constexpr (kStored) {
      factors[0] = factors_of(p, tile * kRows + own);
      factors[1] = factors_of(p, tile * kRows + kGroup + own);
    } else {
      const int64_t row = tile * kRows + thread;
      use_row = row < p.rows && (p.allowed == nullptr || p.allowed[topk::sampled(row, p.step)]);
    }
    float squares = 0;
    int last = 0;
    for (int k = 0; k < layout.k_steps; ++k) {
      barrier_wait(s.full_at(ring.stage), ring.parity);
      fence_for_wgmma();
      const int rows_at = layout.first_stage() + ring.stage * layout.stage_bytes();
      const int queries_at = layout.resident ? k * kQueryStep : rows_at + kRowStep;
      multiply_stage<T, kStored>(memory + queries_at + group * kGroupQueries * kStepBytes,
                                 memory + rows_at, shared_bytes + rows_at / mma::kChunkBytes, k > 0,
                                 product, squares);
      if (k == 0) waiting.write(p.out);
      if (k > 0) {
        wgmma_wait<1>();
        release(last);
      }
      last = ring.stage;
      ring.next(layout.stages);
    }
    float (&multiply)[kRows] = s.factors[kStored ? group : turn][0];
    float (&add)[kRows] = s.factors[kStored ? group : turn][Element<T>::kFactors ? 1 : 0];
    if constexpr (kStored) {
      sync_some(kBarrier + 1 + group, kGroup);  // nobody reads the last tile's any more
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        multiply[i * kGroup + own] = factors[i].scale;
        if constexpr (Element<T>::kFactors) add[i * kGroup + own] = factors[i].error;
      }
    } else {
      multiply[thread] = use_row ? inverse_norm(squares) : NAN;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 128; ++i) settle(product[i]);
    release(last);
    if constexpr (kStored) {
      sync_some(kBarrier + 1 + group, kGroup);
    } else {
      sync_some(kBarrier, kConsumers);
      turn ^= 1;
    }
    score_tile<T>(p, product, scales, thresholds, multiply, add, queue, first_query, tile, own);
    waiting.ask(p, queue, first_query, tile, lane);
  }
  waiting.write(p.out);
}

// The block's warpgroups part here, each with the registers that it needs.
template <typename T, bool kStored>
__device__ __forceinline__ void scan_rows(const Pass& p, const Layout& layout) {
  extern __shared__ __align__(1024) uint4 shared_bytes[];
  const unsigned memory = shared_address(shared_bytes);
  auto& s = *reinterpret_cast<Fixed<T>*>(reinterpret_cast<char*>(shared_bytes) + layout.fixed());
  const Work work = {layout.first_tile + static_cast<int>(blockIdx.x % layout.query_tiles),
                     blockIdx.x / layout.query_tiles, gridDim.x / layout.query_tiles,
                     (p.rows + kRows - 1) / kRows};
  if (memory % mma::kEightRows != 0) __trap();  // the swizzle goes by the address
  if (threadIdx.x == 0) {
    for (int i = 0; i < layout.stages; ++i) {
      barrier_init(s.full_at(i), kProducers);
      barrier_init(s.empty_at(i), kConsumers / kWarp);
    }
    for (WarpQueue<kQueue>& queue : s.queues) queue.count = 0;
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    fewer_registers<88>();
    copy_tiles<T>(p, layout, memory, s, work);
  } else {
    more_registers<208>();
    multiply_tiles<T, kStored>(p, layout, memory, shared_bytes, s, work);
  }
}

template <typename T, bool kStored>
__global__ void __launch_bounds__(kThreads, 1) wgmma_kernel(Pass p, Layout layout) {
  if constexpr (kHasWgmma) scan_rows<T, kStored>(p, layout);  // other GPUs' code is empty
}

// Blocks that share a query tile, each on a multiprocessor.
int blocks_of_a_tile(int query_tiles, int multi) {
  return multi / query_tiles < 1 ? 1 : multi / query_tiles;
}

// Query tiles of one launch: 67 of them would leave half of 132 multiprocessors idle. More launches
// read the gallery more often, and have to be worth it.
int tiles_at_once(int query_tiles, int multi) {
  int best = query_tiles;
  double least = 1e30;
  for (int launches = 1; launches <= 8 && launches <= query_tiles; ++launches) {
    const int at_once = (query_tiles + launches - 1) / launches;
    double turns = 0;  // of a multiprocessor, in scans of all rows
    for (int first = 0; first < query_tiles; first += at_once) {
      const int here = query_tiles - first < at_once ? query_tiles - first : at_once;
      turns += double((here + multi - 1) / multi) / blocks_of_a_tile(here, multi);
    }
    if (turns < 0.9 * least) {
      least = turns;
      best = at_once;
    }
  }
  return best;
}

template <typename T, bool kStored>
void launch(const Pass& p, int device, cudaStream_t stream) {
  const int most = most_shared(device), multi = multiprocessors(device);
  Layout layout{};
  layout.k_steps = static_cast<int>((p.D * sizeof(T) + kStepBytes - 1) / kStepBytes);
  layout.stages = kMostStages;
  layout.resident = true;
  const auto bytes = [&] { return layout.fixed() + static_cast<int>(sizeof(Fixed<T>)); };
  while (bytes() > most && layout.stages > kLeastStages) --layout.stages;
  if (bytes() > most) {
    layout.resident = false;
    layout.stages = kMostStages;
  }
  allow_shared(wgmma_kernel<T, kStored>, bytes());
  const int64_t row_tiles = (p.rows + kRows - 1) / kRows;
  const int tiles = (p.Q + kQueries - 1) / kQueries, at_once = tiles_at_once(tiles, multi);
  for (int first = 0; first < tiles; first += at_once) {
    layout.first_tile = first;
    layout.query_tiles = tiles - first < at_once ? tiles - first : at_once;
    const int64_t fair = blocks_of_a_tile(layout.query_tiles, multi);
    const auto blocks =
        static_cast<unsigned>((row_tiles < fair ? row_tiles : fair) * layout.query_tiles);
    wgmma_kernel<T, kStored><<<blocks, kThreads, bytes(), stream>>>(p, layout);
    SPLIP_CUDA_CHECK(cudaGetLastError());
  }
}

template <typename T>
void launch_any(const Pass& p, int device, cudaStream_t stream) {
  if (p.row_scale == nullptr) return launch<T, false>(p, device, stream);
  launch<T, true>(p, device, stream);
}

}  // namespace

bool has_wgmma([[maybe_unused]] int device) {
#ifdef SPLIP_WGMMA
  int major = 0, minor = 0;
  SPLIP_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  SPLIP_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return major == 9 && minor == 0;
#else
  return false;
#endif
}

void scan_wgmma(const Pass& pass, DType dtype, int device, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32:
      return launch_any<float>(pass, device, stream);
    case DType::f16:
      return launch_any<__half>(pass, device, stream);
    case DType::i8:
      return launch<int8_t, true>(pass, device, stream);
    default:
      return launch_any<__nv_bfloat16>(pass, device, stream);
  }
}

}  // namespace splip::cuda
