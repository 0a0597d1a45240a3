// Internal to the ARM kernels of the packed gallery: from sums of products to the rows that may be
// results. Everything is local to the file that includes it, so that no other file can end up with
// instructions that not every processor has.
#pragma once

#include <arm_neon.h>

#include "packed.h"

namespace splip::cpu {
namespace {

constexpr int kLanes = 4;  // rows whose sums are in one register

// Rows are stored as their residual + 128. Without it, no query needs its correction (Scan::start).
inline int8x16_t signed_rows(const uint8_t* rows) {
  return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(rows), vdupq_n_u8(0x80)));
}

// What is scanned next, to L2.
inline void fetch(const uint8_t* ahead) {
  __builtin_prefetch(ahead, 0, 2);
  __builtin_prefetch(ahead + 64, 0, 2);
}

// Compare the sums of a query and rows [first, first + 4 R) of a pair with the query's threshold.
template <int R>
inline void filter(const Scan& a, int64_t pair, int64_t first, int q, const int32x4_t (&sums)[R]) {
  Shortlist& list = a.lists[q];
  const int64_t at = pair * kPairRows + first;
  const float32x4_t scale = vdupq_n_f32(a.query_scale[q]), least = vdupq_n_f32(list.threshold);
  float32x4_t upper[R];
  uint32x4_t good[R], any = vdupq_n_u32(0);
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    const float32x4_t scaled =
        vmulq_f32(vcvtq_f32_s32(sums[i]), vld1q_f32(a.scale + at + i * kLanes));
    upper[i] = vfmaq_f32(vld1q_f32(a.error + at + i * kLanes), scaled, scale);
    good[i] = vcgeq_f32(upper[i], least);
    any = vorrq_u32(any, good[i]);
  }
  if (__builtin_expect(vmaxvq_u32(any) == 0, 1)) return;
  const uint32x4_t bit = {1, 2, 4, 8};
  float values[R * kLanes];
  uint32_t mask = 0;
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    vst1q_f32(values + i * kLanes, upper[i]);
    mask |= vaddvq_u32(vandq_u32(good[i], bit)) << (i * kLanes);
  }
  if (a.allowed != nullptr) mask &= a.allowed[pair] >> first;
  for (; mask != 0; mask &= mask - 1) {
    const int i = __builtin_ctz(mask);
    list.upper[list.count] = values[i];
    list.row[list.count++] = static_cast<int32_t>(a.first_row + at + i);
  }
  if (list.count >= list.next) a.compact(a.context, q);
}

}  // namespace
}  // namespace splip::cpu
