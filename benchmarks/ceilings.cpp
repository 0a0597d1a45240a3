// What this processor can do at most: memory read, and products of bytes with sums in 32 bits.
// Prints "read GB/s" and "G multiply-adds/s" of all threads. Built and run by bench_cosine_topk.py.
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

double read_rate() {
  constexpr size_t kBytes = size_t{1} << 30;
  auto* data = static_cast<uint8_t*>(std::aligned_alloc(2 << 20, kBytes));
  madvise(data, kBytes, MADV_HUGEPAGE);
#pragma omp parallel for schedule(static)
  for (size_t i = 0; i < kBytes; i += 64) data[i] = static_cast<uint8_t>(i);
  double best = 0;
  int sink = 0;
  for (int round = 0; round < 9; ++round) {
    const double began = omp_get_wtime();
#pragma omp parallel for schedule(static) reduction(+ : sink)
    for (size_t block = 0; block < kBytes; block += 1 << 16) {
      __m512i sum = _mm512_setzero_si512();
      for (size_t i = block; i < block + (1 << 16); i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(data + i) + 8192, _MM_HINT_T1);
        sum = _mm512_xor_si512(sum, _mm512_load_si512(data + i));
      }
      sink += _mm512_reduce_add_epi32(sum);
    }
    best = std::max(best, kBytes / (omp_get_wtime() - began) / 1e9);
  }
  std::free(data);
  return sink == 1 ? 0 : best;
}

double vector_rate() {
  constexpr int64_t kTimes = 20'000'000;
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double began = omp_get_wtime();
    int threads = 1;
#pragma omp parallel
    {
#pragma omp single
      threads = omp_get_num_threads();
      for (int64_t i = 0; i < kTimes; ++i) {
        // Sixteen sums in flight: more than the latency needs.
        asm volatile(
            "vpdpbusd %%zmm30, %%zmm31, %%zmm0\n vpdpbusd %%zmm30, %%zmm31, %%zmm1\n"
            "vpdpbusd %%zmm30, %%zmm31, %%zmm2\n vpdpbusd %%zmm30, %%zmm31, %%zmm3\n"
            "vpdpbusd %%zmm30, %%zmm31, %%zmm4\n vpdpbusd %%zmm30, %%zmm31, %%zmm5\n"
            "vpdpbusd %%zmm30, %%zmm31, %%zmm6\n vpdpbusd %%zmm30, %%zmm31, %%zmm7\n"
            "vpdpbusd %%zmm30, %%zmm31, %%zmm8\n vpdpbusd %%zmm30, %%zmm31, %%zmm9\n"
            "vpdpbusd %%zmm30, %%zmm31, %%zmm10\n vpdpbusd %%zmm30, %%zmm31, %%zmm11\n" ::
                : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9",
                  "zmm10", "zmm11");
      }
    }
    best = std::max(best, 12.0 * 64 * kTimes * threads / (omp_get_wtime() - began) / 1e9);
  }
  return best;
}

double tile_rate() {
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 0;
  constexpr int64_t kTimes = 4'000'000;
  struct alignas(64) {
    uint8_t palette = 1, rest[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double began = omp_get_wtime();
    int threads = 1;
#pragma omp parallel
    {
#pragma omp single
      threads = omp_get_num_threads();
      asm volatile("ldtilecfg %0" ::"m"(config));
      for (int64_t i = 0; i < kTimes; ++i) {
        asm volatile(
            "tdpbsud %%tmm6, %%tmm4, %%tmm0\n tdpbsud %%tmm7, %%tmm4, %%tmm1\n"
            "tdpbsud %%tmm6, %%tmm5, %%tmm2\n tdpbsud %%tmm7, %%tmm5, %%tmm3\n" ::
                :);
      }
      asm volatile("tilerelease");
    }
    best = std::max(best, 4.0 * 16 * 16 * 64 * kTimes * threads / (omp_get_wtime() - began) / 1e9);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const bool tiles = argc > 1 && argv[1][0] == 't';
  std::printf("%.1f %.1f\n", read_rate(), tiles ? tile_rate() : vector_rate());
}
