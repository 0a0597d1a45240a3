// CUDA cosine_topk: every warp scans its share of the gallery for one query and keeps a sorted list
// of K in shared memory; a second kernel merges the lists. The score matrix is never written.
// Bound by memory for one query (N * D * sizeof(T)); the gallery is read once per query.
#include <climits>

#include "common.cuh"

namespace splip::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int64_t kMinRows = 1024;  // gallery rows worth a block
constexpr int64_t kMaxSplits = 64;  // so that a warp can merge the lists, two or more to a lane

struct Entry {
  float score;
  int64_t index;
};

__device__ __forceinline__ bool better(const Entry& a, const Entry& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

__host__ __device__ inline Entry sentinel() { return {-INFINITY, INT64_MAX}; }

int64_t split_count(int64_t Q, int64_t N) {
  const int64_t wanted = (2048 + Q - 1) / Q;  // enough blocks to fill a large GPU
  const int64_t most = (N + kMinRows - 1) / kMinRows;
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : (splits > kMaxSplits ? kMaxSplits : splits);
}

template <typename T>
__device__ __forceinline__ float inverse_norm(const T* v, int64_t D, int lane) {
  float sum = 0;
  for (int64_t d = lane; d < D; d += kWarp) sum += load(v[d]) * load(v[d]);
  return 1.0f / fmaxf(sqrtf(warp_sum(sum)), kMinNorm);
}

// Insert into a list sorted best first; the worst entry falls off. Called by a whole warp.
__device__ void insert(Entry* list, int K, Entry entry, int lane) {
  // Entries better than the new one form a prefix; its length is the place of the new entry.
  int place = 0;
  for (int base = 0; base < K; base += kWarp) {
    const bool ahead = base + lane < K && better(list[base + lane], entry);
    place += __popc(__ballot_sync(kFullMask, ahead));
  }
  // Shift the tail by one, last stretch of 32 first, reading a stretch before writing it.
  for (int base = (K - 1) / kWarp * kWarp; base >= 0 && base + kWarp > place; base -= kWarp) {
    const int i = base + lane;
    const bool moves = i > place && i < K;
    Entry previous = sentinel();
    if (moves) previous = list[i - 1];
    __syncwarp();
    if (moves) list[i] = previous;
    __syncwarp();
  }
  if (lane == 0 && place < K) list[place] = entry;
  __syncwarp();
}

// blockIdx.x: query, blockIdx.y: split of the gallery. Writes lists [Q, splits * warps, K].
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    scan_kernel(const T* queries, const T* gallery, Entry* lists, int64_t N, int64_t D, int K) {
  extern __shared__ unsigned char shared[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t q = blockIdx.x, split = blockIdx.y, splits = gridDim.y;
  Entry* list = reinterpret_cast<Entry*>(shared) + warp * K;
  for (int k = lane; k < K; k += kWarp) list[k] = sentinel();
  __syncwarp();

  const T* query = queries + q * D;
  const float scale = inverse_norm(query, D, lane);
  const int64_t first = N * split / splits, last = N * (split + 1) / splits;
  for (int64_t n = first + warp; n < last; n += kWarpsPerBlock) {
    const T* row = gallery + n * D;
    float dot = 0, squares = 0;
    for (int64_t d = lane; d < D; d += kWarp) {
      const float value = load(row[d]);
      dot += load(query[d]) * value;
      squares += value * value;
    }
    // The butterfly leaves the same bits in every lane, so the branch below is uniform.
    const float row_scale = 1.0f / fmaxf(sqrtf(warp_sum(squares)), kMinNorm);
    const float both = scale * row_scale;  // 0 if a norm overflows
    float score = warp_sum(dot) * both;
    if (isnan(score) || both == 0) score = -INFINITY;
    const Entry entry = {score, n};
    if (better(entry, list[K - 1])) insert(list, K, entry, lane);
  }
  __syncwarp();
  Entry* out = lists + ((q * splits + split) * kWarpsPerBlock + warp) * K;
  for (int k = lane; k < K; k += kWarp) out[k] = list[k];
}

// One warp per query: every lane owns some of the sorted lists; K times the best head wins.
__global__ void __launch_bounds__(kWarp)
    merge_kernel(const Entry* lists, float* scores, int64_t* indices, int list_count, int K) {
  constexpr int kPerLane = kMaxSplits * kWarpsPerBlock / kWarp;
  const int lane = threadIdx.x;
  const int64_t q = blockIdx.x;
  const Entry* own = lists + q * list_count * K;
  int heads[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) heads[j] = 0;
  for (int k = 0; k < K; ++k) {
    Entry best = sentinel();
    int best_list = -1;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int l = j * kWarp + lane;
      if (l < list_count && heads[j] < K) {
        const Entry head = own[int64_t(l) * K + heads[j]];
        if (better(head, best)) {
          best = head;
          best_list = l;
        }
      }
    }
    Entry winner = best;
    int winner_list = best_list;
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      Entry other;
      other.score = __shfl_xor_sync(kFullMask, winner.score, offset);
      other.index = __shfl_xor_sync(kFullMask, winner.index, offset);
      const int other_list = __shfl_xor_sync(kFullMask, winner_list, offset);
      if (better(other, winner)) {
        winner = other;
        winner_list = other_list;
      }
    }
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (j * kWarp + lane == winner_list) ++heads[j];
    }
    if (lane == 0) {
      scores[q * K + k] = winner.score;
      indices[q * K + k] = winner.index;
    }
  }
}

template <typename T>
void launch(const CosineTopk& a, cudaStream_t stream) {
  const int64_t splits = split_count(a.Q, a.N);
  const int K = static_cast<int>(a.K);
  const size_t shared = kWarpsPerBlock * a.K * sizeof(Entry);  // 64 KB at K = 1024
  if (shared > 48 * 1024) {
    SPLIP_CUDA_CHECK(cudaFuncSetAttribute(
        scan_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  auto* lists = static_cast<Entry*>(a.scratch);
  const dim3 grid(static_cast<unsigned>(a.Q), static_cast<unsigned>(splits));
  scan_kernel<T><<<grid, kWarp * kWarpsPerBlock, shared, stream>>>(
      static_cast<const T*>(a.queries), static_cast<const T*>(a.gallery), lists, a.N, a.D, K);
  SPLIP_CUDA_CHECK(cudaGetLastError());
  merge_kernel<<<static_cast<unsigned>(a.Q), kWarp, 0, stream>>>(
      lists, a.scores, a.indices, static_cast<int>(splits * kWarpsPerBlock), K);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t /*D*/, int64_t K) {
  if (Q == 0) return 0;
  return Q * split_count(Q, N) * kWarpsPerBlock * K * static_cast<int64_t>(sizeof(Entry));
}

void cosine_topk(const CosineTopk& a, int device, void* stream) {
  SPLIP_CHECK(a.K <= kMaxK, "K must be at most ", kMaxK, ", got ", a.K);
  SPLIP_CHECK(a.Q <= INT_MAX, "Q must be at most ", INT_MAX, ", got ", a.Q);
  if (a.Q == 0 || a.K == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch<float>(a, s);
    case DType::f16:
      return launch<__half>(a, s);
    case DType::bf16:
      return launch<__nv_bfloat16>(a, s);
    default:
      SPLIP_CHECK(false, "cosine_topk takes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
