// CUDA cosine_topk: threshold first, filter while multiplying, select at the end (topk_select.h).
// The score matrix is never written; the gallery is read once, and a few percent of it once more
// to find the thresholds. Bound by memory up to about 300 queries (N * D * sizeof(T)), then by the
// tensor cores (Q * N * D products). All launches are the same whatever the data holds: nothing
// waits for the device, and a graph can capture them.
#include "cosine_topk.cuh"

namespace splip::cuda {
namespace {

constexpr int kThreads = 256;  // of the blocks of the exact scan and of prepare
constexpr int kMostThreads = 1024;
constexpr int kStreamQueries = 32;  // up to these the gallery is streamed past the queries
constexpr int kExactBlocksPerMultiprocessor = 2;

// The block as a team of topk_select.h.
struct BlockTeam {
  int* partial;  // shared, [2][32]
  int phase;

  template <typename Key, int kCount>
  struct Own {
    Key keys[kCount];
    __device__ __forceinline__ explicit Own(const BlockTeam&) {}
    __device__ __forceinline__ Key* of(int) { return keys; }
  };

  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  template <typename F>
  __device__ __forceinline__ void threads(F f) const {
    f(static_cast<int>(threadIdx.x));
  }
  template <typename F>
  __device__ __forceinline__ void once(F f) const {
    if (threadIdx.x == 0) f();
  }
  template <typename F>
  __device__ __forceinline__ void each(int n, F f) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }
  template <typename F>
  __device__ __forceinline__ void each_warp(int n, F f) const {
    for (int i = threadIdx.x / kWarp; i < n; i += blockDim.x / kWarp) f(i);
  }
  template <typename F>
  __device__ __forceinline__ void lead(F f) const {
    if (threadIdx.x % kWarp == 0) f();
  }
  __device__ __forceinline__ int add(int* counter, int n) const { return atomicAdd(counter, n); }
  // The sum of f over all threads, for all. The two halves of `partial` take turns, so that one
  // barrier is enough.
  template <typename F>
  __device__ __forceinline__ int sum(F f) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int own = __reduce_add_sync(kFullMask, f(static_cast<int>(threadIdx.x)));
    if (lane == 0) partial[phase * kWarp + warp] = own;
    __syncthreads();
    const int other =
        lane < static_cast<int>(blockDim.x) / kWarp ? partial[phase * kWarp + lane] : 0;
    phase ^= 1;
    return __reduce_add_sync(kFullMask, other);
  }
};

// The caller's scratch memory, for Q queries.
struct Scratch {
  Candidates candidates;
  float* margins;   // [Q] twice the error of a score; NaN: a query to be scanned exactly
  int* unresolved;  // [Q] queries whose candidates do not hold the answer for certain
  int* unresolved_count;
};

constexpr int64_t kBytesPerQuery = 5 * sizeof(int);

Scratch divide(void* memory, int64_t Q, int64_t capacity) {
  auto* keys = static_cast<uint64_t*>(memory);
  auto* words = reinterpret_cast<int*>(keys + Q * capacity);
  Scratch s{};
  s.candidates = {keys, words, words + Q, reinterpret_cast<float*>(words + 2 * Q),
                  static_cast<int>(capacity)};
  s.margins = reinterpret_cast<float*>(words + 3 * Q);
  s.unresolved = words + 4 * Q;
  s.unresolved_count = words + 5 * Q;
  return s;
}

// Eight elements of a row from element 8 * chunk on, zero past the end.
template <typename T>
__device__ __forceinline__ void load_eight(const T* row, int chunk, int D, bool vector,
                                           float (&out)[8]) {
  if (vector && 8 * chunk + 8 <= D) {
    union {
      uint4 words[8 * sizeof(T) / 16];
      T values[8];
    } loaded;
#pragma unroll
    for (int i = 0; i < int(8 * sizeof(T) / 16); ++i) {
      loaded.words[i] = __ldg(reinterpret_cast<const uint4*>(row + 8 * chunk) + i);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = load(loaded.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = 8 * chunk + i < D ? load(row[8 * chunk + i]) : 0.0f;
  }
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kFullMask, v, offset);
  return v;
}

// 1 / norm, 0 where a score counts as -infinity: the norm is not a number or overflows float32.
__device__ __forceinline__ double inverse_length(double squares) {
  if (!(squares <= 3.4028234663852886e38)) return 0;
  return 1.0 / fmax(sqrt(squares), static_cast<double>(kMinNorm));
}

// The cosine of one query with any row, summed in double in an order that depends on D alone: equal
// rows have equal scores. Called by whole warps.
template <typename T>
struct ExactScore {
  const T* query;
  const T* gallery;
  double query_scale;
  int D;
  bool vector;

  __device__ __forceinline__ float operator()(uint32_t index) const {
    const T* row = gallery + int64_t(index) * D;
    double dot = 0, squares = 0;
    for (int chunk = threadIdx.x % kWarp; 8 * chunk < D; chunk += kWarp) {
      float a[8], b[8];
      load_eight(query, chunk, D, vector, a);
      load_eight(row, chunk, D, vector, b);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        dot = fma(static_cast<double>(a[i]), static_cast<double>(b[i]), dot);
        squares = fma(static_cast<double>(b[i]), static_cast<double>(b[i]), squares);
      }
    }
    const double scale = inverse_length(warp_sum(squares)) * query_scale;
    const double score = warp_sum(dot) * scale;
    return scale > 0 ? static_cast<float>(score) : -INFINITY;
  }
};

template <typename T>
__device__ __forceinline__ double squared_length(const T* row, int D, bool vector) {
  double squares = 0;
  for (int chunk = threadIdx.x % kWarp; 8 * chunk < D; chunk += kWarp) {
    float a[8];
    load_eight(row, chunk, D, vector, a);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      squares = fma(static_cast<double>(a[i]), static_cast<double>(a[i]), squares);
    }
  }
  return warp_sum(squares);
}

template <typename T>
__device__ __forceinline__ ExactScore<T> exact_score(const CosineTopk& a, int q, bool vector) {
  const auto* query = static_cast<const T*>(a.queries) + int64_t(q) * a.D;
  const int D = static_cast<int>(a.D);
  const double scale = inverse_length(squared_length(query, D, vector));
  return {query, static_cast<const T*>(a.gallery), scale, D, vector};
}

// One warp per query: its margin, no cut yet, empty lists.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(CosineTopk a, Scratch s, double error, bool vector) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *s.unresolved_count = 0;
  const int64_t q = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (q >= a.Q) return;
  const auto* query = static_cast<const T*>(a.queries) + q * a.D;
  const double squares = squared_length(query, static_cast<int>(a.D), vector);
  if (threadIdx.x % kWarp) return;
  const bool plain = squares <= topk::kLargestSquare;  // false for NaN
  s.candidates.counts[q] = 0;
  s.candidates.lost[q] = 0;
  s.candidates.cuts[q] = plain ? -INFINITY : INFINITY;
  s.margins[q] =
      plain ? static_cast<float>(2 * error * fmax(sqrt(squares), static_cast<double>(kMinNorm)))
            : NAN;
}

// Between two passes, one block per query: raise its cut, empty its list. `rows`: of a dense pass,
// whose list is full; 0 for the others.
__global__ void __launch_bounds__(kMostThreads) raise_cut_kernel(Scratch s, int rows, int K) {
  __shared__ int partial[2 * kWarp];
  BlockTeam team{partial, 0};
  const int64_t q = blockIdx.x;
  const Candidates& c = s.candidates;
  const float margin = s.margins[q];
  if (!(margin >= 0)) return;  // its cut stays at infinity
  const int passed = rows > 0 ? rows : c.counts[q];
  // Of a full list the rows that found room will do: K rows that are this good exist.
  const int count = passed < c.capacity ? passed : c.capacity;
  const float cut = topk::next_cut(team, c.keys + q * c.capacity, count, K, margin);
  if (threadIdx.x == 0) {
    // A cut never falls: the rows behind the last one exist too.
    c.cuts[q] = fmaxf(c.cuts[q], cut);
    c.counts[q] = 0;
    c.lost[q] = 0;
  }
}

// After the last pass, one block per query: the answer, or a note that it needs the exact scan.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    finish_kernel(CosineTopk a, Scratch s, int rows, bool vector) {
  __shared__ int partial[2 * kWarp];
  __shared__ int fill;
  __shared__ uint64_t list[topk::kFinalists];
  BlockTeam team{partial, 0};
  const int q = blockIdx.x, K = static_cast<int>(a.K);
  const Candidates& c = s.candidates;
  const float margin = s.margins[q];
  int n = -1;
  if (margin >= 0) {
    n = topk::finish(team, c.keys + int64_t(q) * c.capacity, rows > 0 ? rows : c.counts[q],
                     c.capacity, c.lost[q] != 0, K, margin, exact_score<T>(a, q, vector), list,
                     &fill);
  }
  if (n >= 0) {
    topk::write_results(team, list, n, K, a.scores + int64_t(q) * K, a.indices + int64_t(q) * K);
  } else if (threadIdx.x == 0) {
    s.unresolved[atomicAdd(s.unresolved_count, 1)] = q;
  }
}

// The unresolved queries: every row's exact score. `splits` blocks share a query; the list of each
// goes where the query's candidates were. There seldom is anything to do.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    exact_scan_kernel(CosineTopk a, Scratch s, int splits, bool vector) {
  __shared__ int partial[2 * kWarp];
  __shared__ int fill;
  __shared__ uint64_t list[topk::kScanList];
  BlockTeam team{partial, 0};
  const int K = static_cast<int>(a.K);
  const int64_t items = int64_t(*s.unresolved_count) * splits;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int q = s.unresolved[item / splits];
    const int64_t split = item % splits;
    topk::scan_exactly(team, a.N * split / splits, a.N * (split + 1) / splits, a.allowed, K,
                       exact_score<T>(a, q, vector), list, &fill);
    uint64_t* out = s.candidates.keys + int64_t(q) * s.candidates.capacity + split * K;
    team.each(K, [&](int i) { out[i] = list[i]; });
    team.sync();  // before the next item overwrites the list
  }
}

__global__ void __launch_bounds__(kMostThreads) merge_kernel(CosineTopk a, Scratch s, int splits) {
  __shared__ int partial[2 * kWarp];
  __shared__ int fill;
  __shared__ uint64_t list[topk::kFinalists];
  BlockTeam team{partial, 0};
  const int K = static_cast<int>(a.K), count = *s.unresolved_count;
  for (int item = blockIdx.x; item < count; item += gridDim.x) {
    const int64_t q = s.unresolved[item];
    const int n = topk::merge_splits(team, s.candidates.keys + q * s.candidates.capacity,
                                     splits * K, K, list, &fill);
    topk::write_results(team, list, n, K, a.scores + q * K, a.indices + q * K);
    team.sync();
  }
}

bool use_stream(int64_t Q, TopkScan scan) {
  if (scan != TopkScan::automatic) return scan == TopkScan::stream;
  return Q <= kStreamQueries;
}

// cp.async moves 16 bytes: other rows take the scan that can read them one by one.
bool can_tile(const CosineTopk& a, int64_t element) {
  return a.D * element % mma::kChunkBytes == 0 && aligned(a.queries, mma::kChunkBytes) &&
         aligned(a.gallery, mma::kChunkBytes);
}

template <typename T>
void launch(const CosineTopk& a, int device, cudaStream_t stream) {
  const bool streamed = use_stream(a.Q, a.scan);
  const topk::Plan plan = topk::plan_passes(a.N, a.K, !streamed);
  const Scratch s = divide(a.scratch, a.Q, plan.capacity);
  const bool vector = a.D % 8 == 0 && aligned(a.queries, 16) && aligned(a.gallery, 16);
  const double error = topk::score_error(a.D, a.dtype == DType::f32);
  const auto Q = static_cast<unsigned>(a.Q);
  const int K = static_cast<int>(a.K), multi = multiprocessors(device);
  const unsigned threads = static_cast<unsigned>(plan.capacity / topk::kPerThread);

  constexpr unsigned kQueriesPerBlock = kThreads / kWarp;
  prepare_kernel<T>
      <<<(Q + kQueriesPerBlock - 1) / kQueriesPerBlock, kThreads, 0, stream>>>(a, s, error, vector);
  SPLIP_CUDA_CHECK(cudaGetLastError());
  for (int level = 0; level < plan.levels; ++level) {
    const bool dense = level == 0;
    const Pass pass{a.queries,
                    a.gallery,
                    a.allowed,
                    s.candidates,
                    plan.rows[level],
                    plan.step[level],
                    static_cast<int>(a.Q),
                    static_cast<int>(a.D),
                    dense};
    if (streamed || !can_tile(a, sizeof(T))) {
      scan_stream(pass, a.dtype, device, stream);
    } else {
      const bool narrow = a.scan == TopkScan::automatic ? a.Q <= 64 : a.scan == TopkScan::tiles64;
      scan_tiles(pass, a.dtype, narrow ? 64 : 128, device, stream);
    }
    const int rows = dense ? static_cast<int>(plan.rows[0]) : 0;
    if (level + 1 < plan.levels) {
      raise_cut_kernel<<<Q, threads, 0, stream>>>(s, rows, K);
    } else {
      finish_kernel<T><<<Q, threads, 0, stream>>>(a, s, rows, vector);
    }
    SPLIP_CUDA_CHECK(cudaGetLastError());
  }
  const int splits = topk::scan_splits(plan.capacity, a.K);
  exact_scan_kernel<T>
      <<<multi * kExactBlocksPerMultiprocessor, kThreads, 0, stream>>>(a, s, splits, vector);
  SPLIP_CUDA_CHECK(cudaGetLastError());
  merge_kernel<<<grid_for(a.Q, multi), threads, 0, stream>>>(a, s, splits);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t K, TopkScan scan) {
  if (Q == 0 || K == 0) return 0;
  const topk::Plan plan = topk::plan_passes(N, K, !use_stream(Q, scan));
  return Q * (plan.capacity * static_cast<int64_t>(sizeof(uint64_t)) + kBytesPerQuery) + 8;
}

void cosine_topk(const CosineTopk& a, int device, void* stream) {
  SPLIP_CHECK(a.K <= kMaxK && a.K <= a.N, "K must be at most N and ", kMaxK, ", got ", a.K);
  SPLIP_CHECK(a.N < topk::kMaxRows, "the gallery must have fewer than 2**31 rows, got ", a.N);
  SPLIP_CHECK(a.Q <= kMaxQueries, "Q must be at most ", kMaxQueries, ", got ", a.Q);
  SPLIP_CHECK(a.D >= 1 && a.D <= kMaxWidth, "D must be 1 to ", kMaxWidth, ", got ", a.D);
  if (a.Q == 0 || a.K == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch<float>(a, device, s);
    case DType::f16:
      return launch<__half>(a, device, s);
    case DType::bf16:
      return launch<__nv_bfloat16>(a, device, s);
    default:
      SPLIP_CHECK(false, "cosine_topk takes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
