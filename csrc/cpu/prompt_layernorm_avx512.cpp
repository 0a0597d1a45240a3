// AVX-512 row of prompt_layernorm: the row is read once from memory, then twice from the cache.
#include <immintrin.h>

#include "layernorm.h"

namespace splip::cpu {
namespace {

inline __mmask16 lanes(int64_t left) {
  return left >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << left) - 1u);
}

inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const uint16_t* p, __mmask16 mask) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

inline void copy(const float* from, float* to, __mmask16 mask) {
  _mm512_mask_storeu_ps(to, mask, _mm512_maskz_loadu_ps(mask, from));
}
inline void copy(const uint16_t* from, uint16_t* to, __mmask16 mask) {
  _mm256_mask_storeu_epi16(to, mask, _mm256_maskz_loadu_epi16(mask, from));
}

inline void store(float* p, __mmask16 mask, __m512 v) { _mm512_mask_storeu_ps(p, mask, v); }
inline void store(uint16_t* p, __mmask16 mask, __m512 v) {  // to nearest even; NaN stays NaN
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i rounded =
      _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(rounded));
}

// Sums in double, as in the portable version: the row is bound by memory.
inline __m512d add(__m512d sum, __m512 v) {
  sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
  return _mm512_add_pd(sum, _mm512_cvtps_pd(high));
}

template <typename T>
void row(const LayerNormRow<T>& a) {
  __m512d sum = _mm512_setzero_pd();
  for (int64_t d = 0; d < a.D; d += 16) {
    const __mmask16 mask = lanes(a.D - d);
    copy(a.in + d, a.tokens + d, mask);
    sum = add(sum, load(a.in + d, mask));
  }
  const float mean = static_cast<float>(_mm512_reduce_add_pd(sum) / static_cast<double>(a.D));
  const __m512 centre = _mm512_set1_ps(mean);
  __m512d squares = _mm512_setzero_pd();
  for (int64_t d = 0; d < a.D; d += 16) {
    const __mmask16 mask = lanes(a.D - d);
    const __m512 v = _mm512_maskz_sub_ps(mask, load(a.in + d, mask), centre);
    squares = add(squares, _mm512_mul_ps(v, v));
  }
  const auto variance =
      static_cast<float>(_mm512_reduce_add_pd(squares) / static_cast<double>(a.D));
  const float rstd = 1.0f / __builtin_sqrtf(variance + a.eps);
  *a.mean = mean;
  *a.rstd = rstd;
  const __m512 scale = _mm512_set1_ps(rstd);
  for (int64_t d = 0; d < a.D; d += 16) {
    const __mmask16 mask = lanes(a.D - d);
    const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load(a.in + d, mask), centre), scale);
    const __m512 gamma = _mm512_maskz_loadu_ps(mask, a.gamma + d);
    const __m512 beta = _mm512_maskz_loadu_ps(mask, a.beta + d);
    store(a.normed + d, mask, _mm512_fmadd_ps(v, gamma, beta));
  }
}

}  // namespace

void layernorm_row_avx512(const LayerNormRow<float>& a) { row(a); }
void layernorm_row_avx512(const LayerNormRow<uint16_t>& a) { row(a); }

}  // namespace splip::cpu
