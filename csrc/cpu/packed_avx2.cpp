// AVX2 kernels of the packed gallery. No instruction here multiplies bytes without saturating, so
// they are widened to 16 bits: as many products as in float, from a quarter of the bytes.
#include <immintrin.h>

#include "packed.h"

namespace splip::cpu {
namespace {

constexpr int kRows = 8;  // of a panel that are scored together

// Scores of rows [first, first + 8) of a pair: sums of 4 products each, added in pairs at the end.
inline __m256i sum_of(const uint8_t* panel, const int8_t* query, int64_t steps, int32_t start) {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  for (int64_t s = 0; s < steps; ++s) {
    int word;
    __builtin_memcpy(&word, query + s * kGroup * kStepDims, sizeof(word));
    const __m256i v = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(_mm_cvtsi32_si128(word)));
    const auto* rows = reinterpret_cast<const __m128i*>(panel + s * kStepBytes);
    low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(rows)), v));
    high = _mm256_add_epi32(high,
                            _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(rows + 1)), v));
  }
  // hadd works within 128-bit halves: rows 0 1 4 5 2 3 6 7 have to be put in order.
  const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
  return _mm256_add_epi32(sums, _mm256_set1_epi32(start));
}

}  // namespace

void scan_avx2(const Scan& a) {
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
    const uint32_t allowed = a.allowed == nullptr ? ~0u : a.allowed[pair];
    for (int q = 0; q < a.count; ++q) {
      Shortlist& list = a.lists[q];
      const __m256 scale = _mm256_set1_ps(a.query_scale[q]);
      for (int64_t r = 0; r < kPairRows; r += kRows) {
        const int64_t at = pair * kPairRows + r;
        const __m256i sums =
            sum_of(panel + r * kStepDims, a.queries + q * kStepDims, a.steps, a.start[q]);
        const __m256 scaled =
            _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(a.scale + at));
        const __m256 upper = _mm256_fmadd_ps(scaled, scale, _mm256_loadu_ps(a.error + at));
        const __m256 good = _mm256_cmp_ps(upper, _mm256_set1_ps(list.threshold), _CMP_GE_OQ);
        uint32_t mask = static_cast<uint32_t>(_mm256_movemask_ps(good)) & (allowed >> r & 0xffu);
        if (__builtin_expect(mask == 0, 1)) continue;
        alignas(32) float values[kRows];
        _mm256_store_ps(values, upper);
        for (; mask != 0; mask &= mask - 1) {
          const int i = __builtin_ctz(mask);
          list.upper[list.count] = values[i];
          list.row[list.count++] = static_cast<int32_t>(a.first_row + at + i);
        }
      }
      if (list.count >= list.next) a.compact(a.context, q);
    }
  }
}

}  // namespace splip::cpu
