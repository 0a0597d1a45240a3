// Internal to CUDA's cosine_topk: a block of threads as the team of topk_select.h.
#pragma once

#include "../topk_select.h"
#include "common.cuh"

namespace splip::cuda {

struct BlockTeam {
  uint32_t* partial;  // shared, [2][2][32]
  int phase;

  template <typename Key, int kCount>
  struct Own {
    Key keys[kCount];
    __device__ __forceinline__ explicit Own(const BlockTeam&) {}
    __device__ __forceinline__ Key* of(int) { return keys; }
  };

  __device__ __forceinline__ int size() const { return blockDim.x; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  template <typename F>
  __device__ __forceinline__ void threads(F f) const {
    f(static_cast<int>(threadIdx.x));
  }
  template <typename F>
  __device__ __forceinline__ void once(F f) const {
    if (threadIdx.x == 0) f();
  }
  template <typename F>
  __device__ __forceinline__ void each(int n, F f) const {
    for (int i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }
  template <typename F>
  __device__ __forceinline__ void each_warp(int n, F f) const {
    for (int i = threadIdx.x / kWarp; i < n; i += blockDim.x / kWarp) f(i);
  }
  template <typename F>
  __device__ __forceinline__ void lead(F f) const {
    if (threadIdx.x % kWarp == 0) f();
  }
  __device__ __forceinline__ int add(int* counter, int n) const { return atomicAdd(counter, n); }
  // The sums of f over all threads, for all. The two halves of `partial` take turns, so that one
  // barrier is enough.
  template <typename F>
  __device__ __forceinline__ topk::Sums sum(F f) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const topk::Sums own = f(static_cast<int>(threadIdx.x));
    uint32_t* const first = partial + phase * 2 * kWarp;
    uint32_t* const second = first + kWarp;
    const uint32_t of_warp[2] = {__reduce_add_sync(kFullMask, own.first),
                                 __reduce_add_sync(kFullMask, own.second)};
    if (lane == 0) {
      first[warp] = of_warp[0];
      second[warp] = of_warp[1];
    }
    __syncthreads();
    const bool there = lane < static_cast<int>(blockDim.x) / kWarp;
    const topk::Sums other = {there ? first[lane] : 0, there ? second[lane] : 0};
    phase ^= 1;
    return {__reduce_add_sync(kFullMask, other.first), __reduce_add_sync(kFullMask, other.second)};
  }
};

}  // namespace splip::cuda
