// CUDA cosine_topk: threshold first, filter while multiplying, select at the end (topk_select.h).
// The score matrix is never written; the gallery is read once, and a few percent of it once more
// to find the thresholds. Bound by memory up to about 300 queries (N * D * sizeof(T)), then by the
// tensor cores (Q * N * D products). All launches are the same whatever the data holds: nothing
// waits for the device, and a graph can capture them.
//
// A gallery in 8 bits is scanned in its place at half the bytes and twice the products. Each row's
// error is known, and so is that of the query, which comes in 16 bits for the stream, where the
// tensor cores have time, and in 8 for the tiles: what could be a result by these bounds
// (Cauchy-Schwarz) is scored again from the rows themselves, so the answer is the same.
#include "../inverse_length.h"
#include "cosine_topk.cuh"
#include "cosine_topk_exact.cuh"
#include "cosine_topk_team.cuh"

namespace splip::cuda {
namespace {

constexpr int kThreads = 256;  // of the blocks of the exact scan and of prepare
constexpr int kMostThreads = 1024;
// In 8 bits, for more results the queries need 16: the stream's margin is half that of tiles.
constexpr int64_t kMostTileResults = 256;
constexpr int kExactBlocksPerMultiprocessor = 2;

// The caller's scratch memory, for Q queries.
struct Scratch {
  Candidates candidates;
  int8_t* bytes;    // [Q, parts, pitch] queries in 8 bits, if the gallery is
  float* scales;    // [Q] theirs
  float* margins;   // [Q] twice the error of a score; NaN: a query to be scanned exactly
  int* unresolved;  // [Q] queries whose candidates do not hold the answer for certain
  int* unresolved_count;
};

constexpr int64_t kBytesPerQuery = 5 * sizeof(int);

int64_t query_parts(bool streamed) { return streamed ? 2 : 1; }

Scratch divide(void* memory, int64_t Q, int64_t capacity, int64_t query_bytes) {
  auto* keys = static_cast<uint64_t*>(memory);
  Scratch s{};
  s.bytes = reinterpret_cast<int8_t*>(keys + Q * capacity);
  auto* words = reinterpret_cast<int*>(s.bytes + Q * query_bytes);
  s.candidates = {keys, words, reinterpret_cast<float*>(words + Q), static_cast<int>(capacity)};
  s.scales = reinterpret_cast<float*>(words + 2 * Q);
  s.margins = reinterpret_cast<float*>(words + 3 * Q);
  s.unresolved = words + 4 * Q;
  s.unresolved_count = words + 5 * Q;
  return s;
}

// No cut yet, an empty list. A margin that is not a number, hence a cut that is none: nothing
// passes it, not even a product that is infinite.
__device__ __forceinline__ void start_query(const Scratch& s, int64_t q, double margin) {
  s.candidates.counts[q] = 0;
  s.candidates.cuts[q] = margin >= 0 ? -INFINITY : NAN;
  s.margins[q] = static_cast<float>(margin);
}

// One warp per query: its margin.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(CosineTopk a, Scratch s, double error, bool vector) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *s.unresolved_count = 0;
  const int64_t q = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (q >= a.Q) return;
  const auto* query = static_cast<const T*>(a.queries) + q * a.D;
  const double squares = squared_length(query, static_cast<int>(a.D), vector);
  if (threadIdx.x % kWarp) return;
  // False for NaN; and all rows score alike with zeros, which would fill the list in vain.
  const bool plain = squares > 0 && squares <= topk::kLargestSquare;
  start_query(s, q,
              plain ? 2 * error * fmax(sqrt(squares), static_cast<double>(kMinNorm))
                    : static_cast<double>(NAN));
}

// The same for a gallery in 8 bits: the unit query in 8 bits, or in 16 as two parts, with what that
// takes from it in the margin.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    prepare_eight_bit_kernel(CosineTopk a, Scratch s, int parts, bool vector) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *s.unresolved_count = 0;
  const int64_t q = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (q >= a.Q) return;
  const auto* query = static_cast<const T*>(a.queries) + q * a.D;
  const int lane = threadIdx.x % kWarp, D = static_cast<int>(a.D);
  const double squares = squared_length(query, D, vector), inverse = inverse_length(squares);
  float largest = 0;
  for (int chunk = lane; 8 * chunk < D; chunk += kWarp) {
    float v[8];
    load_eight(query, chunk, D, vector, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(v[i]));
  }
  const double steps = parts == 2 ? 127.0 * 256.0 : 127.0;
  const bool plain = inverse > 0 && squares > 0;
  const float scale = plain ? static_cast<float>(warp_max(largest) * inverse / steps) : 0.0f;
  const double per_step = scale > 0 ? inverse / scale : 0;
  double lost = 0;
  for (int chunk = lane; 8 * chunk < a.eight_bit.pitch; chunk += kWarp) {
    float v[8];
    load_eight(query, chunk, D, vector, v);
    union {
      uint2 words;
      int8_t values[8];
    } high, low;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const double wanted = plain ? static_cast<double>(v[i]) : 0.0;
      const int step = static_cast<int>(fmin(fmax(rint(wanted * per_step), -steps), steps));
      const double off = wanted * inverse - static_cast<double>(step) * scale;
      lost = fma(off, off, lost);
      high.values[i] = static_cast<int8_t>(parts == 2 ? (step + 128) >> 8 : step);
      low.values[i] = static_cast<int8_t>(step - 256 * high.values[i]);
    }
    int8_t* out = s.bytes + q * parts * a.eight_bit.pitch + 8 * chunk;
    *reinterpret_cast<uint2*>(out) = high.words;
    if (parts == 2) *reinterpret_cast<uint2*>(out + a.eight_bit.pitch) = low.words;
  }
  lost = sqrt(warp_sum(lost)) * static_cast<double>(a.eight_bit.centre[D]);
  if (lane) return;
  s.scales[q] = scale;
  start_query(s, q,
              plain ? 2 * (1.0001 * lost + topk::kEightBitRounding) : static_cast<double>(NAN));
}

// Between two passes, one block per query: raise its cut, empty its list. `rows`: of a dense pass,
// whose list is full; 0 for the others.
__global__ void __launch_bounds__(kMostThreads)
    raise_cut_kernel(CosineTopk a, Scratch s, int rows) {
  __shared__ uint32_t partial[4 * kWarp];
  BlockTeam team{partial, 0};
  const int64_t q = blockIdx.x;
  const Candidates& c = s.candidates;
  const float margin = s.margins[q];
  if (!(margin >= 0)) return;  // its cut stays no number
  const int passed = rows > 0 ? rows : c.counts[q];
  // Of a full list the rows that found room will do: K rows that are this good exist.
  const int count = passed < c.capacity ? passed : c.capacity;
  const float cut = topk::next_cut(team, c.keys + q * c.capacity, count, static_cast<int>(a.K),
                                   margin, {a.eight_bit.error});
  if (threadIdx.x == 0) {
    // A cut never falls: the rows behind the last one exist too.
    c.cuts[q] = fmaxf(c.cuts[q], cut);
    c.counts[q] = 0;
  }
}

// After the last pass, one block per query: the answer, or a note that it needs the exact scan.
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    finish_kernel(CosineTopk a, Scratch s, int rows, bool vector) {
  __shared__ uint32_t partial[4 * kWarp];
  __shared__ int fill;
  __shared__ uint64_t list[topk::kFinalists];
  BlockTeam team{partial, 0};
  const int q = blockIdx.x, K = static_cast<int>(a.K);
  const Candidates& c = s.candidates;
  const float margin = s.margins[q];
  int n = -1;
  if (margin >= 0) {
    n = topk::finish(team, c.keys + int64_t(q) * c.capacity, rows > 0 ? rows : c.counts[q],
                     c.capacity, K, margin, {a.eight_bit.error}, exact_score<T>(a, q, vector), list,
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
__global__ void __launch_bounds__(kThreads, kExactBlocksPerMultiprocessor)
    exact_scan_kernel(CosineTopk a, Scratch s, int splits, bool vector) {
  __shared__ uint32_t partial[4 * kWarp];
  __shared__ int fill;
  __shared__ uint64_t list[topk::kScanList];
  BlockTeam team{partial, 0};
  const int K = static_cast<int>(a.K);
  const int64_t items = int64_t(*s.unresolved_count) * splits;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int q = s.unresolved[item / splits];
    const int64_t split = item % splits;
    const ExactScore<T> exact = exact_score<T>(a, q, vector);
    topk::scan_exactly(team, a.N * split / splits, a.N * (split + 1) / splits, a.allowed, K,
                       exact.best, exact, list, &fill);
    uint64_t* out = s.candidates.keys + int64_t(q) * s.candidates.capacity + split * K;
    team.each(K, [&](int i) { out[i] = list[i]; });
    team.sync();  // before the next item overwrites the list
  }
}

__global__ void __launch_bounds__(kMostThreads) merge_kernel(CosineTopk a, Scratch s, int splits) {
  __shared__ uint32_t partial[4 * kWarp];
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

bool use_stream(int64_t Q, int64_t K, TopkScan scan, bool eight_bits) {
  if (scan != TopkScan::automatic) return scan == TopkScan::stream;
  return Q <= kStreamQueries || (eight_bits && K > kMostTileResults);
}

// cp.async moves 16 bytes: other rows take the scan that can read them one by one.
bool can_tile(const Pass& p, int64_t element) {
  return p.D * element % mma::kChunkBytes == 0 && aligned(p.queries, mma::kChunkBytes) &&
         aligned(p.gallery, mma::kChunkBytes);
}

void scan_pass(const Pass& pass, DType dtype, TopkScan scan, bool streamed, int device,
               cudaStream_t stream) {
  const int64_t element = dtype == DType::f32 ? 4 : (dtype == DType::i8 ? 1 : 2);
  if (streamed || !can_tile(pass, element)) return scan_stream(pass, dtype, device, stream);
  const bool can_wgmma = has_wgmma(device);
  if (scan == TopkScan::automatic) {
    const bool narrow = pass.Q <= kNarrowQueries;
    scan = narrow ? TopkScan::tiles64 : TopkScan::tiles128;
    // Its tiles are of 128 queries: half empty ones cost nothing while they stay in shared memory.
    if (can_wgmma && (!narrow || pass.D * element <= kResidentRow)) scan = TopkScan::wgmma;
  }
  if (scan == TopkScan::wgmma && can_wgmma && !pass.dense) {
    return scan_wgmma(pass, dtype, device, stream);
  }
  const bool wide = scan == TopkScan::tiles256 || scan == TopkScan::wgmma;
  const int tile_queries = scan == TopkScan::tiles64 ? 64 : 128, tile_rows = wide ? 256 : 128;
  switch (dtype) {
    case DType::f32:
      return scan_tiles_f32(pass, tile_queries, tile_rows, device, stream);
    case DType::f16:
      return scan_tiles_f16(pass, tile_queries, tile_rows, device, stream);
    case DType::i8:
      return scan_tiles_i8(pass, tile_queries, tile_rows, device, stream);
    default:
      return scan_tiles_bf16(pass, tile_queries, tile_rows, device, stream);
  }
}

template <typename T>
void launch(const CosineTopk& a, int device, cudaStream_t stream) {
  const bool eight_bits = a.eight_bit.rows != nullptr;
  const bool streamed = use_stream(a.Q, a.K, a.scan, eight_bits);
  const topk::Plan plan = topk::plan_passes(a.N, a.K, !streamed, eight_bits);
  const int64_t parts = query_parts(streamed);
  const Scratch s = divide(a.scratch, a.Q, plan.capacity, parts * a.eight_bit.pitch);
  const bool vector = a.D % 8 == 0 && aligned(a.queries, 16) && aligned(a.gallery, 16);
  const auto Q = static_cast<unsigned>(a.Q);
  const int multi = multiprocessors(device);
  const unsigned threads = static_cast<unsigned>(plan.capacity / topk::kPerThread);

  constexpr unsigned kQueriesPerBlock = kThreads / kWarp;
  const unsigned blocks = (Q + kQueriesPerBlock - 1) / kQueriesPerBlock;
  if (eight_bits) {
    prepare_eight_bit_kernel<T>
        <<<blocks, kThreads, 0, stream>>>(a, s, static_cast<int>(parts), vector);
  } else {
    const double error = topk::score_error(a.D, a.dtype == DType::f32);
    prepare_kernel<T><<<blocks, kThreads, 0, stream>>>(a, s, error, vector);
  }
  SPLIP_CUDA_CHECK(cudaGetLastError());
  Pass pass{};
  pass.queries = eight_bits ? s.bytes : a.queries;
  pass.gallery = eight_bits ? a.eight_bit.rows : a.gallery;
  pass.allowed = a.allowed;
  pass.out = s.candidates;
  pass.Q = static_cast<int>(a.Q);
  pass.D = static_cast<int>(eight_bits ? a.eight_bit.pitch : a.D);
  pass.row_scale = eight_bits ? a.eight_bit.scale : a.inverse;
  pass.row_error = a.eight_bit.error;
  pass.query_scale = s.scales;
  for (int level = 0; level < plan.levels; ++level) {
    pass.dense = level == 0;
    pass.rows = plan.rows[level];
    pass.step = plan.step[level];
    scan_pass(pass, eight_bits ? DType::i8 : a.dtype, a.scan, streamed, device, stream);
    const int rows = pass.dense ? static_cast<int>(pass.rows) : 0;
    if (level + 1 < plan.levels) {
      raise_cut_kernel<<<Q, threads, 0, stream>>>(a, s, rows);
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

int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t K, TopkScan scan, int64_t pitch) {
  if (Q == 0 || K == 0) return 0;
  const bool streamed = use_stream(Q, K, scan, pitch > 0);
  const topk::Plan plan = topk::plan_passes(N, K, !streamed, pitch > 0);
  const auto keys = plan.capacity * static_cast<int64_t>(sizeof(uint64_t));
  return Q * (keys + query_parts(streamed) * pitch + kBytesPerQuery) + 8;
}

void cosine_topk_keys(const CosineTopkKeys& a, int device, void* stream) {
  SPLIP_CHECK(a.N < INT32_MAX, "too many rows: ", a.N);
  const DeviceGuard guard(device);
  Pass pass{};
  pass.queries = a.queries;
  pass.gallery = a.gallery;
  pass.row_scale = a.inverse;
  pass.out = {a.keys, a.counts, a.thresholds, static_cast<int>(a.N)};
  pass.rows = a.N;
  pass.step = topk::kAllRows;
  pass.Q = static_cast<int>(a.Q);
  pass.D = static_cast<int>(a.D);
  const bool streamed = use_stream(a.Q, 1, a.scan, false);
  scan_pass(pass, a.dtype, a.scan, streamed, device, static_cast<cudaStream_t>(stream));
}

void cosine_topk(const CosineTopk& a, int device, void* stream) {
  SPLIP_CHECK(a.K <= kMaxK && a.K <= a.N, "K must be at most N and ", kMaxK, ", got ", a.K);
  SPLIP_CHECK(a.N < topk::kMaxRows, "the gallery must have fewer than 2**31 rows, got ", a.N);
  SPLIP_CHECK(a.Q <= kMaxQueries, "Q must be at most ", kMaxQueries, ", got ", a.Q);
  SPLIP_CHECK(a.D >= 1 && a.D <= kMaxWidth, "D must be 1 to ", kMaxWidth, ", got ", a.D);
  if (a.Q == 0 || a.K == 0) return;
  const EightBitRows& eight = a.eight_bit;
  if (eight.rows != nullptr) {
    SPLIP_CHECK(eight.pitch >= a.D && eight.pitch % mma::kChunkBytes == 0 &&
                    aligned(eight.rows, mma::kChunkBytes),
                "rows in 8 bits must be aligned to 16 bytes, as must their pitch");
    SPLIP_CHECK((a.gallery == nullptr) == (eight.error == nullptr),
                "rows in 8 bits have errors if the rows they were made of are there");
  }
  CosineTopk chosen = a;
  // So many results want queries in 16 bits, which only the stream takes, 32 at a time: more of
  // them read the rows themselves once instead of 8 bits many times. The scratch memory is enough.
  if (a.scan == TopkScan::automatic && eight.rows != nullptr && a.gallery != nullptr &&
      a.K > kMostTileResults && a.Q > kStreamQueries) {
    chosen.eight_bit = {};
  }
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch<float>(chosen, device, s);
    case DType::f16:
      return launch<__half>(chosen, device, s);
    case DType::bf16:
      return launch<__nv_bfloat16>(chosen, device, s);
    default:
      SPLIP_CHECK(false, "cosine_topk takes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
