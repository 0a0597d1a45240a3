// What the instructions of csrc/cuda/ptx.cuh do, by the PTX manual.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "cuda_runtime.h"

namespace splip::cuda {

inline uint4 load_stream(const void* p) {
  on_host::check_global("load_stream", p, 16);
  uint4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(static_cast<const char*>(p) -
                               static_cast<const char*>(on_host::shared_memory()));
}

// ---- barriers in shared memory: 8 bytes, here the phases that are complete, what is pending ----

struct Phases {
  uint32_t complete;
  uint16_t arrivals, pending;
};
inline Phases& phases(unsigned barrier) {
  return *static_cast<Phases*>(on_host::shared_at("a barrier", barrier, sizeof(Phases)));
}
inline void barrier_init(unsigned barrier, int arrivals) {
  phases(barrier) = {0, static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals)};
}
inline void barrier_arrive(unsigned barrier) {
  Phases& p = phases(barrier);
  if (--p.pending == 0) {
    ++p.complete;
    p.pending = p.arrivals;
  }
}
inline void barrier_wait(unsigned barrier, int parity) { on_host::wait_for_phase(barrier, parity); }
inline void sync_some(int barrier, int threads) { on_host::some_barrier(barrier, threads); }

// ---- copies of each thread of the block, by group ----

struct Copy {
  unsigned to;
  const void* from;
  bool use;
};
struct Group {
  std::vector<Copy> copies;
  int barrier = -1;  // to arrive at then
};
// Nothing arrives before it is waited for, but groups with a barrier, which arrive at any time.
std::deque<Group>& copies();

inline void copy_async(unsigned to, const void* from, bool use) {
  on_host::shared_at("copy_async", to, 16);
  on_host::check_global("copy_async", from,
                        16);  // not read if not `use`, but an address all the same
  copies().back().copies.push_back({to, from, use});
}
inline void copy_commit() { copies().emplace_back(); }
inline void barrier_arrive_after_copies(unsigned barrier) {
  copies().back().barrier = static_cast<int>(barrier);
  copies().emplace_back();
}
inline void finish_copies(std::deque<Group>& groups) {
  for (const Copy& c : groups.front().copies) {
    void* to = on_host::shared_at("copy_async", c.to, 16);
    if (c.use) {
      std::memcpy(to, c.from, 16);
    } else {
      std::memset(to, 0, 16);
    }
  }
  const int barrier = groups.front().barrier;
  groups.pop_front();
  if (barrier >= 0) barrier_arrive(static_cast<unsigned>(barrier));
}
template <int kPending>
void copy_wait() {
  auto& groups = copies();
  while (groups.size() > kPending + 1) finish_copies(groups);  // the last one is not committed
}

inline void load_matrices(uint32_t (&r)[4], unsigned address) {
  unsigned all[32];
  on_host::exchange(&address, sizeof address, all);
  const int lane = threadIdx.x % 32;
  for (int m = 0; m < 4; ++m) {
    const void* row = on_host::shared_at("ldmatrix", all[8 * m + lane / 4], 16);
    std::memcpy(&r[m], static_cast<const char*>(row) + lane % 4 * 4, 4);
  }
}

inline uint32_t round_to_tf32(uint32_t word) { return (word + 0x1000u) & 0xffffe000u; }

struct Registers {
  uint32_t a[4], b[2];
};
template <typename T>
auto element(uint32_t word, int i) {
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(word & 0xffffe000u);
  } else if constexpr (sizeof(T) == 2) {
    const auto bits = static_cast<uint16_t>(word >> (16 * i));
    T value;
    std::memcpy(static_cast<void*>(&value), &bits, 2);
    return static_cast<float>(value);
  } else {
    return static_cast<int>(static_cast<int8_t>(word >> (8 * i)));
  }
}

template <typename T, typename Sum>
void mma_sync(Sum (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
              uint32_t b1) {
  const Registers own = {{a0, a1, a2, a3}, {b0, b1}};
  Registers all[32];
  on_host::exchange(&own, sizeof own, all);
  constexpr int kPer = 4 / sizeof(T);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    Sum sum = c[i];
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

// ---- wgmma ----

constexpr bool kHasWgmma = true;

template <int kCount>
void more_registers() {}
template <int kCount>
void fewer_registers() {}
inline void fence_for_wgmma() {}
inline void wgmma_begin() {}
inline void settle(float&) {}
inline void settle(int&) {}

// One factor of a product as the manual's descriptor gives it: bits 0-13 the start, 32-45 the
// distance from eight rows to the next eight, in units of 16 bytes; bits 62-63 the swizzle, 1 for
// 128 bytes, which exchanges bits 4-6 of every address by bits 7-9.
inline const void* factor(uint64_t descriptor, int row, int byte) {
  const auto field = [&](int bit) {
    return static_cast<unsigned>(descriptor >> bit & 0x3fff) * 16;
  };
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) on_host::fail("wgmma: another swizzle");
  unsigned address = field(0) + row / 8 * field(32) + row % 8 * 128 + byte;
  address ^= (address >> 7 & 7) << 4;
  return on_host::shared_at("wgmma", address, 16);
}
// 32 bytes of a row of a factor, as numbers.
template <typename T, typename Sum>
void fetch(uint64_t descriptor, int row, Sum (&out)[32 / sizeof(T)]) {
  for (int half = 0; half < 2; ++half) {
    T values[16 / sizeof(T)];
    std::memcpy(static_cast<void*>(values), factor(descriptor, row, 16 * half), 16);
    for (unsigned i = 0; i < 16 / sizeof(T); ++i) {
      Sum value = static_cast<Sum>(values[i]);
      if constexpr (std::is_same_v<T, float>) {  // tf32: the rest of the bits is not looked at
        value = __uint_as_float(__float_as_uint(value) & 0xffffe000u);
      }
      out[half * 16 / sizeof(T) + i] = value;
    }
  }
}

// Products that a thread has begun: each group is done at its commit or not before it is waited
// for, whichever comes.
struct Products {
  std::vector<std::function<void()>> begun;
  std::deque<std::vector<std::function<void()>>> groups;
};
Products& products();

template <typename T, typename Sum>
void wgmma(Sum (&c)[128], uint64_t a, uint64_t b, bool accumulate) {
  const int thread = threadIdx.x % 128;
  Sum* out = c;
  products().begun.push_back([=] {
    constexpr int kPer = 32 / sizeof(T);
    for (int half = 0; half < 2; ++half) {  // element d of a thread: its row by bit 1, then pairs
      Sum x[kPer], y[kPer];
      fetch<T>(a, thread / 32 * 16 + thread % 32 / 4 + 8 * half, x);
      for (int pair = 0; pair < 32; ++pair) {
        for (int j = 0; j < 2; ++j) {
          fetch<T>(b, 8 * pair + thread % 4 * 2 + j, y);
          Sum& to = out[4 * pair + 2 * half + j];
          Sum sum = accumulate ? to : Sum(0);
          for (int k = 0; k < kPer; ++k) sum += x[k] * y[k];
          to = sum;
        }
      }
    }
  });
}
inline void wgmma_commit() {
  auto& own = products();
  bool first = true;  // of those that are not done yet
  for (const auto& group : own.groups) first = first && group.empty();
  own.groups.push_back(std::move(own.begun));
  own.begun.clear();
  if (first && on_host::coin()) {
    for (auto& product : own.groups.back()) product();
    own.groups.back().clear();
  }
}
template <int kPending>
void wgmma_wait() {
  auto& groups = products().groups;
  while (on_host::coin()) on_host::pause();  // who has let others overwrite the factors will see it
  while (groups.size() > kPending) {
    for (auto& product : groups.front()) product();
    groups.pop_front();
  }
}

}  // namespace splip::cuda
