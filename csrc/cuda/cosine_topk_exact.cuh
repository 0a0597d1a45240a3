// Internal to CUDA's cosine_topk: scores in double, one row and one query to a warp.
#pragma once

#include "../inverse_length.h"
#include "../topk_select.h"
#include "common.cuh"

namespace splip::cuda {

// Eight elements of a row from element 8 * chunk on, zero past the end.
template <typename T>
__device__ __forceinline__ void load_eight(const T* row, int chunk, int D, bool vector,
                                           float (&out)[8]) {
  if (vector && 8 * chunk + 8 <= D) {
    union {
      uint4 words[8 * sizeof(T) / 16];
      T values[8];
    } loaded;
#pragma unroll
    for (int i = 0; i < int(8 * sizeof(T) / 16); ++i) {
      loaded.words[i] = __ldg(reinterpret_cast<const uint4*>(row + 8 * chunk) + i);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = load(loaded.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = 8 * chunk + i < D ? load(row[8 * chunk + i]) : 0.0f;
  }
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    v = fmaxf(v, __shfl_xor_sync(kFullMask, v, offset));
  }
  return v;
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kFullMask, v, offset);
  return v;
}

// The cosine of one query with any row, summed in double in an order that depends on D alone: equal
// rows have equal scores. Called by whole warps.
template <typename T>
struct ExactScore {
  const T* query;
  const T* gallery;  // null: the rows are at hand in 8 bits only
  EightBitRows eight_bit;
  double query_scale;
  uint32_t best;  // the order of the best score that the query can have, if that is known
  int D;
  bool vector;

  __device__ __forceinline__ float operator()(uint32_t index) const {
    return gallery != nullptr ? of_row(index) : of_eight_bits(index);
  }

  __device__ __forceinline__ float of_eight_bits(uint32_t index) const {
    const int8_t* row = eight_bit.rows + int64_t(index) * eight_bit.pitch;
    const double scale = static_cast<double>(eight_bit.scale[index]);
    double dot = 0;
    for (int chunk = threadIdx.x % kWarp; 8 * chunk < D; chunk += kWarp) {
      float a[8];
      load_eight(query, chunk, D, vector, a);
      union {
        uint2 words;
        int8_t values[8];
      } b;
      b.words = __ldg(reinterpret_cast<const uint2*>(row + 8 * chunk));
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const double centre = 8 * chunk + i < D ? eight_bit.centre[8 * chunk + i] : 0.0f;
        dot = fma(static_cast<double>(a[i]), fma(scale, static_cast<double>(b.values[i]), centre),
                  dot);
      }
    }
    const double score = warp_sum(dot) * query_scale;
    return scale == scale && query_scale > 0 ? static_cast<float>(score) : -INFINITY;
  }

  __device__ __forceinline__ float of_row(uint32_t index) const {
    const T* row = gallery + int64_t(index) * D;
    double dot = 0, squares = 0;
    for (int chunk = threadIdx.x % kWarp; 8 * chunk < D; chunk += kWarp) {
      float a[8], b[8];
      load_eight(query, chunk, D, vector, a);
      load_eight(row, chunk, D, vector, b);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        dot = fma(static_cast<double>(a[i]), static_cast<double>(b[i]), dot);
        squares = fma(static_cast<double>(b[i]), static_cast<double>(b[i]), squares);
      }
    }
    const double scale = inverse_length(warp_sum(squares)) * query_scale;
    const double score = warp_sum(dot) * scale;
    return scale > 0 ? static_cast<float>(score) : -INFINITY;
  }
};

template <typename T>
__device__ __forceinline__ double squared_length(const T* row, int D, bool vector) {
  double squares = 0;
  for (int chunk = threadIdx.x % kWarp; 8 * chunk < D; chunk += kWarp) {
    float a[8];
    load_eight(row, chunk, D, vector, a);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      squares = fma(static_cast<double>(a[i]), static_cast<double>(a[i]), squares);
    }
  }
  return warp_sum(squares);
}

template <typename T>
__device__ __forceinline__ ExactScore<T> exact_score(const CosineTopk& a, int q, bool vector) {
  const auto* query = static_cast<const T*>(a.queries) + int64_t(q) * a.D;
  const int D = static_cast<int>(a.D);
  const double squares = squared_length(query, D, vector), scale = inverse_length(squares);
  uint32_t best = topk::kNoBest;
  if (!(scale > 0)) best = topk::ordered(-INFINITY);
  if (squares == 0) best = topk::ordered(0);
  return {query, static_cast<const T*>(a.gallery), a.eight_bit, scale, best, D, vector};
}

}  // namespace splip::cuda
