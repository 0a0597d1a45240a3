// CUDA prompt_layernorm: one warp per output row.
// Bound by memory: (1 read + 2 writes) * B * T * D * sizeof(T); the passes after the first over a
// row hit the L1 cache.
#include "common.cuh"

namespace splip::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kColumns = 128;  // threads of the kernels that sum down a column

// Row t of the new sequence comes from row source_row of x, or is prompt t - 1 if that is negative.
__device__ __forceinline__ int64_t source_row(int64_t t, int64_t P, int64_t R) {
  if (t == 0) return 0;
  return t <= P ? -1 : t - P + R;
}

template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    prompt_layernorm_kernel(const T* x, const T* prompts, const float* gamma, const float* beta,
                            T* tokens, T* normed, float* mean_out, float* rstd_out, int64_t rows,
                            int64_t tokens_per, int64_t L, int64_t P, int64_t G, int64_t D,
                            int64_t R, float eps) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock;
  for (int64_t row = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp; row < rows;
       row += stride) {
    const int64_t b = row / tokens_per, t = row % tokens_per;
    const int64_t source = source_row(t, P, R);
    const T* in =
        source < 0 ? prompts + ((G == 1 ? 0 : b) * P + t - 1) * D : x + (b * L + source) * D;
    float sum = 0;
    for (int64_t d = lane; d < D; d += kWarp) sum += load(in[d]);
    const float mean = warp_sum(sum) / D;
    // Centred second pass: the one-pass formula loses digits when the mean is large.
    float squares = 0;
    for (int64_t d = lane; d < D; d += kWarp) {
      const float centred = load(in[d]) - mean;
      squares += centred * centred;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / D + eps);
    if (lane == 0) {
      mean_out[row] = mean;
      rstd_out[row] = rstd;
    }
    for (int64_t d = lane; d < D; d += kWarp) {
      const T value = in[d];
      tokens[row * D + d] = value;
      store(normed + row * D + d, (load(value) - mean) * rstd * gamma[d] + beta[d]);
    }
  }
}

// The two sums over a row that LayerNorm's backward pass needs: mean(g) and mean(g * xhat),
// g = d_normed * gamma.
struct RowSums {
  float mean_g, mean_gx;
};

template <typename T>
__device__ RowSums row_sums(const T* d_normed, const T* tokens, const float* gamma, float mean,
                            float rstd, int64_t D, int lane) {
  float sum = 0, dot = 0;
  for (int64_t d = lane; d < D; d += kWarp) {
    const float g = load(d_normed[d]) * gamma[d];
    sum += g;
    dot += g * (load(tokens[d]) - mean) * rstd;
  }
  return {warp_sum(sum) / D, warp_sum(dot) / D};
}

template <typename T>
__device__ __forceinline__ float token_gradient(const T* d_tokens, const T* d_normed,
                                                const T* tokens, const float* gamma, float mean,
                                                float rstd, RowSums sums, int64_t at, int64_t d) {
  float out = d_tokens ? load(d_tokens[at]) : 0.0f;
  if (d_normed) {
    const float xhat = (load(tokens[at]) - mean) * rstd;
    out += rstd * (load(d_normed[at]) * gamma[d] - sums.mean_g - xhat * sums.mean_gx);
  }
  return out;
}

// d_x, and d_prompts when every image has prompts of its own (G = B).
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    d_rows_kernel(const T* d_tokens, const T* d_normed, const T* tokens, const float* gamma,
                  const float* means, const float* rstds, T* d_x, float* d_prompts, int64_t rows,
                  int64_t tokens_per, int64_t L, int64_t P, bool shared, int64_t D, int64_t R) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock;
  for (int64_t row = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp; row < rows;
       row += stride) {
    const int64_t b = row / tokens_per, t = row % tokens_per;
    const int64_t source = source_row(t, P, R);
    if (source < 0 && shared) continue;
    const float mean = means[row], rstd = rstds[row];
    RowSums sums = {0, 0};
    if (d_normed) {
      sums = row_sums(d_normed + row * D, tokens + row * D, gamma, mean, rstd, D, lane);
    }
    for (int64_t d = lane; d < D; d += kWarp) {
      const float value =
          token_gradient(d_tokens, d_normed, tokens, gamma, mean, rstd, sums, row * D + d, d);
      if (source < 0) {
        d_prompts[(b * P + t - 1) * D + d] = value;
      } else {
        store(d_x + (b * L + source) * D + d, value);
      }
    }
    if (t == 0) {  // the rows that were left out do not reach the output
      for (int64_t d = lane; d < R * D; d += kWarp) store(d_x + (b * L + 1) * D + d, 0.0f);
    }
  }
}

// d_prompts of prompts shared by the batch: one warp per prompt walks the batch in order.
template <typename T>
__global__ void __launch_bounds__(kWarp)
    d_shared_prompts_kernel(const T* d_tokens, const T* d_normed, const T* tokens,
                            const float* gamma, const float* means, const float* rstds,
                            float* d_prompts, int64_t B, int64_t tokens_per, int64_t D) {
  const int lane = threadIdx.x;
  const int64_t p = blockIdx.x;
  float* out = d_prompts + p * D;
  for (int64_t d = lane; d < D; d += kWarp) out[d] = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t row = b * tokens_per + 1 + p;
    const float mean = means[row], rstd = rstds[row];
    RowSums sums = {0, 0};
    if (d_normed) {
      sums = row_sums(d_normed + row * D, tokens + row * D, gamma, mean, rstd, D, lane);
    }
    for (int64_t d = lane; d < D; d += kWarp) {
      out[d] += token_gradient(d_tokens, d_normed, tokens, gamma, mean, rstd, sums, row * D + d, d);
    }
  }
}

// Partial sums of d_gamma and d_beta: blockIdx.y is the chunk of rows, threads are columns.
template <typename T>
__global__ void __launch_bounds__(kColumns)
    d_affine_kernel(const T* d_normed, const T* tokens, const float* means, const float* rstds,
                    float* scratch, int64_t rows, int64_t D) {
  const int64_t d = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  if (d >= D) return;
  const int64_t chunk = blockIdx.y;
  const int64_t first = rows * chunk / kLayerNormChunks;
  const int64_t last = rows * (chunk + 1) / kLayerNormChunks;
  float d_gamma = 0, d_beta = 0;
  for (int64_t row = first; d_normed && row < last; ++row) {
    const float g = load(d_normed[row * D + d]);
    d_gamma += g * (load(tokens[row * D + d]) - means[row]) * rstds[row];
    d_beta += g;
  }
  scratch[chunk * 2 * D + d] = d_gamma;
  scratch[(chunk * 2 + 1) * D + d] = d_beta;
}

__global__ void __launch_bounds__(kColumns)
    d_affine_sum_kernel(const float* scratch, float* d_gamma, float* d_beta, int64_t D) {
  const int64_t d = int64_t(blockIdx.x) * kColumns + threadIdx.x;
  if (d >= D) return;
  float sum_gamma = 0, sum_beta = 0;
  for (int64_t chunk = 0; chunk < kLayerNormChunks; ++chunk) {
    sum_gamma += scratch[chunk * 2 * D + d];
    sum_beta += scratch[(chunk * 2 + 1) * D + d];
  }
  d_gamma[d] = sum_gamma;
  d_beta[d] = sum_beta;
}

template <typename T>
void launch(const PromptLayerNorm& a, cudaStream_t stream) {
  const int64_t tokens_per = a.L - a.R + a.P, rows = a.B * tokens_per;
  if (rows == 0) return;  // an empty grid is an error in CUDA
  const unsigned grid = grid_for((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  prompt_layernorm_kernel<T><<<grid, kWarp * kWarpsPerBlock, 0, stream>>>(
      static_cast<const T*>(a.x), static_cast<const T*>(a.prompts), a.gamma, a.beta,
      static_cast<T*>(a.tokens), static_cast<T*>(a.normed), a.mean, a.rstd, rows, tokens_per, a.L,
      a.P, a.G, a.D, a.R, a.eps);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch_backward(const PromptLayerNormBackward& a, cudaStream_t stream) {
  const int64_t tokens_per = a.L - a.R + a.P, rows = a.B * tokens_per;
  const auto* d_tokens = static_cast<const T*>(a.d_tokens);
  const auto* d_normed = static_cast<const T*>(a.d_normed);
  const auto* tokens = static_cast<const T*>(a.tokens);
  if (rows > 0) {
    const unsigned grid = grid_for((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
    d_rows_kernel<T><<<grid, kWarp * kWarpsPerBlock, 0, stream>>>(
        d_tokens, d_normed, tokens, a.gamma, a.mean, a.rstd, static_cast<T*>(a.d_x), a.d_prompts,
        rows, tokens_per, a.L, a.P, a.G == 1, a.D, a.R);
    SPLIP_CUDA_CHECK(cudaGetLastError());
  }
  if (a.G == 1 && a.P > 0) {
    d_shared_prompts_kernel<T><<<static_cast<unsigned>(a.P), kWarp, 0, stream>>>(
        d_tokens, d_normed, tokens, a.gamma, a.mean, a.rstd, a.d_prompts, a.B, tokens_per, a.D);
    SPLIP_CUDA_CHECK(cudaGetLastError());
  }
  const unsigned columns = static_cast<unsigned>((a.D + kColumns - 1) / kColumns);
  const dim3 grid(columns, static_cast<unsigned>(kLayerNormChunks));
  d_affine_kernel<T>
      <<<grid, kColumns, 0, stream>>>(d_normed, tokens, a.mean, a.rstd, a.scratch, rows, a.D);
  SPLIP_CUDA_CHECK(cudaGetLastError());
  d_affine_sum_kernel<<<columns, kColumns, 0, stream>>>(a.scratch, a.d_gamma, a.d_beta, a.D);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

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
      return launch_backward<float>(a, s);
    case DType::f16:
      return launch_backward<__half>(a, s);
    case DType::bf16:
      return launch_backward<__nv_bfloat16>(a, s);
    default:
      SPLIP_CHECK(false, "prompt_layernorm takes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
