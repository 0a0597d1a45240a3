// Internal to the AVX-512 and AMX kernels of the packed gallery: from the sums of a pair of panels
// to the rows that may be results. Everything is local to the file that includes it, so that no
// other file can end up with wide instructions.
#pragma once

#include <immintrin.h>

#include "packed.h"

namespace splip::cpu {
namespace {

// Write the rows of one panel whose upper bound reaches the threshold.
inline void keep(Shortlist& list, __m512 upper, __mmask16 mask, int64_t row) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i rows = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(row)));
  // Compress in a register, then a plain store: compressing stores are slow on some processors.
  _mm512_storeu_ps(list.upper + list.count, _mm512_maskz_compress_ps(mask, upper));
  _mm512_storeu_si512(list.row + list.count, _mm512_maskz_compress_epi32(mask, rows));
  list.count += __builtin_popcount(mask);
}

// What turns the sums of a pair into upper bounds, whatever the query.
struct PairBounds {
  __m512 scale[2], error[2];
  uint32_t allowed;
  int64_t row;  // the pair's first

  PairBounds(const Scan& a, int64_t pair)
      : allowed(a.allowed == nullptr ? ~0u : a.allowed[pair]), row(a.first_row + pair * kPairRows) {
    for (int panel = 0; panel < 2; ++panel) {
      const int64_t at = pair * kPairRows + panel * kPanelRows;
      scale[panel] = _mm512_loadu_ps(a.scale + at);
      error[panel] = _mm512_loadu_ps(a.error + at);
    }
  }
};

// Compare the sums of one query and both panels with its threshold.
inline void filter(const Scan& a, const PairBounds& pair, int q, __m512i low, __m512i high) {
  Shortlist& list = a.lists[q];
  const __m512 scale = _mm512_set1_ps(a.query_scale[q]), t = _mm512_set1_ps(list.threshold);
  const __m512 u0 =
      _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(low), pair.scale[0]), scale, pair.error[0]);
  const __m512 u1 =
      _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(high), pair.scale[1]), scale, pair.error[1]);
  const __mmask16 m0 = _mm512_cmp_ps_mask(u0, t, _CMP_GE_OQ) & pair.allowed;
  const __mmask16 m1 = _mm512_cmp_ps_mask(u1, t, _CMP_GE_OQ) & (pair.allowed >> kPanelRows);
  if (__builtin_expect(m0 | m1, 0)) {
    keep(list, u0, m0, pair.row);
    keep(list, u1, m1, pair.row + kPanelRows);
    if (list.count >= list.next) a.compact(a.context, q);
  }
}

}  // namespace
}  // namespace splip::cpu
