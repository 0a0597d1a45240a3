// Kernel of the packed gallery for ARM processors with dot products of bytes (SDOT: Graviton 2,
// Apple M1, Cortex-A76 on): 16 products an instruction, four rows a register.
#include "packed_neon.h"

namespace splip::cpu {
namespace {

template <int Lane, int R>
inline void multiply_add(int32x4_t (&sums)[R], const int8x16_t (&rows)[R], int8x16_t queries) {
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) sums[i] = vdotq_laneq_s32(sums[i], rows[i], queries, Lane);
}

// 16 registers hold sums (8 of one query): the more queries, the fewer rows at a time.
template <int NQ>
void scan(const Scan& a) {
  constexpr int R = NQ == 1 ? 8 : 16 / NQ;
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    for (int64_t first = 0; first < kPairRows; first += R * kLanes) {
      const uint8_t* step = panel + first * kStepDims;
      const int8_t* query = a.queries;
      int32x4_t sums[NQ][R];
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q) {
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) sums[q][i] = vdupq_n_s32(0);
      }
      for (int64_t s = 0; s < a.steps; ++s) {
        if (first == 0) fetch(ahead + s * a.ahead_step);
        int8x16_t rows[R];
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) rows[i] = signed_rows(step + i * kLanes * kStepDims);
        const int8x16_t four = vld1q_s8(query);
        multiply_add<0>(sums[0], rows, four);
        if constexpr (NQ > 1) multiply_add<1>(sums[1], rows, four);
        if constexpr (NQ > 2) {
          multiply_add<2>(sums[2], rows, four);
          multiply_add<3>(sums[3], rows, four);
        }
        if constexpr (NQ > 4) {
          const int8x16_t others = vld1q_s8(query + 16);
          multiply_add<0>(sums[4], rows, others);
          multiply_add<1>(sums[5], rows, others);
          multiply_add<2>(sums[6], rows, others);
          multiply_add<3>(sums[7], rows, others);
        }
        step += kStepBytes;
        query += kGroup * kStepDims;
      }
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q) filter(a, pair, first, q, sums[q]);
    }
  }
}

}  // namespace

void scan_dotprod(const Scan& a) {
  if (a.count == 1) return scan<1>(a);
  if (a.count == 2) return scan<2>(a);
  if (a.count <= 4) return scan<4>(a);
  scan<kGroup>(a);
}

}  // namespace splip::cpu
