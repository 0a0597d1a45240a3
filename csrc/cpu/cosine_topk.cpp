// CPU cosine_topk of a gallery that is not packed: every score exactly, a heap of K per (query,
// chunk). The score matrix is never written. Bound by memory for one query (4 * N * D bytes), soon
// by arithmetic in double (Q * N * D products): many queries are better served by packing first.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../common.h"
#include "../splip.h"
#include "inverse_length.h"
#include "isa.h"

namespace splip::cpu {
namespace {

constexpr int64_t kQueryBlock = 32;  // 64 KB of queries at D = 512: stays in L2
constexpr int64_t kMinChunk = 4096;  // rows worth a thread of their own

struct Entry {
  float score;
  int64_t index;
};

// The order of results. As the comparison of std's heap functions it keeps the worst entry on top.
inline bool better(const Entry& a, const Entry& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
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
  const DotKernel dot = current().dot;

#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t task = 0; task < blocks * chunks; ++task) {
    const int64_t chunk = task % chunks;
    const int64_t q_begin = task / chunks * kQueryBlock;
    const int64_t q_end = std::min(a.Q, q_begin + kQueryBlock);
    const int64_t n_begin = a.N * chunk / chunks, n_end = a.N * (chunk + 1) / chunks;
    double scale[kQueryBlock];
    for (int64_t q = q_begin; q < q_end; ++q) {
      const float* query = queries + q * a.D;
      scale[q - q_begin] = inverse_length(dot(query, query, a.D, query));
      // Sentinels lose against every real entry, also against one that scores -infinity.
      Entry* heap = heaps + (q * chunks + chunk) * a.K;
      std::fill_n(heap, a.K, Entry{-std::numeric_limits<float>::infinity(), INT64_MAX});
    }
    for (int64_t n = n_begin; n < n_end; ++n) {
      const float* row = gallery + n * a.D;
      const double row_scale = inverse_length(dot(row, row, a.D, row + (n + 1 < n_end) * a.D));
      for (int64_t q = q_begin; q < q_end; ++q) {
        float score = -std::numeric_limits<float>::infinity();
        if (scale[q - q_begin] != 0 && row_scale != 0) {
          const float* query = queries + q * a.D;
          score = static_cast<float>(dot(query, row, a.D, row) * scale[q - q_begin] * row_scale);
        }
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
