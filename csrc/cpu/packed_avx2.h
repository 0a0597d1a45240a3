// Internal to the AVX2 and AVX-VNNI kernels of the packed gallery: the scan, but for how bytes are
// multiplied. Everything is local to the file that includes it, so that no other file can end up
// with wide instructions.
#pragma once

#include <immintrin.h>

#include "packed.h"

namespace splip::cpu {
namespace {

constexpr int kLanes = 8;                       // rows in a register of scores
constexpr int kRegisters = kPairRows / kLanes;  // of a pair
constexpr int kBlockQueries = 2;                // whose sums with a pair fit the 16 registers

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

// Compare the sums of one query and all rows of a pair with the query's threshold.
inline void filter(const Scan& a, int64_t pair, int q, const __m256i (&sums)[kRegisters]) {
  Shortlist& list = a.lists[q];
  const __m256 scale = _mm256_set1_ps(a.query_scale[q]), t = _mm256_set1_ps(list.threshold);
  const __m256i start = _mm256_set1_epi32(a.start[q]);
  const int64_t at = pair * kPairRows;
  __m256 upper[kRegisters], good[kRegisters], any = _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int r = 0; r < kRegisters; ++r) {
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums[r], start));
    const __m256 scaled = _mm256_mul_ps(sum, _mm256_loadu_ps(a.scale + at + r * kLanes));
    upper[r] = _mm256_fmadd_ps(scaled, scale, _mm256_loadu_ps(a.error + at + r * kLanes));
    good[r] = _mm256_cmp_ps(upper[r], t, _CMP_GE_OQ);
    any = _mm256_or_ps(any, good[r]);
  }
  if (__builtin_expect(_mm256_testz_ps(any, any), 1)) return;
  const uint32_t allowed = a.allowed == nullptr ? ~0u : a.allowed[pair];
#pragma GCC unroll 4
  for (int r = 0; r < kRegisters; ++r) {
    const auto mask = static_cast<unsigned>(_mm256_movemask_ps(good[r]));
    keep(list, upper[r], mask & (allowed >> r * kLanes & 0xffu), a.first_row + at + r * kLanes);
  }
  if (list.count >= list.next) a.compact(a.context, q);
}

// NQ queries from `q` on against a pair. `ahead`: of what is scanned next, kLines lines of 64 bytes
// every `ahead_step` bytes, for each time around.
template <typename Multiply, int NQ, int kLines>
inline void score(const Scan& a, int64_t pair, int q, const uint8_t* ahead, int64_t ahead_step) {
  const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
  const int8_t* query = a.queries + q * kStepDims;
  const Multiply multiply;
  __m256i sums[NQ][kRegisters];
#pragma GCC unroll 2
  for (int i = 0; i < NQ; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) sums[i][r] = _mm256_setzero_si256();
  }
  for (int64_t s = 0; s < a.steps; s += kTogether) {
#pragma GCC unroll 4
    for (int line = 0; line < kLines; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead) + 64 * line, _MM_HINT_T1);
    }
    ahead += ahead_step;
    __m256i v[NQ], w[NQ];
#pragma GCC unroll 2
    for (int i = 0; i < NQ; ++i) {
      int word, other;
      __builtin_memcpy(&word, query + i * kStepDims, sizeof(word));
      __builtin_memcpy(&other, query + (kGroup + i) * kStepDims, sizeof(other));
      v[i] = _mm256_set1_epi32(word);
      w[i] = _mm256_set1_epi32(other);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) {
      const auto* rows = reinterpret_cast<const __m256i*>(panel) + r;
      // The empty statements keep the order: the compiler's own has more values than registers.
      __m256i one = _mm256_load_si256(rows), two = _mm256_load_si256(rows + kRegisters);
      asm volatile("" : "+x"(one), "+x"(two));
#pragma GCC unroll 2
      for (int i = 0; i < NQ; ++i) {
        multiply(sums[i][r], one, v[i], two, w[i]);
        asm volatile("" : "+x"(sums[i][r]));
      }
    }
    panel += kTogether * kStepBytes;
    query += kTogether * kGroup * kStepDims;
  }
#pragma GCC unroll 2
  for (int i = 0; i < NQ; ++i) filter(a, pair, q + i, sums[i]);
}

// kBlocks blocks of NQ queries.
template <typename Multiply, int NQ, int kBlocks>
inline void scan_in_blocks(const Scan& a) {
  constexpr int kLines = 4 / kBlocks;  // of kTogether steps, when this is the only group
  const int64_t share = kTogether * a.ahead_step / kBlocks;
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    for (int block = 0; block < kBlocks; ++block) {
      score<Multiply, NQ, kLines>(a, pair, block * NQ, ahead, share);
      ahead += share * (a.steps / kTogether);
    }
  }
}

template <typename Multiply>
inline void scan(const Scan& a) {
  if (a.count == 1) return scan_in_blocks<Multiply, 1, 1>(a);
  if (a.count == 2) return scan_in_blocks<Multiply, 2, 1>(a);
  if (a.count <= 4) return scan_in_blocks<Multiply, 2, 2>(a);
  scan_in_blocks<Multiply, kBlockQueries, kGroup / kBlockQueries>(a);
}

}  // namespace
}  // namespace splip::cpu
