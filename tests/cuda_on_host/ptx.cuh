// What the instructions of csrc/cuda/ptx.cuh do, by the PTX manual.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <deque>
#include <vector>

#include "cuda_runtime.h"

namespace splip::cuda {

inline uint4 load_stream(const void* p) {
  uint4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(static_cast<const char*>(p) -
                               static_cast<const char*>(on_host::shared_memory()));
}

struct Copy {
  unsigned to;
  const void* from;
  bool use;
};
// Copies of each thread of the block, by group. Nothing arrives before it is waited for.
std::deque<std::vector<Copy>>& copies();

inline void copy_async(unsigned to, const void* from, bool use) {
  copies().back().push_back({to, from, use});
}
inline void copy_commit() { copies().emplace_back(); }
template <int kPending>
void copy_wait() {
  auto& groups = copies();
  while (groups.size() > kPending + 1) {  // the last one is not committed
    for (const Copy& c : groups.front()) {
      char* to = static_cast<char*>(on_host::shared_memory()) + c.to;
      if (c.use) {
        std::memcpy(to, c.from, 16);
      } else {
        std::memset(to, 0, 16);
      }
    }
    groups.pop_front();
  }
}

inline void load_matrices(uint32_t (&r)[4], unsigned address) {
  unsigned all[32];
  on_host::exchange(&address, sizeof address, all);
  const int lane = threadIdx.x % 32;
  for (int m = 0; m < 4; ++m) {
    const char* row = static_cast<char*>(on_host::shared_memory()) + all[8 * m + lane / 4];
    std::memcpy(&r[m], row + lane % 4 * 4, 4);
  }
}

inline uint32_t round_to_tf32(uint32_t word) { return (word + 0x1000u) & 0xffffe000u; }

struct Registers {
  uint32_t a[4], b[2];
};
template <typename T>
float element(uint32_t word, int i) {
  if (sizeof(T) == 4) return __uint_as_float(word & 0xffffe000u);
  const auto bits = static_cast<uint16_t>(word >> (16 * i));
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, 2);
  return static_cast<float>(value);
}

template <typename T>
void mma_sync(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
              uint32_t b1) {
  const Registers own = {{a0, a1, a2, a3}, {b0, b1}};
  Registers all[32];
  on_host::exchange(&own, sizeof own, all);
  constexpr int kPer = 4 / sizeof(T);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = c[i];
    // Element k of a row: word k / kPer % 4 of the row's four lanes, low half of k first.
    for (int half = 0; half < 2; ++half) {
      for (int place = 0; place < 4; ++place) {
        for (int j = 0; j < kPer; ++j) {
          sum += element<T>(all[row % 8 * 4 + place].a[row / 8 + 2 * half], j) *
                 element<T>(all[column * 4 + place].b[half], j);
        }
      }
    }
    c[i] = sum;
  }
}

}  // namespace splip::cuda
