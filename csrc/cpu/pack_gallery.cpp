// CPU pack_gallery: rows in 8 bits in the order of the scan (packed.cpp), with what bounds their
// scores. Bound by memory: a read of N * D * 4 bytes and a write of N * D.
#include <algorithm>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../inverse_length.h"
#include "../splip.h"
#include "entry.h"
#include "isa.h"
#include "packed.h"
#include "threads.h"

namespace splip::cpu {
namespace {

constexpr int64_t kMeanChunks = 64;     // fixed, so that the mean does not depend on the threads
constexpr int64_t kMeanRows = 1 << 15;  // of more, the mean is that of a part: any centre is right

// A scan through small pages spends its time in the page tables.
void use_huge_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// The mean of the unit rows, or of every so-manieth. sums: [kMeanChunks, D].
void find_centre(const PackGallery& a, float* sums, DotKernel dot, int threads) {
  std::fill(sums, sums + kMeanChunks * a.D, 0.0f);
  // An odd step: galleries come in runs of the same length, and runs of two to the something.
  const int64_t step = a.N / kMeanRows * 2 + 1, rows = (a.N + step - 1) / step;
  parallel_for(threads, kMeanChunks, [&](int64_t chunk) {
    float* sum = sums + chunk * a.D;
    for (int64_t i = rows * chunk / kMeanChunks; i < rows * (chunk + 1) / kMeanChunks; ++i) {
      const float* g = a.gallery + i * step * a.D;
      const auto inverse =
          static_cast<float>(inverse_length(dot(g, g, a.D, g + (i + 1 < rows) * step * a.D)));
      if (inverse == 0) continue;
      for (int64_t d = 0; d < a.D; ++d) sum[d] += g[d] * inverse;
    }
  });
  for (int64_t d = 0; d < a.D; ++d) {
    double total = 0;
    for (int64_t chunk = 0; chunk < kMeanChunks; ++chunk) total += sums[chunk * a.D + d];
    a.centre[d] = static_cast<float>(total / std::max<int64_t>(1, rows));
  }
}

// Row n in 8 bits, its scale and its error; returns its length. residual: [D].
double quantise_row(const PackGallery& a, int64_t n, const Kernels& kernels, float* residual,
                    int8_t* bytes) {
  const float* g = a.gallery + n * a.D;
  if (n < a.N) a.inverse[n] = inverse_length(kernels.dot(g, g, a.D, g + (n + 1 < a.N) * a.D));
  if (n >= a.N || a.inverse[n] == 0) {
    a.scale[n] = 0;
    a.error[n] = kNever;
    std::fill(bytes, bytes + a.D, int8_t{0});
    return 0;
  }
  kernels.pack->residual(g, static_cast<float>(a.inverse[n]), a.centre, a.D, residual);
  const Quantised row = kernels.quantise(residual, a.D, bytes);
  a.scale[n] = row.scale;
  a.error[n] = static_cast<float>(row.error * 1.0001 + 1e-6);
  return row.length;
}

// Scratch of a thread: a residual, and kPlaceRows rows in 8 bits.
int64_t thread_floats(int64_t D) { return round_up(D, kDimAlign) * (1 + kPlaceRows / 4); }

}  // namespace

int64_t packed_panel_bytes(int64_t N, int64_t D) { return pairs_of(N) * steps_of(D) * kStepBytes; }

int64_t pack_gallery_scratch(int64_t D, int threads) {
  return (kMeanChunks * D + threads * thread_floats(D)) * static_cast<int64_t>(sizeof(float));
}

void pack_gallery(const PackGallery& a, int threads) {
  const int64_t Dp = round_up(a.D, kDimAlign), steps = steps_of(a.D), pairs = pairs_of(a.N);
  auto* sums = static_cast<float*>(a.scratch);
  float* rows = sums + kMeanChunks * a.D;
  const Kernels& kernels = current();
  find_centre(a, sums, kernels.dot, threads);
  use_huge_pages(a.panels, pairs * steps * kStepBytes);
  std::vector<double> longest(threads);  // row of each thread
  parallel(threads, [&](const Member& member) {
    float* residual = rows + member.number * thread_floats(a.D);
    auto* bytes = reinterpret_cast<int8_t*>(residual + Dp);
    std::fill(bytes, bytes + kPlaceRows * Dp, int8_t{0});
    double top = 0;
    share(member, pairs, [&](int64_t pair) {
      uint8_t* panels = a.panels + pair * steps * kStepBytes;
      for (int64_t r = 0; r < kPairRows; ++r) {
        int8_t* row = bytes + r % kPlaceRows * Dp;
        top = std::max(top, quantise_row(a, pair * kPairRows + r, kernels, residual, row));
        if (r % kPlaceRows < kPlaceRows - 1) continue;
        kernels.pack->place(bytes, steps, panels + (r + 1 - kPlaceRows) * kStepDims);
      }
    });
    longest[member.number] = top;
  });
  const double top = *std::max_element(longest.begin(), longest.end());
  a.centre[a.D] = static_cast<float>(top * 1.0001);
}

}  // namespace splip::cpu
