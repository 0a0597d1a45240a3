// Internal to the AVX2 and AVX-VNNI kernels of the packed gallery: the scan, but for how bytes are
// multiplied. Everything is local to the file that includes it, so that no other file can end up
// with wide instructions.
#pragma once

#include <immintrin.h>

#include "packed.h"

namespace splip::cpu {
namespace {

constexpr int kLanes = 8;         // rows in a register of scores
constexpr int kTogether = 2;      // steps that are multiplied together
constexpr int kBlockQueries = 4;  // queries x registers of rows whose sums fit the 16 registers

// For each mask of eight rows, the lanes that are set, first to last, a byte each.
struct Lanes {
  uint64_t of[256];
  constexpr Lanes() : of{} {
    for (int mask = 0; mask < 256; ++mask) {
      int kept = 0;
      for (uint64_t lane = 0; lane < kLanes; ++lane) {
        if (mask >> lane & 1) of[mask] |= lane << (8 * kept++);
      }
    }
  }
};
constexpr Lanes kSet;

// Write the rows of a register whose upper bound reaches the threshold.
inline void keep(Shortlist& list, __m256 upper, unsigned mask, int64_t row) {
  const __m256i lanes =
      _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kSet.of[mask])));
  const __m256i rows = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int>(row)));
  _mm256_storeu_ps(list.upper + list.count, _mm256_permutevar8x32_ps(upper, lanes));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(list.row + list.count), rows);
  list.count += __builtin_popcount(mask);
}

// Compare the sums of one query and NR x 8 rows of a pair, from its row `first` on, with the
// query's threshold.
template <int NR>
inline void filter(const Scan& a, int64_t pair, int first, int q, const __m256i (&sums)[NR]) {
  Shortlist& list = a.lists[q];
  const __m256 scale = _mm256_set1_ps(a.query_scale[q]), t = _mm256_set1_ps(list.threshold);
  const __m256i start = _mm256_set1_epi32(a.start[q]);
  const int64_t at = pair * kPairRows + first;
  __m256 upper[NR], good[NR], any = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int r = 0; r < NR; ++r) {
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums[r], start));
    const __m256 scaled = _mm256_mul_ps(sum, _mm256_loadu_ps(a.scale + at + r * kLanes));
    upper[r] = _mm256_fmadd_ps(scaled, scale, _mm256_loadu_ps(a.error + at + r * kLanes));
    good[r] = _mm256_cmp_ps(upper[r], t, _CMP_GE_OQ);
    any = _mm256_or_ps(any, good[r]);
  }
  if (__builtin_expect(_mm256_testz_ps(any, any), 1)) return;
  const uint32_t allowed = (a.allowed == nullptr ? ~0u : a.allowed[pair]) >> first;
#pragma GCC unroll 4
  for (int r = 0; r < NR; ++r) {
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(good[r]));
    keep(list, upper[r], mask & (allowed >> r * kLanes & 0xffu), a.first_row + at + r * kLanes);
  }
  if (list.count >= list.next) a.compact(a.context, q);
}

// NQ queries from `q` on against NR x 8 rows of a pair, from its row `first` on. `ahead`: of what
// is scanned next, this block's share, `ahead_step` bytes for each step.
template <typename Multiply, int NQ, int NR>
inline void score(const Scan& a, int64_t pair, int first, int q, const uint8_t* ahead,
                  int64_t ahead_step) {
  constexpr int kLines = kTogether * NR;  // of 32 rows, when there is one group of queries
  const uint8_t* panel = a.panels + pair * a.steps * kStepBytes + first * kStepDims;
  const int8_t* query = a.queries + q * kStepDims;
  const Multiply multiply;
  __m256i sums[NQ][NR];
#pragma GCC unroll 4
  for (int i = 0; i < NQ; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r) sums[i][r] = _mm256_setzero_si256();
  }
  for (int64_t s = 0; s < a.steps; s += kTogether) {
#pragma GCC unroll 8
    for (int line = 0; line < kLines / 2; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead) + 64 * line, _MM_HINT_T1);
    }
    ahead += kTogether * ahead_step;
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r) {
      const auto* rows = reinterpret_cast<const __m256i*>(panel + r * kLanes * kStepDims);
      const __m256i one = _mm256_load_si256(rows);
      const __m256i two = _mm256_load_si256(rows + kStepBytes / 32);
#pragma GCC unroll 4
      for (int i = 0; i < NQ; ++i) {
        int v, w;
        __builtin_memcpy(&v, query + i * kStepDims, sizeof(v));
        __builtin_memcpy(&w, query + (kGroup + i) * kStepDims, sizeof(w));
        multiply(sums[i][r], one, _mm256_set1_epi32(v), two, _mm256_set1_epi32(w));
      }
    }
    panel += kTogether * kStepBytes;
    query += kTogether * kGroup * kStepDims;
  }
#pragma GCC unroll 4
  for (int i = 0; i < NQ; ++i) filter<NR>(a, pair, first, q + i, sums[i]);
}

// All rows of every pair, for at most two queries: one stream.
template <typename Multiply, int NQ>
inline void scan_few(const Scan& a) {
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    score<Multiply, NQ, 4>(a, pair, 0, 0, ahead, a.ahead_step);
  }
}

// kBlocks x kBlockQueries queries, a panel at a time.
template <typename Multiply, int kBlocks>
inline void scan_many(const Scan& a) {
  const int64_t share = a.ahead_step / (2 * kBlocks);
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    for (int panel = 0; panel < 2; ++panel) {
      for (int block = 0; block < kBlocks; ++block) {
        score<Multiply, kBlockQueries, 2>(a, pair, panel * kPanelRows, block * kBlockQueries, ahead,
                                          share);
        ahead += share * a.steps;
      }
    }
  }
}

template <typename Multiply>
inline void scan(const Scan& a) {
  if (a.count == 1) return scan_few<Multiply, 1>(a);
  if (a.count == 2) return scan_few<Multiply, 2>(a);
  if (a.count <= kBlockQueries) return scan_many<Multiply, 1>(a);
  scan_many<Multiply, kGroup / kBlockQueries>(a);
}

}  // namespace
}  // namespace splip::cpu
