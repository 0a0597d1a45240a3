// CPU prompt_layernorm: one output row at a time, read once, written twice.
// Bound by memory: (1 read + 2 writes) * B * T * D * sizeof(T).
#include <cmath>
#include <cstring>

#include "../common.h"
#include "../splip.h"
#include "convert.h"
#include "isa.h"

namespace splip::cpu {
namespace {

// Row t of the new sequence comes from x (returned index into L) or is a prompt (negative).
inline int64_t source_row(int64_t t, int64_t P, int64_t R) {
  if (t == 0) return 0;
  return t <= P ? -1 : t - P + R;
}

// The row kernel of the level in use, or null. bf16 is a 16-bit word to it.
auto row_kernel(const float*) { return current().layernorm_f32; }
auto row_kernel(const bf16*) { return current().layernorm_bf16; }
using Word = uint16_t;
const float* words(const float* p) { return p; }
float* words(float* p) { return p; }
const Word* words(const bf16* p) { return reinterpret_cast<const Word*>(p); }
Word* words(bf16* p) { return reinterpret_cast<Word*>(p); }

template <typename T>
void forward(const PromptLayerNorm& a, int threads) {
  const int64_t tokens = a.L - a.R + a.P;
  const auto* x = static_cast<const T*>(a.x);
  const auto* prompts = static_cast<const T*>(a.prompts);
  auto* out_tokens = static_cast<T*>(a.tokens);
  auto* out_normed = static_cast<T*>(a.normed);
  const auto kernel = row_kernel(x);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < a.B * tokens; ++row) {
    const int64_t b = row / tokens, t = row % tokens;
    const int64_t source = source_row(t, a.P, a.R);
    const T* in = source < 0 ? prompts + ((a.G == 1 ? 0 : b) * a.P + t - 1) * a.D
                             : x + (b * a.L + source) * a.D;
    if (kernel != nullptr) {
      kernel({words(in), a.gamma, a.beta, words(out_tokens + row * a.D),
              words(out_normed + row * a.D), a.mean + row, a.rstd + row, a.D, a.eps});
      continue;
    }
    // Two passes over a row that is in the cache: the one-pass formula loses digits when the mean
    // is large against the deviation. Double sums cost nothing here, the row is bound by memory.
    double sum = 0;
    for (int64_t d = 0; d < a.D; ++d) sum += load(in[d]);
    const float mean = static_cast<float>(sum / static_cast<double>(a.D));
    double squares = 0;
    for (int64_t d = 0; d < a.D; ++d) {
      const float centred = load(in[d]) - mean;
      squares += static_cast<double>(centred) * centred;
    }
    const float variance = static_cast<float>(squares / static_cast<double>(a.D));
    const float rstd = 1.0f / std::sqrt(variance + a.eps);
    a.mean[row] = mean;
    a.rstd[row] = rstd;
    std::memcpy(out_tokens + row * a.D, in, a.D * sizeof(T));
    T* normed = out_normed + row * a.D;
    for (int64_t d = 0; d < a.D; ++d) {
      store(normed + d, (load(in[d]) - mean) * rstd * a.gamma[d] + a.beta[d]);
    }
  }
}

// d_token = d_tokens + rstd * (g - mean(g) - xhat * mean(g * xhat)), g = d_normed * gamma.
template <typename T>
void token_gradient(const PromptLayerNormBackward& a, int64_t row, const T* d_tokens,
                    const T* d_normed, const T* tokens, float* out) {
  const float mean = a.mean[row], rstd = a.rstd[row];
  for (int64_t d = 0; d < a.D; ++d) out[d] = d_tokens ? load(d_tokens[row * a.D + d]) : 0.0f;
  if (!d_normed) return;
  double sum = 0, dot = 0;
  for (int64_t d = 0; d < a.D; ++d) {
    const float g = load(d_normed[row * a.D + d]) * a.gamma[d];
    const float xhat = (load(tokens[row * a.D + d]) - mean) * rstd;
    sum += g;
    dot += static_cast<double>(g) * xhat;
  }
  const float mean_g = static_cast<float>(sum / static_cast<double>(a.D));
  const float mean_gx = static_cast<float>(dot / static_cast<double>(a.D));
  for (int64_t d = 0; d < a.D; ++d) {
    const float g = load(d_normed[row * a.D + d]) * a.gamma[d];
    const float xhat = (load(tokens[row * a.D + d]) - mean) * rstd;
    out[d] += rstd * (g - mean_g - xhat * mean_gx);
  }
}

template <typename T>
void backward(const PromptLayerNormBackward& a, int threads) {
  const int64_t tokens_per = a.L - a.R + a.P, rows = a.B * tokens_per;
  const auto* d_tokens = static_cast<const T*>(a.d_tokens);
  const auto* d_normed = static_cast<const T*>(a.d_normed);
  const auto* tokens = static_cast<const T*>(a.tokens);
  auto* d_x = static_cast<T*>(a.d_x);

  // Rows of x, and the prompts of one image each when every image has its own.
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> gradient(a.D);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t b = row / tokens_per, t = row % tokens_per;
      const int64_t source = source_row(t, a.P, a.R);
      if (source < 0 && a.G == 1) continue;
      token_gradient(a, row, d_tokens, d_normed, tokens, gradient.data());
      if (source < 0) {
        std::memcpy(a.d_prompts + (b * a.P + t - 1) * a.D, gradient.data(), a.D * sizeof(float));
      } else {
        T* out = d_x + (b * a.L + source) * a.D;
        for (int64_t d = 0; d < a.D; ++d) store(out + d, gradient[d]);
      }
      if (t == 0) {  // the rows that were left out do not reach the output
        T* dropped = d_x + (b * a.L + 1) * a.D;
        for (int64_t d = 0; d < a.R * a.D; ++d) store(dropped + d, 0.0f);
      }
    }
    // Shared prompts: one thread sums a prompt over the batch, so the order is fixed.
    if (a.G == 1) {
#pragma omp for schedule(static)
      for (int64_t p = 0; p < a.P; ++p) {
        float* out = a.d_prompts + p * a.D;
        std::memset(out, 0, a.D * sizeof(float));
        for (int64_t b = 0; b < a.B; ++b) {
          token_gradient(a, b * tokens_per + 1 + p, d_tokens, d_normed, tokens, gradient.data());
          for (int64_t d = 0; d < a.D; ++d) out[d] += gradient[d];
        }
      }
    }
    // d_gamma, d_beta: a fixed number of partial sums, then one sum over them in order.
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < kLayerNormChunks; ++chunk) {
      float* d_gamma = a.scratch + chunk * 2 * a.D;
      float* d_beta = d_gamma + a.D;
      std::memset(d_gamma, 0, 2 * a.D * sizeof(float));
      if (!d_normed) continue;
      const int64_t first = rows * chunk / kLayerNormChunks;
      const int64_t last = rows * (chunk + 1) / kLayerNormChunks;
      for (int64_t row = first; row < last; ++row) {
        for (int64_t d = 0; d < a.D; ++d) {
          const float g = load(d_normed[row * a.D + d]);
          d_gamma[d] += g * (load(tokens[row * a.D + d]) - a.mean[row]) * a.rstd[row];
          d_beta[d] += g;
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t d = 0; d < a.D; ++d) {
      float sum_gamma = 0, sum_beta = 0;
      for (int64_t chunk = 0; chunk < kLayerNormChunks; ++chunk) {
        sum_gamma += a.scratch[chunk * 2 * a.D + d];
        sum_beta += a.scratch[(chunk * 2 + 1) * a.D + d];
      }
      a.d_gamma[d] = sum_gamma;
      a.d_beta[d] = sum_beta;
    }
  }
}

}  // namespace

void prompt_layernorm(const PromptLayerNorm& a, int threads) {
  switch (a.dtype) {
    case DType::f32:
      return forward<float>(a, threads);
    case DType::bf16:
      return forward<bf16>(a, threads);
    default:
      SPLIP_CHECK(false, "prompt_layernorm on the CPU takes float32 or bfloat16");
  }
}

void prompt_layernorm_backward(const PromptLayerNormBackward& a, int threads) {
  switch (a.dtype) {
    case DType::f32:
      return backward<float>(a, threads);
    case DType::bf16:
      return backward<bf16>(a, threads);
    default:
      SPLIP_CHECK(false, "prompt_layernorm on the CPU takes float32 or bfloat16");
  }
}

}  // namespace splip::cpu
