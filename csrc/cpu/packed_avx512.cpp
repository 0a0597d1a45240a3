// AVX-512 (F, BW, VNNI) kernels of the packed gallery. 64 products an instruction, 16 rows a
// register.
#include "packed_avx512.h"

namespace splip::cpu {
namespace {

constexpr int64_t kNear = 1024;  // bytes between what is multiplied and what is fetched to L1

// sum += u8 * s8, four neighbours at a time. As the intrinsic, which GCC 12 wraps in copies of the
// registers.
inline void multiply_add(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

template <int NQ>
void scan(const Scan& a) {
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    const int8_t* query = a.queries;
    __m512i low[NQ], high[NQ];
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q) low[q] = high[q] = _mm512_set1_epi32(a.start[q]);
    for (int64_t s = 0; s < a.steps; ++s) {
      _mm_prefetch(reinterpret_cast<const char*>(panel) + kNear, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(panel) + kNear + 64, _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(ahead) + 64, _MM_HINT_T1);
      ahead += a.ahead_step;
      const __m512i p0 = _mm512_load_si512(panel), p1 = _mm512_load_si512(panel + 64);
#pragma GCC unroll 8
      for (int q = 0; q < NQ; ++q) {
        int word;
        __builtin_memcpy(&word, query + kStepDims * q, sizeof(word));
        const __m512i v = _mm512_set1_epi32(word);
        multiply_add(low[q], p0, v);
        multiply_add(high[q], p1, v);
      }
      panel += kStepBytes;
      query += kGroup * kStepDims;
    }
    const PairBounds bounds(a, pair);
#pragma GCC unroll 8
    for (int q = 0; q < NQ; ++q) filter(a, bounds, q, low[q], high[q]);
  }
}

}  // namespace

void scan_avx512(const Scan& a) {
  if (a.count == 1) return scan<1>(a);
  if (a.count == 2) return scan<2>(a);
  if (a.count <= 4) return scan<4>(a);
  scan<kGroup>(a);
}

double dot_avx512(const float* a, const float* b, int64_t D, const float* ahead) {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + d), _MM_HINT_T1);
    const __m512d a0 = _mm512_cvtps_pd(_mm256_loadu_ps(a + d)),
                  b0 = _mm512_cvtps_pd(_mm256_loadu_ps(b + d));
    const __m512d a1 = _mm512_cvtps_pd(_mm256_loadu_ps(a + d + 8)),
                  b1 = _mm512_cvtps_pd(_mm256_loadu_ps(b + d + 8));
    // The product of two floats is exact in double: fused or not, the bits are the same.
    low = _mm512_fmadd_pd(a0, b0, low);
    high = _mm512_fmadd_pd(a1, b1, high);
  }
  double lanes[16];
  _mm512_storeu_pd(lanes, low);
  _mm512_storeu_pd(lanes + 8, high);
  for (int i = 0; d + i < D; ++i) lanes[i] += static_cast<double>(a[d + i]) * b[d + i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

namespace {

template <int NQ>
inline void dots(const float* row, const double* queries, int64_t D, double* out) {
  __m512d low[NQ], high[NQ];
#pragma GCC unroll 4
  for (int q = 0; q < NQ; ++q) low[q] = high[q] = _mm512_setzero_pd();
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) {
    const __m512d r0 = _mm512_cvtps_pd(_mm256_loadu_ps(row + d));
    const __m512d r1 = _mm512_cvtps_pd(_mm256_loadu_ps(row + d + 8));
#pragma GCC unroll 4
    for (int q = 0; q < NQ; ++q) {
      low[q] = _mm512_fmadd_pd(r0, _mm512_loadu_pd(queries + q * D + d), low[q]);
      high[q] = _mm512_fmadd_pd(r1, _mm512_loadu_pd(queries + q * D + d + 8), high[q]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < NQ; ++q) {
    double lanes[16];
    _mm512_storeu_pd(lanes, low[q]);
    _mm512_storeu_pd(lanes + 8, high[q]);
    for (int i = 0; d + i < D; ++i) lanes[i] += row[d + i] * queries[q * D + d + i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    out[q] = sum;
  }
}

}  // namespace

void dots_avx512(const float* row, const double* queries, int64_t count, int64_t D, double* out) {
  for (; count > 4; count -= 4, queries += 4 * D, out += 4) dots<4>(row, queries, D, out);
  if (count == 4) return dots<4>(row, queries, D, out);
  if (count == 3) return dots<3>(row, queries, D, out);
  if (count == 2) return dots<2>(row, queries, D, out);
  if (count == 1) return dots<1>(row, queries, D, out);
}

Quantised quantise_avx512(const float* v, int64_t D, int8_t* out) {
  const auto lanes = [D](int64_t d) {
    return D - d >= 16 ? __mmask16(0xffff) : __mmask16((1u << (D - d)) - 1u);
  };
  __m512 top = _mm512_setzero_ps();
  for (int64_t d = 0; d < D; d += 16) {
    top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(d), v + d)));
  }
  const float largest = _mm512_reduce_max_ps(top);
  const float scale = largest > 0 ? largest / 127.0f : 1.0f;
  const __m512 inverse = _mm512_set1_ps(1.0f / scale), limit = _mm512_set1_ps(127.0f);
  const __m512 wide = _mm512_set1_ps(scale);
  __m512 error = _mm512_setzero_ps(), length = _mm512_setzero_ps();
  for (int64_t d = 0; d < D; d += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(lanes(d), v + d);
    const __m512 scaled = _mm512_min_ps(
        limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), _mm512_mul_ps(x, inverse)));
    const __m512i rounded = _mm512_cvtps_epi32(scaled);
    _mm512_mask_cvtepi32_storeu_epi8(out + d, lanes(d), rounded);
    const __m512 back = _mm512_mul_ps(_mm512_cvtepi32_ps(rounded), wide);
    const __m512 off = _mm512_sub_ps(x, back);
    error = _mm512_fmadd_ps(off, off, error);
    length = _mm512_fmadd_ps(back, back, length);
  }
  return {scale, __builtin_sqrt(static_cast<double>(_mm512_reduce_add_ps(error))),
          __builtin_sqrt(static_cast<double>(_mm512_reduce_add_ps(length)))};
}

}  // namespace splip::cpu
