// CUDA prompt_layernorm: one warp per row of the new sequence, which it holds in registers.
// Bound by memory: (1 read + 2 writes) * B * T * D * sizeof(T) forward, (3 reads + 1 write)
// backward, 16 bytes a lane at a time. Rows that are not a multiple of 16 bytes or too wide for the
// registers are refused: splip.ops sends them to PyTorch.
#include "common.cuh"

namespace splip::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kMostVectors = static_cast<int>(kNormBytes / (kWarp * 16));  // of 16 bytes a lane
constexpr int kRowBlocks = 2;  // of the backward pass, per multiprocessor: they all run at once,
                               // and each leaves one partial sum
constexpr int kPromptSplits = 32;  // blocks that share the batch for one prompt
constexpr int kSumGroups = 16;     // groups of threads that share the partial sums of a column

// Where row t of image b comes from: row `source` of x, or prompt t - 1 if that is negative.
struct Row {
  int64_t b, t, source;
};

__device__ __forceinline__ Row row_of(int64_t row, int64_t tokens_per, int64_t P, int64_t R) {
  int64_t b, t;
  if ((row | tokens_per) >> 32 == 0) {  // a division of 32 bits takes a fraction of the time
    b = static_cast<uint32_t>(row) / static_cast<uint32_t>(tokens_per);
    t = static_cast<uint32_t>(row) % static_cast<uint32_t>(tokens_per);
  } else {
    b = row / tokens_per;
    t = row % tokens_per;
  }
  return {b, t, t == 0 ? 0 : (t <= P ? -1 : t - P + R)};
}

// Sixteen bytes of a row as float32, and back.
template <typename T>
struct Vector {
  static constexpr int kCount = 16 / sizeof(T);
  union {
    uint4 words;
    T values[kCount];
  };
  __device__ __forceinline__ Vector() : words{0, 0, 0, 0} {}
  __device__ __forceinline__ float get(int i) const { return load(values[i]); }
  __device__ __forceinline__ void set(int i, float v) { store(&values[i], v); }
};

// kCount floats of gamma or beta.
template <int kCount>
struct Floats {
  float values[kCount];
  __device__ __forceinline__ explicit Floats(const float* p) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = __ldg(reinterpret_cast<const float4*>(p + i));
      values[i] = v.x;
      values[i + 1] = v.y;
      values[i + 2] = v.z;
      values[i + 3] = v.w;
    }
  }
};

// A lane's share of a row: vectors lane, lane + 32, ..; zero past the end.
template <typename T, int kVectors>
__device__ __forceinline__ void load_row(const T* row, int vectors, int lane,
                                         Vector<T> (&out)[kVectors]) {
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * kWarp + lane;
    if (row != nullptr && at < vectors) out[v].words = load_stream(row + at * Vector<T>::kCount);
  }
}

template <typename T>
__device__ __forceinline__ void store_vector(T* row, int at, const Vector<T>& v) {
  *reinterpret_cast<uint4*>(row + at * Vector<T>::kCount) = v.words;
}

// `vectors`: of all the rows.
template <typename T>
__device__ __forceinline__ void clear_rows(T* rows, int64_t vectors, int lane) {
  for (int64_t at = lane; at < vectors; at += kWarp) {
    reinterpret_cast<uint4*>(rows)[at] = {0, 0, 0, 0};
  }
}

template <typename T, int kVectors>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    forward_kernel(PromptLayerNorm a, int64_t rows, int64_t tokens_per) {
  constexpr int kCount = Vector<T>::kCount;
  const int lane = threadIdx.x % kWarp, vectors = static_cast<int>(a.D) / kCount;
  const auto* x = static_cast<const T*>(a.x);
  const auto* prompts = static_cast<const T*>(a.prompts);
  const float scale = 1.0f / a.D;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock;
  for (int64_t row = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp; row < rows;
       row += stride) {
    const Row from = row_of(row, tokens_per, a.P, a.R);
    const T* in = from.source < 0 ? prompts + ((a.G == 1 ? 0 : from.b) * a.P + from.t - 1) * a.D
                                  : x + (from.b * a.L + from.source) * a.D;
    Vector<T> values[kVectors];
    load_row(in, vectors, lane, values);
    float sum = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum += values[v].get(i);
    }
    const float mean = warp_sum(sum) * scale;
    // Centred second pass: the one-pass formula loses digits when the mean is large.
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v * kWarp + lane >= vectors) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float centred = values[v].get(i) - mean;
        squares += centred * centred;
      }
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) * scale + a.eps);
    if (lane == 0) {
      a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
    T* tokens = static_cast<T*>(a.tokens) + row * a.D;
    T* normed = static_cast<T*>(a.normed) + row * a.D;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kWarp + lane;
      if (at >= vectors) continue;
      const Floats<kCount> gamma(a.gamma + at * kCount), beta(a.beta + at * kCount);
      Vector<T> out;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        out.set(i, (values[v].get(i) - mean) * rstd * gamma.values[i] + beta.values[i]);
      }
      store_vector(tokens, at, values[v]);
      store_vector(normed, at, out);
    }
  }
}

// Partial sums of the backward pass in the caller's scratch memory. `affine` [parts, 2, D]: d_gamma
// and d_beta, first of the rows' blocks, then of the shared prompts'; `prompts` [P, splits, D].
struct Partials {
  float* affine;
  float* prompts;
  int row_blocks;
};

// The warps add to the block's sums [2 or 3, D] one after another: always the same order. kPrompts:
// kVectors, or 1 if there are no prompts to sum.
template <int kVectors, int kCount, int kPrompts>
__device__ __forceinline__ void add_in_turn(float* sums, int D, int vectors,
                                            const float (&d_gamma)[kVectors][kCount],
                                            const float (&d_beta)[kVectors][kCount],
                                            const float (&d_prompt)[kPrompts][kCount]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int turn = 0; turn < kWarpsPerBlock; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int at = v * kWarp + lane;
        if (at >= vectors) continue;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const int d = at * kCount + j;
          sums[d] = turn == 0 ? d_gamma[v][j] : sums[d] + d_gamma[v][j];
          sums[D + d] = turn == 0 ? d_beta[v][j] : sums[D + d] + d_beta[v][j];
          if constexpr (kPrompts == kVectors) {
            const float value = d_prompt[v][j];
            sums[2 * D + d] = turn == 0 ? value : sums[2 * D + d] + value;
          }
        }
      }
    }
    __syncthreads();
  }
}

// A block's sums to its part of the scratch memory.
__device__ __forceinline__ void leave(const float* sums, int count, float* out) {
  for (int d = threadIdx.x; d < count; d += kWarp * kWarpsPerBlock) out[d] = sums[d];
}

// Gradients of rows, and the sums over them that the parameters need. Not kShared: every row goes
// to d_x, or to d_prompts if each image has prompts of its own; rows of shared prompts are left
// out. kShared: block (p, split) adds the rows of prompt p over its share of the batch.
template <typename T, int kVectors, bool kShared>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, 2)
    backward_kernel(PromptLayerNormBackward a, Partials out, int64_t rows, int64_t tokens_per) {
  constexpr int kCount = Vector<T>::kCount;
  extern __shared__ float sums[];  // [2 or 3, D]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int D = static_cast<int>(a.D), vectors = D / kCount;
  const float scale = 1.0f / a.D;
  float d_gamma[kVectors][kCount] = {}, d_beta[kVectors][kCount] = {};
  float d_prompt[kShared ? kVectors : 1][kCount] = {};

  const int64_t p = kShared ? blockIdx.x / kPromptSplits : 0;
  const int64_t split = kShared ? blockIdx.x % kPromptSplits : 0;
  // Not kShared: rows; kShared: images.
  const int64_t first =
      kShared ? a.B * split / kPromptSplits + warp : int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  const int64_t last = kShared ? a.B * (split + 1) / kPromptSplits : rows;
  const int64_t stride = kShared ? kWarpsPerBlock : int64_t(gridDim.x) * kWarpsPerBlock;
  for (int64_t i = first; i < last; i += stride) {
    const int64_t row = kShared ? i * tokens_per + 1 + p : i;
    const Row from = kShared ? Row{i, 1 + p, -1} : row_of(row, tokens_per, a.P, a.R);
    if (!kShared && from.source < 0 && a.G == 1) continue;
    const float mean = a.mean[row], rstd = a.rstd[row];
    Vector<T> tokens[kVectors], d_normed[kVectors], d_tokens[kVectors];
    const auto row_at = [&](const void* base) {
      return base == nullptr ? nullptr : static_cast<const T*>(base) + row * a.D;
    };
    load_row(row_at(a.tokens), vectors, lane, tokens);
    load_row(row_at(a.d_normed), vectors, lane, d_normed);
    load_row(row_at(a.d_tokens), vectors, lane, d_tokens);
    // mean(g) and mean(g * xhat), g = d_normed * gamma: what the norm takes out of the gradient.
    float sum = 0, dot = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kWarp + lane;
      if (at >= vectors) continue;
      const Floats<kCount> gamma(a.gamma + at * kCount);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const float d = d_normed[v].get(j), xhat = (tokens[v].get(j) - mean) * rstd;
        const float g = d * gamma.values[j];
        sum += g;
        dot += g * xhat;
        d_gamma[v][j] += d * xhat;
        d_beta[v][j] += d;
      }
    }
    const float mean_g = warp_sum(sum) * scale, mean_gx = warp_sum(dot) * scale;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int at = v * kWarp + lane;
      if (at >= vectors) continue;
      const Floats<kCount> gamma(a.gamma + at * kCount);
      Vector<T> d_x;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const float xhat = (tokens[v].get(j) - mean) * rstd;
        const float g = d_normed[v].get(j) * gamma.values[j];
        const float value = d_tokens[v].get(j) + rstd * (g - mean_g - xhat * mean_gx);
        if (kShared) {
          d_prompt[v % (kShared ? kVectors : 1)][j] += value;
        } else if (from.source < 0) {
          a.d_prompts[(from.b * a.P + from.t - 1) * a.D + at * kCount + j] = value;
        } else {
          d_x.set(j, value);
        }
      }
      if (!kShared && from.source >= 0) {
        store_vector(static_cast<T*>(a.d_x) + (from.b * a.L + from.source) * a.D, at, d_x);
      }
    }
    if (!kShared && from.t == 0) {  // the rows that were left out do not reach the output
      clear_rows(static_cast<T*>(a.d_x) + (from.b * a.L + 1) * a.D, a.R * vectors, lane);
    }
  }

  add_in_turn(sums, D, vectors, d_gamma, d_beta, d_prompt);
  leave(sums, 2 * D, out.affine + (kShared ? out.row_blocks : 0) * 2 * a.D + blockIdx.x * 2 * a.D);
  if (kShared) leave(sums + 2 * D, D, out.prompts + blockIdx.x * a.D);
}

// out[g, d] = sum over i of parts[g, i, d], in a fixed order: kSumGroups threads share a column.
// Column d of group g starts at parts + g * parts_per * row + d; blockIdx.y is g.
__global__ void __launch_bounds__(kWarp* kSumGroups)
    sum_parts_kernel(const float* parts, float* out, float* out_second, int parts_per, int64_t row,
                     int64_t D) {
  __shared__ float sums[kSumGroups][kWarp];
  const int lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
  const int64_t d = int64_t(blockIdx.x) * kWarp + lane, g = blockIdx.y;
  float sum = 0;
  if (d < row) {
    const float* column = parts + g * parts_per * row + d;
    for (int i = group; i < parts_per; i += kSumGroups) sum += column[i * row];
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group != 0 || d >= row) return;
  for (int i = 1; i < kSumGroups; ++i) sum += sums[i][lane];
  // A row of d_gamma and d_beta is one of 2 D; one of a prompt is D.
  if (d < D) {
    out[g * D + d] = sum;
  } else {
    out_second[d - D] = sum;
  }
}

void check_rows(int64_t D, int64_t element, int64_t most,
                std::initializer_list<const void*> pointers) {
  SPLIP_CHECK(D * element % 16 == 0 && D <= most,
              "rows must be a multiple of 16 bytes and at most ", most, " wide, got ", D);
  for (const void* p : pointers) SPLIP_CHECK(aligned(p, 16), "rows must be aligned to 16 bytes");
}

template <typename T, int kVectors>
void launch_vectors(const PromptLayerNorm& a, int64_t rows, int64_t tokens_per,
                    cudaStream_t stream) {
  const unsigned grid = grid_for((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  forward_kernel<T, kVectors><<<grid, kWarp * kWarpsPerBlock, 0, stream>>>(a, rows, tokens_per);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch(const PromptLayerNorm& a, cudaStream_t stream) {
  const int64_t tokens_per = a.L - a.R + a.P, rows = a.B * tokens_per;
  if (rows == 0) return;  // an empty grid is an error in CUDA
  const int64_t bytes = a.D * static_cast<int64_t>(sizeof(T));
  check_rows(a.D, sizeof(T), kNormBytes / sizeof(T),
             {a.x, a.prompts, a.gamma, a.beta, a.tokens, a.normed});
  if (bytes <= 2 * kWarp * 16) return launch_vectors<T, 2>(a, rows, tokens_per, stream);
  if (bytes <= 4 * kWarp * 16) return launch_vectors<T, 4>(a, rows, tokens_per, stream);
  launch_vectors<T, kMostVectors>(a, rows, tokens_per, stream);
}

// Blocks of the backward pass over rows: the same on every call, so that sums do not change.
int row_blocks(int64_t rows, int device) {
  const int64_t wanted = (rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  const int most = kRowBlocks * multiprocessors(device);
  return wanted < most ? static_cast<int>(wanted) : most;
}

template <typename T, int kVectors>
void launch_backward_vectors(const PromptLayerNormBackward& a, int64_t rows, int64_t tokens_per,
                             int device, cudaStream_t stream) {
  const int prompt_blocks = a.G == 1 ? static_cast<int>(a.P) * kPromptSplits : 0;
  Partials partials{};
  partials.row_blocks = row_blocks(rows, device);
  partials.affine = a.scratch;
  partials.prompts = a.scratch + (partials.row_blocks + prompt_blocks) * 2 * a.D;
  const int row_bytes = static_cast<int>(a.D * sizeof(float));
  constexpr int kThreads = kWarp * kWarpsPerBlock;
  backward_kernel<T, kVectors, false>
      <<<partials.row_blocks, kThreads, 2 * row_bytes, stream>>>(a, partials, rows, tokens_per);
  SPLIP_CUDA_CHECK(cudaGetLastError());
  if (prompt_blocks > 0) {
    backward_kernel<T, kVectors, true>
        <<<prompt_blocks, kThreads, 3 * row_bytes, stream>>>(a, partials, rows, tokens_per);
    SPLIP_CUDA_CHECK(cudaGetLastError());
    const dim3 grid(static_cast<unsigned>((a.D + kWarp - 1) / kWarp), static_cast<unsigned>(a.P));
    sum_parts_kernel<<<grid, kWarp * kSumGroups, 0, stream>>>(partials.prompts, a.d_prompts,
                                                              nullptr, kPromptSplits, a.D, a.D);
    SPLIP_CUDA_CHECK(cudaGetLastError());
  }
  sum_parts_kernel<<<static_cast<unsigned>((2 * a.D + kWarp - 1) / kWarp), kWarp * kSumGroups, 0,
                     stream>>>(partials.affine, a.d_gamma, a.d_beta,
                               partials.row_blocks + prompt_blocks, 2 * a.D, a.D);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch_backward(const PromptLayerNormBackward& a, int device, cudaStream_t stream) {
  const int64_t tokens_per = a.L - a.R + a.P, rows = a.B * tokens_per;
  SPLIP_CHECK(rows > 0, "there is no row to sum over");
  check_rows(a.D, sizeof(T), kNormGradients, {a.d_tokens, a.d_normed, a.tokens, a.gamma, a.d_x});
  constexpr int kMost = static_cast<int>(kNormGradients * sizeof(T) / (kWarp * 16));
  if (2 * a.D <= kNormGradients) {
    return launch_backward_vectors<T, kMost / 2>(a, rows, tokens_per, device, stream);
  }
  launch_backward_vectors<T, kMost>(a, rows, tokens_per, device, stream);
}

}  // namespace

int64_t prompt_layernorm_scratch(int64_t B, int64_t L, int64_t P, int64_t G, int64_t D, int64_t R,
                                 int device) {
  const int64_t prompt_blocks = G == 1 ? P * kPromptSplits : 0;
  const int64_t parts = row_blocks(B * (L - R + P), device) + prompt_blocks;
  return D * (2 * parts + prompt_blocks);
}

void prompt_layernorm(const PromptLayerNorm& a, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch<float>(a, s);
    case DType::f16:
      return launch<__half>(a, s);
    case DType::bf16:
      return launch<__nv_bfloat16>(a, s);
    default:
      SPLIP_CHECK(false, "prompt_layernorm takes float32, float16 or bfloat16");
  }
}

void prompt_layernorm_backward(const PromptLayerNormBackward& a, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch_backward<float>(a, device, s);
    case DType::f16:
      return launch_backward<__half>(a, device, s);
    case DType::bf16:
      return launch_backward<__nv_bfloat16>(a, device, s);
    default:
      SPLIP_CHECK(false, "prompt_layernorm takes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
