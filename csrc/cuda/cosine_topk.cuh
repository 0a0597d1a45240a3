// Internal to CUDA's cosine_topk: one pass over gallery rows, and how a warp multiplies.
#pragma once

#include "../mma_layout.h"
#include "../topk_select.h"
#include "common.cuh"

namespace splip::cuda {

// What the passes write and read, per query; all in the caller's scratch memory. Scores here are
// products with the query as it is: the cosine times its norm.
struct Candidates {
  uint64_t* keys;  // [Q, capacity]
  int* counts;     // [Q] rows that passed, also those beyond the capacity
  int* lost;       // [Q] 1 if rows that passed were not even counted
  float* cuts;     // [Q] what a score must reach
  int capacity;
};

// Scan rows sampled(j, step), j < rows. `dense`: the first pass, whose row j goes to key j.
struct Pass {
  const void* queries;
  const void* gallery;
  const uint8_t* allowed;
  Candidates out;
  int64_t rows;
  uint64_t step;
  int Q, D;
  bool dense;
};

// Up to 32 queries at once, straight from memory: any D and alignment.
void scan_stream(const Pass& pass, DType dtype, int device, cudaStream_t stream);
// Blocks of 64 or 128 queries in tiles; rows must be aligned to 16 bytes.
void scan_tiles(const Pass& pass, DType dtype, int tile_queries, int device, cudaStream_t stream);

// 1 / norm of a row from its squares; NaN, which passes no cut, if its score would be -infinity.
__device__ __forceinline__ float inverse_norm(float squares) {
  return squares <= 3.402823466e38f ? 1.0f / fmaxf(sqrtf(squares), kMinNorm) : NAN;
}

// A row that passed: take a slot, keep the key if there is room.
__device__ __forceinline__ void push(const Candidates& out, int q, uint32_t index, float score) {
  const int slot = atomicAdd(out.counts + q, 1);
  if (slot < out.capacity) {
    out.keys[int64_t(q) * out.capacity + slot] = topk::make_key(score, index);
  }
}

// How the tensor cores take a 32-bit register of a row: two 16-bit numbers, or one that is cut to
// tf32. `squares` adds their squares, in float32.
template <typename T>
struct Element;

template <>
struct Element<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    const float low = __uint_as_float(word << 16), high = __uint_as_float(word & 0xffff0000u);
    return fmaf(high, high, fmaf(low, low, sum));
  }
};

template <>
struct Element<__half> {
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    const float low = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    const float high = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
    return fmaf(high, high, fmaf(low, low, sum));
  }
};

template <>
struct Element<float> {
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return round_to_tf32(word); }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    const float value = __uint_as_float(word);
    return fmaf(value, value, sum);
  }
};

}  // namespace splip::cuda
