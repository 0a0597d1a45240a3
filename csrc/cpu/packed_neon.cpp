// NEON kernels of the packed gallery, for every 64-bit ARM. Two products of bytes fit in 16 bits
// (both within +-127), so they are summed there and widened for every second step.
#include "packed_neon.h"

namespace splip::cpu {
namespace {

inline int8x16_t four_bytes(const int8_t* query) {
  int32_t word;
  __builtin_memcpy(&word, query, sizeof(word));
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

// NQ queries from `from` on. 16 registers hold sums: two for four rows, each lane of half a step.
template <int NQ>
void scan(const Scan& a, int64_t pair, int from) {
  constexpr int R = 8 / NQ;
  const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
  const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
  for (int64_t first = 0; first < kPairRows; first += R * kLanes) {
    const uint8_t* rows = panel + first * kStepDims;
    const int8_t* query = a.queries + from * kStepDims;
    int32x4_t low[NQ][R], high[NQ][R];
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) low[q][i] = high[q][i] = vdupq_n_s32(0);
    }
    for (int64_t s = 0; s < a.steps; s += 2) {
      if (first == 0 && from == 0) {
        fetch(ahead + s * a.ahead_step);
        fetch(ahead + (s + 1) * a.ahead_step);
      }
      int8x16_t v0[NQ], v1[NQ];
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q) {
        v0[q] = four_bytes(query + q * kStepDims);
        v1[q] = four_bytes(query + (kGroup + q) * kStepDims);
      }
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const int8x16_t x0 = signed_rows(rows + i * kLanes * kStepDims);
        const int8x16_t x1 = signed_rows(rows + kStepBytes + i * kLanes * kStepDims);
#pragma GCC unroll 8
        for (int q = 0; q < NQ; ++q) {
          const int16x8_t here = vmlal_s8(vmull_s8(vget_low_s8(x0), vget_low_s8(v0[q])),
                                          vget_low_s8(x1), vget_low_s8(v1[q]));
          const int16x8_t there = vmlal_high_s8(vmull_high_s8(x0, v0[q]), x1, v1[q]);
          low[q][i] = vpadalq_s16(low[q][i], here);
          high[q][i] = vpadalq_s16(high[q][i], there);
        }
      }
      rows += 2 * kStepBytes;
      query += 2 * kGroup * kStepDims;
    }
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q) {
      int32x4_t sums[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) sums[i] = vpaddq_s32(low[q][i], high[q][i]);
      filter(a, pair, first, from + q, sums);
    }
  }
}

}  // namespace

void scan_neon(const Scan& a) {
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    if (a.count == 1) {
      scan<1>(a, pair, 0);
    } else if (a.count == 2) {
      scan<2>(a, pair, 0);
    } else {
      scan<4>(a, pair, 0);
      if (a.count > 4) scan<4>(a, pair, 4);
    }
  }
}

double dot_neon(const float* a, const float* b, int64_t D, const float* ahead) {
  float64x2_t sums[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sums[i] = vdupq_n_f64(0);
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) {
    __builtin_prefetch(ahead + d, 0, 2);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float32x4_t x = vld1q_f32(a + d + 4 * i), y = vld1q_f32(b + d + 4 * i);
      // The product of two floats is exact in double: fused or not, the bits are the same.
      sums[2 * i] =
          vfmaq_f64(sums[2 * i], vcvt_f64_f32(vget_low_f32(x)), vcvt_f64_f32(vget_low_f32(y)));
      sums[2 * i + 1] = vfmaq_f64(sums[2 * i + 1], vcvt_high_f64_f32(x), vcvt_high_f64_f32(y));
    }
  }
  double lanes[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) vst1q_f64(lanes + 2 * i, sums[i]);
  for (int i = 0; d + i < D; ++i) lanes[i] += static_cast<double>(a[d + i]) * b[d + i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

namespace {

// What quantise_neon sums, in double: rows can be long.
struct Squares {
  float64x2_t low = vdupq_n_f64(0), high = vdupq_n_f64(0);
  void add(float32x4_t x) {
    const float64x2_t a = vcvt_f64_f32(vget_low_f32(x)), b = vcvt_high_f64_f32(x);
    low = vfmaq_f64(low, a, a);
    high = vfmaq_f64(high, b, b);
  }
  double total() const { return vaddvq_f64(vaddq_f64(low, high)); }
};

// Four numbers as bytes; what they stand for and what is lost, to the sums.
inline int32x4_t quantise_four(float32x4_t x, float32x4_t inverse, float32x4_t scale,
                               Squares& error, Squares& length) {
  const float32x4_t limit = vdupq_n_f32(127.0f);
  const float32x4_t scaled =
      vminnmq_f32(limit, vmaxnmq_f32(vnegq_f32(limit), vmulq_f32(x, inverse)));
  const int32x4_t rounded = vcvtnq_s32_f32(scaled);  // to nearest even
  const float32x4_t back = vmulq_f32(vcvtq_f32_s32(rounded), scale);
  error.add(vsubq_f32(x, back));
  length.add(back);
  return rounded;
}

}  // namespace

Quantised quantise_neon(const float* v, int64_t D, int8_t* out) {
  float32x4_t top = vdupq_n_f32(0);
  int64_t d = 0;
  for (; d + 4 <= D; d += 4) top = vmaxnmq_f32(top, vabsq_f32(vld1q_f32(v + d)));
  float largest = vmaxnmvq_f32(top);
  for (; d < D; ++d) largest = __builtin_fmaxf(largest, __builtin_fabsf(v[d]));
  const float scale = largest > 0 ? largest / 127.0f : 1.0f;
  const float32x4_t wide = vdupq_n_f32(scale), inverse = vdupq_n_f32(1.0f / scale);
  Squares error, length;
  for (d = 0; d + 8 <= D; d += 8) {
    const int32x4_t a = quantise_four(vld1q_f32(v + d), inverse, wide, error, length);
    const int32x4_t b = quantise_four(vld1q_f32(v + d + 4), inverse, wide, error, length);
    vst1_s8(out + d, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
  }
  for (; d < D; ++d) {
    float32x4_t one = vdupq_n_f32(0);
    one = vsetq_lane_f32(v[d], one, 0);
    out[d] =
        static_cast<int8_t>(vgetq_lane_s32(quantise_four(one, inverse, wide, error, length), 0));
  }
  return {scale, __builtin_sqrt(error.total()), __builtin_sqrt(length.total())};
}

}  // namespace splip::cpu
