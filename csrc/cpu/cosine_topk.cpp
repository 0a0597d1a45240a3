// CPU cosine_topk: scan the gallery in blocks of queries, keep a heap of K per (query, chunk).
// The score matrix is never written. Bound by arithmetic: 2 * Q * N * D.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../common.h"
#include "../splip.h"

namespace splip::cpu {
namespace {

constexpr int64_t kQueryBlock = 32;  // 64 KB of queries at D = 512: stays in L2
constexpr int64_t kMinChunk = 4096;  // rows worth a thread of their own
constexpr int kLanes = 16;           // independent partial sums, so that the compiler can vectorise

struct Entry {
  float score;
  int64_t index;
};

// The order of results. As the comparison of std's heap functions it keeps the worst entry on top.
inline bool better(const Entry& a, const Entry& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

// Fixed order of additions: equal rows give equal scores wherever they stand.
float dot(const float* a, const float* b, int64_t D) {
  float lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    for (int i = 0; i < kLanes; ++i) lanes[i] += a[d + i] * b[d + i];
  }
  for (int i = 0; d + i < D; ++i) lanes[i] += a[d + i] * b[d + i];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

float inverse_norm(const float* v, int64_t D) {
  return 1.0f / std::max(std::sqrt(dot(v, v, D)), kMinNorm);
}

int64_t chunk_count(int64_t Q, int64_t N, int threads) {
  const int64_t blocks = (Q + kQueryBlock - 1) / kQueryBlock;
  if (blocks >= threads) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(threads, N / kMinChunk));
}

}  // namespace

int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t /*D*/, int64_t K, int threads) {
  return Q * chunk_count(Q, N, threads) * K * static_cast<int64_t>(sizeof(Entry));
}

void cosine_topk(const CosineTopk& a, int threads) {
  SPLIP_CHECK(a.dtype == DType::f32, "cosine_topk on the CPU takes float32");
  const auto* queries = static_cast<const float*>(a.queries);
  const auto* gallery = static_cast<const float*>(a.gallery);
  auto* heaps = static_cast<Entry*>(a.scratch);
  const int64_t chunks = chunk_count(a.Q, a.N, threads);
  const int64_t blocks = (a.Q + kQueryBlock - 1) / kQueryBlock;

#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < blocks * chunks; ++task) {
    const int64_t chunk = task % chunks;
    const int64_t q_begin = task / chunks * kQueryBlock;
    const int64_t q_end = std::min(a.Q, q_begin + kQueryBlock);
    const int64_t n_begin = a.N * chunk / chunks, n_end = a.N * (chunk + 1) / chunks;
    float scale[kQueryBlock];
    for (int64_t q = q_begin; q < q_end; ++q) {
      scale[q - q_begin] = inverse_norm(queries + q * a.D, a.D);
      // Sentinels lose against every real entry, also against one that scores -infinity.
      Entry* heap = heaps + (q * chunks + chunk) * a.K;
      std::fill_n(heap, a.K, Entry{-std::numeric_limits<float>::infinity(), INT64_MAX});
    }
    for (int64_t n = n_begin; n < n_end; ++n) {
      const float* row = gallery + n * a.D;
      const float row_scale = inverse_norm(row, a.D);
      for (int64_t q = q_begin; q < q_end; ++q) {
        const float both = scale[q - q_begin] * row_scale;
        float score = dot(queries + q * a.D, row, a.D) * both;
        if (std::isnan(score) || both == 0) score = -std::numeric_limits<float>::infinity();
        Entry* heap = heaps + (q * chunks + chunk) * a.K;
        if (!better({score, n}, heap[0])) continue;
        std::pop_heap(heap, heap + a.K, better);
        heap[a.K - 1] = {score, n};
        std::push_heap(heap, heap + a.K, better);
      }
    }
  }

#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t q = 0; q < a.Q; ++q) {
    Entry* first = heaps + q * chunks * a.K;
    std::partial_sort(first, first + a.K, first + chunks * a.K, better);
    for (int64_t k = 0; k < a.K; ++k) {
      a.scores[q * a.K + k] = first[k].score;
      a.indices[q * a.K + k] = first[k].index;
    }
  }
}

}  // namespace splip::cpu
