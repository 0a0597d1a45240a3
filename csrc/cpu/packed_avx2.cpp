// AVX2 kernels of the packed gallery. The instruction that multiplies bytes adds two neighbours in
// 16 bits and saturates: queries come so small (Scanner::together) that the sum of four products
// fits, and only then is widened to 32 bits.
#include "packed_avx2.h"

namespace splip::cpu {
namespace {

struct MultiplyInWords {
  void operator()(__m256i& sum, __m256i one, __m256i v, __m256i two, __m256i w) const {
    const __m256i words =
        _mm256_add_epi16(_mm256_maddubs_epi16(one, v), _mm256_maddubs_epi16(two, w));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
  }
};

}  // namespace

void scan_avx2(const Scan& a) { scan<MultiplyInWords>(a); }

double dot_avx2(const float* a, const float* b, int64_t D, const float* ahead) {
  __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                     _mm256_setzero_pd()};
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + d), _MM_HINT_T1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      // The product of two floats is exact in double: fused or not, the bits are the same.
      sums[i] = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(a + d + 4 * i)),
                                _mm256_cvtps_pd(_mm_loadu_ps(b + d + 4 * i)), sums[i]);
    }
  }
  double lanes[16];
  for (int i = 0; i < 4; ++i) _mm256_storeu_pd(lanes + 4 * i, sums[i]);
  for (int i = 0; d + i < D; ++i) lanes[i] += static_cast<double>(a[d + i]) * b[d + i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

namespace {

// Of the eight lanes, those before the end of a vector of which `left` numbers are left.
inline __m256i first_lanes(int64_t left) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(left < 8 ? static_cast<int>(left) : 8), lanes);
}

inline double sum_of(__m256d v) {
  double lanes[4];
  _mm256_storeu_pd(lanes, v);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// total += v * v, in double.
inline void add_squares(__m256d& total, __m256 v) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
  total = _mm256_fmadd_pd(high, high, _mm256_fmadd_pd(low, low, total));
}

}  // namespace

Quantised quantise_avx2(const float* v, int64_t D, int8_t* out) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 tops = _mm256_setzero_ps();
  for (int64_t d = 0; d < D; d += kLanes) {
    tops =
        _mm256_max_ps(tops, _mm256_andnot_ps(sign, _mm256_maskload_ps(v + d, first_lanes(D - d))));
  }
  float top = 0, each[kLanes];
  _mm256_storeu_ps(each, tops);
  for (const float one : each) top = one > top ? one : top;
  const float scale = top > 0 ? top / 127.0f : 1.0f;
  const __m256 inverse = _mm256_set1_ps(1.0f / scale), wide = _mm256_set1_ps(scale);
  const __m256 most = _mm256_set1_ps(127.0f), least = _mm256_set1_ps(-127.0f);
  __m256d error = _mm256_setzero_pd(), length = _mm256_setzero_pd();
  for (int64_t d = 0; d < D; d += kLanes) {
    const __m256 x = _mm256_maskload_ps(v + d, first_lanes(D - d));
    const __m256i rounded =
        _mm256_cvtps_epi32(_mm256_min_ps(most, _mm256_max_ps(least, _mm256_mul_ps(x, inverse))));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    const int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(words, words));
    __builtin_memcpy(out + d, &bytes, static_cast<size_t>(D - d < kLanes ? D - d : kLanes));
    const __m256 back = _mm256_mul_ps(_mm256_cvtepi32_ps(rounded), wide);
    add_squares(error, _mm256_sub_ps(x, back));
    add_squares(length, back);
  }
  return {scale, __builtin_sqrt(sum_of(error)), __builtin_sqrt(sum_of(length))};
}

}  // namespace splip::cpu
