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

// Of NQ queries, whose sums and a part of the row fit the registers.
template <int NQ>
inline void dots(const float* row, const double* queries, int64_t D, double* out) {
  __m256d sums[NQ][4];
#pragma GCC unroll 4
  for (int q = 0; q < NQ; ++q) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[q][i] = _mm256_setzero_pd();
  }
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256d part = _mm256_cvtps_pd(_mm_loadu_ps(row + d + 4 * i));
#pragma GCC unroll 4
      for (int q = 0; q < NQ; ++q) {
        sums[q][i] =
            _mm256_fmadd_pd(part, _mm256_loadu_pd(queries + q * D + d + 4 * i), sums[q][i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < NQ; ++q) {
    double lanes[16];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm256_storeu_pd(lanes + 4 * i, sums[q][i]);
    for (int i = 0; d + i < D; ++i) lanes[i] += row[d + i] * queries[q * D + d + i];
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    out[q] = sum;
  }
}

}  // namespace

void dots_avx2(const float* row, const double* queries, int64_t count, int64_t D, double* out) {
  for (; count > 3; count -= 3, queries += 3 * D, out += 3) dots<3>(row, queries, D, out);
  if (count == 3) return dots<3>(row, queries, D, out);
  if (count == 2) return dots<2>(row, queries, D, out);
  if (count == 1) return dots<1>(row, queries, D, out);
}

namespace {

// The eight numbers from v on, zeros past the last of the `left` that there are.
inline __m256 load(const float* v, int64_t left) {
  if (left >= kLanes) return _mm256_loadu_ps(v);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)), lanes);
  return _mm256_maskload_ps(v, there);
}

// total += the sum of v, in double.
inline void add(__m256d& total, __m256 v) {
  total = _mm256_add_pd(total, _mm256_cvtps_pd(_mm256_castps256_ps128(v)));
  total = _mm256_add_pd(total, _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}

inline double root_of_sum(__m256d v) {
  double lanes[4];
  _mm256_storeu_pd(lanes, v);
  return __builtin_sqrt(lanes[0] + lanes[1] + lanes[2] + lanes[3]);
}

}  // namespace

Quantised quantise_avx2(const float* v, int64_t D, int8_t* out) {
  constexpr int64_t kRun = 8 * kLanes;  // numbers whose squares are added in float
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 tops = _mm256_setzero_ps();
  for (int64_t d = 0; d < D; d += kLanes) {
    tops = _mm256_max_ps(tops, _mm256_andnot_ps(sign, load(v + d, D - d)));
  }
  float top = 0, each[kLanes];
  _mm256_storeu_ps(each, tops);
  for (const float one : each) top = one > top ? one : top;
  const float scale = top > 0 ? top / 127.0f : 1.0f;
  const __m256 inverse = _mm256_set1_ps(1.0f / scale), wide = _mm256_set1_ps(scale);
  const __m256 most = _mm256_set1_ps(127.0f), least = _mm256_set1_ps(-127.0f);
  __m256d error = _mm256_setzero_pd(), length = _mm256_setzero_pd();
  for (int64_t first = 0; first < D; first += kRun) {
    const int64_t last = first + kRun < D ? first + kRun : D;
    __m256 lost = _mm256_setzero_ps(), kept = _mm256_setzero_ps();
    for (int64_t d = first; d < last; d += kLanes) {
      const __m256 x = load(v + d, D - d);
      const __m256i rounded =
          _mm256_cvtps_epi32(_mm256_min_ps(most, _mm256_max_ps(least, _mm256_mul_ps(x, inverse))));
      const __m128i words =
          _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
      const __m128i bytes = _mm_packs_epi16(words, words);
      if (D - d >= kLanes) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + d), bytes);
      } else {
        int8_t few[16];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(few), bytes);
        for (int64_t i = 0; d + i < D; ++i) out[d + i] = few[i];
      }
      const __m256 back = _mm256_mul_ps(_mm256_cvtepi32_ps(rounded), wide);
      const __m256 off = _mm256_sub_ps(x, back);
      lost = _mm256_fmadd_ps(off, off, lost);
      kept = _mm256_fmadd_ps(back, back, kept);
    }
    add(error, lost);
    add(length, kept);
  }
  return {scale, root_of_sum(error), root_of_sum(length)};
}

namespace {

void residual(const float* row, float inverse, const float* centre, int64_t D, float* out) {
  for (int64_t d = 0; d < D; ++d) out[d] = row[d] * inverse - centre[d];
}

// Eight words of eight rows at a time, turned: a store is the eight rows' place in one step.
void place(const int8_t* rows, int64_t steps, uint8_t* out) {
  const __m256i half = _mm256_set1_epi8(-128);  // + 128 in each byte
  const int64_t width = steps * kStepDims;
  for (int64_t s = 0; s < steps; s += 8) {
    __m256i a[8], b[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      const auto* at = reinterpret_cast<const __m256i*>(rows + r * width + s * kStepDims);
      a[r] = _mm256_xor_si256(_mm256_loadu_si256(at), half);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 8; r += 2) {
      b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < 8; r += 4) {
      a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      auto* low = reinterpret_cast<__m256i*>(out + (s + r) * kStepBytes);
      auto* high = reinterpret_cast<__m256i*>(out + (s + r + 4) * kStepBytes);
      _mm256_store_si256(low, _mm256_permute2x128_si256(a[r], a[r + 4], 0x20));
      _mm256_store_si256(high, _mm256_permute2x128_si256(a[r], a[r + 4], 0x31));
    }
  }
}

}  // namespace

const PackKernels kPackAvx2 = {residual, place};

}  // namespace splip::cpu
