// Kernel of the packed gallery for ARM processors with products of small byte matrices (USMMLA:
// Graviton 3, Apple M2, Neoverse V1 and N2 on): two rows times two queries times 8 dimensions, 32
// products an instruction. It takes the rows' bytes as they are, unsigned.
#include "packed_neon.h"

namespace splip::cpu {
namespace {

constexpr int kDims = 8;  // of an instruction: two steps, and the queries' chunk

// 16 registers hold sums: [two rows, two queries] each.
template <int Pairs>
void scan(const Scan& a) {
  constexpr int R = 8 / Pairs;  // registers of four rows
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    for (int64_t first = 0; first < kPairRows; first += R * kLanes) {
      const uint8_t* step = panel + first * kStepDims;
      const int8_t* query = a.queries;
      int32x4_t low[Pairs][R], high[Pairs][R];
#pragma GCC unroll 8
      for (int p = 0; p < Pairs; ++p) {
        const int32x2_t two = vld1_s32(a.start + 2 * p);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) low[p][i] = high[p][i] = vcombine_s32(two, two);
      }
      for (int64_t s = 0; s < a.steps; s += 2) {
        if (first == 0) {
          fetch(ahead + s * a.ahead_step);
          fetch(ahead + (s + 1) * a.ahead_step);
        }
        int8x16_t v[Pairs];
#pragma GCC unroll 8
        for (int p = 0; p < Pairs; ++p) v[p] = vld1q_s8(query + 2 * kDims * p);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          // Four rows of each of two steps; of two rows, 8 dimensions each.
          const uint32x4_t x = vreinterpretq_u32_u8(vld1q_u8(step + i * kLanes * kStepDims));
          const uint32x4_t y =
              vreinterpretq_u32_u8(vld1q_u8(step + kStepBytes + i * kLanes * kStepDims));
          const uint8x16_t here = vreinterpretq_u8_u32(vzip1q_u32(x, y));
          const uint8x16_t there = vreinterpretq_u8_u32(vzip2q_u32(x, y));
#pragma GCC unroll 8
          for (int p = 0; p < Pairs; ++p) {
            low[p][i] = vusmmlaq_s32(low[p][i], here, v[p]);
            high[p][i] = vusmmlaq_s32(high[p][i], there, v[p]);
          }
        }
        step += 2 * kStepBytes;
        query += kGroup * kDims;
      }
#pragma GCC unroll 8
      for (int p = 0; p < Pairs; ++p) {
        int32x4_t even[R], odd[R];
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          even[i] = vuzp1q_s32(low[p][i], high[p][i]);
          odd[i] = vuzp2q_s32(low[p][i], high[p][i]);
        }
        filter(a, pair, first, 2 * p, even);
        filter(a, pair, first, 2 * p + 1, odd);
      }
    }
  }
}

}  // namespace

void scan_i8mm(const Scan& a) {
  if (a.count <= 2) return scan<1>(a);
  if (a.count <= 4) return scan<2>(a);
  scan<kGroup / 2>(a);
}

}  // namespace splip::cpu
