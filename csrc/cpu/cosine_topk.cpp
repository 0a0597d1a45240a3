// CPU cosine_topk of a gallery that is not packed: every score exactly, a heap of K per (query,
// chunk). The score matrix is never written. Bound by memory for one query (4 * N * D bytes), soon
// by arithmetic in double (Q * N * D products): many queries are better served by packing first.
#include <algorithm>
#include <atomic>
#include <vector>

#include "../common.h"
#include "../inverse_length.h"
#include "../splip.h"
#include "entry.h"
#include "isa.h"
#include "threads.h"

namespace splip::cpu {
namespace {

constexpr int64_t kQueryBlock = 32;  // 128 KB of queries at D = 512: stays in L2
constexpr int64_t kMinChunk = 4096;  // rows worth a thread of their own

using Result = Entry<int64_t>;

int64_t chunk_count(int64_t Q, int64_t N, int threads) {
  const int64_t blocks = (Q + kQueryBlock - 1) / kQueryBlock;
  if (blocks >= threads) return 1;
  return std::max<int64_t>(1, std::min<int64_t>(threads, N / kMinChunk));
}

// A query without a norm scores -infinity everywhere, so its results are the first rows; a zero
// query scores 0 with every row that has a norm, so they are the first of these: no scan. False
// for any other query.
bool answer_trivial(const CosineTopk& a, int64_t q, DotKernel dot) {
  const float* query = static_cast<const float*>(a.queries) + q * a.D;
  const double squares = dot(query, query, a.D, query);
  const bool zero = squares == 0;
  if (inverse_length(squares) != 0 && !zero) return false;
  float* scores = a.scores + q * a.K;
  int64_t* indices = a.indices + q * a.K;
  int64_t found = 0;
  std::vector<int64_t> without;  // a norm: behind those that have one
  for (int64_t n = 0; n < a.N && found < a.K; ++n) {
    if (zero) {
      const float* row = static_cast<const float*>(a.gallery) + n * a.D;
      if (inverse_length(dot(row, row, a.D, row)) == 0) {
        without.push_back(n);
        continue;
      }
    }
    scores[found] = zero ? 0.0f : kNever;
    indices[found++] = n;
  }
  for (size_t i = 0; found < a.K; ++i) {
    scores[found] = kNever;
    indices[found++] = without[i];
  }
  return true;
}

}  // namespace

// Heaps, [Q, chunks, K], and the queries in double, [Q, D].
int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t D, int64_t K, int threads) {
  const int64_t heaps = Q * chunk_count(Q, N, threads) * K * static_cast<int64_t>(sizeof(Result));
  return heaps + Q * D * static_cast<int64_t>(sizeof(double));
}

void cosine_topk(const CosineTopk& a, int threads) {
  SPLIP_CHECK(a.dtype == DType::f32, "cosine_topk on the CPU takes float32");
  SPLIP_CHECK(a.allowed == nullptr, "cosine_topk on the CPU has no mask: pack the gallery");
  SPLIP_CHECK(a.scan == TopkScan::automatic && a.eight_bit.rows == nullptr && a.inverse == nullptr,
              "ways to scan, rows in 8 bits and stored norms are for CUDA");
  const auto* queries = static_cast<const float*>(a.queries);
  const auto* gallery = static_cast<const float*>(a.gallery);
  auto* heaps = static_cast<Result*>(a.scratch);
  const Kernels& kernels = current();
  const DotKernel dot = kernels.dot;
  std::vector<char> trivial(a.Q);
  std::atomic<int64_t> turn{0}, next{0};
  parallel(threads, [&](const Member&) {
    take_turns(turn, a.Q, [&](int64_t q) { trivial[q] = answer_trivial(a, q, dot); });
  });
  std::vector<int64_t> asked;  // the queries that need the scan
  for (int64_t q = 0; q < a.Q; ++q) {
    if (!trivial[q]) asked.push_back(q);
  }
  const auto count = static_cast<int64_t>(asked.size());
  const int64_t chunks = chunk_count(a.Q, a.N, threads);
  const int64_t blocks = (count + kQueryBlock - 1) / kQueryBlock;
  auto* wide = reinterpret_cast<double*>(heaps + a.Q * chunks * a.K);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(queries + asked[i] * a.D, a.D, wide + i * a.D);
  }

  const auto scan = [&](int64_t task) {
    const int64_t chunk = task % chunks;
    const int64_t first = task / chunks * kQueryBlock;
    const int64_t last = std::min(count, first + kQueryBlock);
    const int64_t n_begin = a.N * chunk / chunks, n_end = a.N * (chunk + 1) / chunks;
    double scale[kQueryBlock];
    for (int64_t i = first; i < last; ++i) {
      const float* query = queries + asked[i] * a.D;
      scale[i - first] = inverse_length(dot(query, query, a.D, query));
      // Sentinels lose against every real entry, also against one that scores -infinity.
      std::fill_n(heaps + (i * chunks + chunk) * a.K, a.K, Result{kNever, INT64_MAX});
    }
    for (int64_t n = n_begin; n < n_end; ++n) {
      const float* row = gallery + n * a.D;
      const double row_scale = inverse_length(dot(row, row, a.D, row + (n + 1 < n_end) * a.D));
      double products[kQueryBlock];
      kernels.dots(row, wide + first * a.D, last - first, a.D, products);
      for (int64_t i = first; i < last; ++i) {
        const double product = products[i - first] * scale[i - first] * row_scale;
        const Result found{row_scale != 0 ? static_cast<float>(product) : kNever, n};
        Result* heap = heaps + (i * chunks + chunk) * a.K;
        if (!better(found, heap[0])) continue;
        std::pop_heap(heap, heap + a.K, better);
        heap[a.K - 1] = found;
        std::push_heap(heap, heap + a.K, better);
      }
    }
  };
  parallel(threads, [&](const Member&) { take_turns(next, blocks * chunks, scan); });

  parallel_for(threads, count, [&](int64_t i) {
    Result* best = heaps + i * chunks * a.K;
    std::partial_sort(best, best + a.K, best + chunks * a.K, better);
    for (int64_t k = 0; k < a.K; ++k) {
      a.scores[asked[i] * a.K + k] = best[k].score;
      a.indices[asked[i] * a.K + k] = best[k].row;
    }
  });
}

}  // namespace splip::cpu
