// Internal to CUDA's cosine_topk: one pass over gallery rows, and how a warp multiplies.
#pragma once

#include "../mma_layout.h"
#include "../topk_select.h"
#include "common.cuh"

namespace splip::cuda {

// What the passes write and read, per query; all in the caller's scratch memory. Scores here are
// products with the query as it is: the cosine times its norm. Of rows in 8 bits they are products
// of unit vectors, less what the gallery's mean adds to all scores of a query alike, plus the row's
// error.
struct Candidates {
  uint64_t* keys;  // [Q, capacity]
  int* counts;     // [Q] rows that passed, also those beyond the capacity
  float* cuts;     // [Q] thresholds: what a score must reach
  int capacity;
};

// Scan rows sampled(j, step), j < rows. `dense`: the first pass, whose row j goes to key j.
struct Pass {
  const void* queries;  // [Q, D]; in 8 bits [Q, parts, D]
  const void* gallery;  // [N, D]
  const uint8_t* allowed;
  Candidates out;
  int64_t rows;
  uint64_t step;
  int Q, D;
  bool dense;
  // What a row's products are multiplied with: of rows in 8 bits their scale, of others 1 / norm,
  // or null, and norms are summed on the way. NaN: a row without a score.
  const float* row_scale;  // [N]
  // Of rows in 8 bits; error may be null.
  const float* row_error;    // [N]
  const float* query_scale;  // [Q]
};

// Up to 32 queries at once, straight from memory: any D and alignment.
void scan_stream(const Pass& pass, DType dtype, int device, cudaStream_t stream);
// Tiles of 64 or 128 queries and 128 or 256 rows; rows must be aligned to 16 bytes. 256 rows need
// more shared memory than some GPUs have: then 128. One source file each.
void scan_tiles_f32(const Pass& pass, int tile_queries, int tile_rows, int device,
                    cudaStream_t stream);
void scan_tiles_f16(const Pass& pass, int tile_queries, int tile_rows, int device,
                    cudaStream_t stream);
void scan_tiles_bf16(const Pass& pass, int tile_queries, int tile_rows, int device,
                     cudaStream_t stream);
void scan_tiles_i8(const Pass& pass, int tile_queries, int tile_rows, int device,
                   cudaStream_t stream);
// Tiles of 128 queries and 256 rows by wgmma, for rows aligned to 16 bytes; not for a dense pass.
void scan_wgmma(const Pass& pass, DType dtype, int device, cudaStream_t stream);
constexpr int64_t kResidentRow = 1024;  // bytes of its queries that stay in shared memory

// 1 / norm of a row from its squares; NaN, which passes no cut, if its score would be -infinity.
__device__ __forceinline__ float inverse_norm(float squares) {
  return squares <= 3.402823466e38f ? 1.0f / fmaxf(sqrtf(squares), kMinNorm) : NAN;
}

// What a row's products are multiplied with, and what is added to those of a row in 8 bits.
struct RowFactors {
  float scale, error;
};
__device__ __forceinline__ RowFactors row_factors(const Pass& p, int64_t index) {
  return {p.row_scale[index], p.row_error == nullptr ? 0.0f : p.row_error[index]};
}

// The same of row j of the pass; NaN if it may not be a result.
__device__ __forceinline__ RowFactors factors_of(const Pass& p, int64_t j) {
  const int64_t index = topk::sampled(j, p.step);
  const bool use = j < p.rows && (p.allowed == nullptr || p.allowed[index] != 0);
  return use ? row_factors(p, index) : RowFactors{NAN, 0};
}

// A row that passed: take a slot, keep the key if there is room.
__device__ __forceinline__ void push(const Candidates& out, int q, uint32_t index, float score) {
  const int slot = atomicAdd(out.counts + q, 1);
  if (slot < out.capacity) {
    out.keys[int64_t(q) * out.capacity + slot] = topk::make_key(score, index);
  }
}

// Scores of a tile that passed, on their way to memory: a slot there takes a round trip to the L2
// cache, for which the warps that multiply should not wait. What finds the queue full waits.
template <int kRoom>
struct Queue {
  int query[kRoom];
  uint32_t index[kRoom];
  float score[kRoom];
  int count;

  __device__ __forceinline__ void add(const Candidates& out, int q, uint32_t row, float value) {
    const int slot = atomicAdd(&count, 1);
    if (slot < kRoom) {
      query[slot] = q;
      index[slot] = row;
      score[slot] = value;
    } else {
      push(out, q, row, value);
    }
  }
  // By `threads` threads, between two barriers.
  __device__ __forceinline__ void drain(const Candidates& out, int thread, int threads) {
    const int n = count < kRoom ? count : kRoom;
    for (int i = thread; i < n; i += threads) push(out, query[i], index[i], score[i]);
  }
};

// A ring of stages in shared memory as one of two sides goes through it.
struct Ring {
  int stage, parity;
  __device__ __forceinline__ void next(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// How the tensor cores take a 32-bit register of a row: four 8-bit numbers, two of 16 bits, or one
// that is cut to tf32. `squares` adds their squares, in float32; rows in 8 bits bring factors that
// take the norm's place. A query in 8 bits may come in two parts, the second 1/256 of the first.
template <typename T>
struct Element;

template <>
struct Element<int8_t> {
  using Sum = int;
  static constexpr bool kFactors = true;
  static constexpr int kMostParts = 2;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ float squares(uint32_t, float sum) { return sum; }
};

template <>
struct Element<__nv_bfloat16> {
  using Sum = float;
  static constexpr bool kFactors = false;
  static constexpr int kMostParts = 1;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    const float low = __uint_as_float(word << 16), high = __uint_as_float(word & 0xffff0000u);
    return fmaf(high, high, fmaf(low, low, sum));
  }
};

template <>
struct Element<__half> {
  using Sum = float;
  static constexpr bool kFactors = false;
  static constexpr int kMostParts = 1;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return word; }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    const float low = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    const float high = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
    return fmaf(high, high, fmaf(low, low, sum));
  }
};

template <>
struct Element<float> {
  using Sum = float;
  static constexpr bool kFactors = false;
  static constexpr int kMostParts = 1;
  static __device__ __forceinline__ uint32_t operand(uint32_t word) { return round_to_tf32(word); }
  static __device__ __forceinline__ float squares(uint32_t word, float sum) {
    const float value = __uint_as_float(word);
    return fmaf(value, value, sum);
  }
};

// The score of a sum of products: rows of floats have a factor, rows in 8 bits an error too.
template <typename T>
__device__ __forceinline__ float score_of(typename Element<T>::Sum sum, float query_scale,
                                          float factor, float error) {
  if constexpr (Element<T>::kFactors) {
    return fmaf(static_cast<float>(sum) * query_scale, factor, error);
  } else {
    return sum * factor;
  }
}

// Scores that a thread compares with a threshold before it branches: a branch for each would make
// the loop larger than the instruction cache, and every warp would wait for its code.
constexpr int kTogether = 16;

// The largest of them; NaN counts for nothing.
__device__ __forceinline__ float largest(const float (&score)[kTogether]) {
  float most[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    most[i] = fmaxf(fmaxf(score[i], score[i + 4]), fmaxf(score[i + 8], score[i + 12]));
  }
  return fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
}

// keep(i, score[i]) for those whose bit is set: seldom any, so the code is small, not fast.
template <typename Keep>
__device__ __forceinline__ void keep_some(uint32_t passed, const float (&score)[kTogether],
                                          Keep keep) {
  while (passed != 0) {
    const int i = __ffs(static_cast<int>(passed)) - 1;
    passed &= passed - 1;
    float value = score[0];  // a register has no index: choose by comparing
#pragma unroll
    for (int j = 1; j < kTogether; ++j) value = i == j ? score[j] : value;
    keep(i, value);
  }
}

}  // namespace splip::cuda
