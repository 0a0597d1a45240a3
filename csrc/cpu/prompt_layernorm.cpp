// CPU prompt_layernorm: one output row at a time, read once, written twice.
// Bound by memory: (1 read + 2 writes) * B * T * D * sizeof(T).
#include <cstring>
#include <vector>

#include "../common.h"
#include "../splip.h"
#include "convert.h"
#include "isa.h"
#include "threads.h"

namespace splip::cpu {
namespace {

// Row t of the new sequence comes from x (returned index into L) or is a prompt (negative).
inline int64_t source_row(int64_t t, int64_t P, int64_t R) {
  if (t == 0) return 0;
  return t <= P ? -1 : t - P + R;
}

void run(const LayerNormRow<float>& row) { current().layernorm->forward_f32(row); }
void run(const LayerNormRow<bf16>& row) { current().layernorm->forward_bf16(row); }
void run(const LayerNormRowBackward<float>& row) { current().layernorm->backward_f32(row); }
void run(const LayerNormRowBackward<bf16>& row) { current().layernorm->backward_bf16(row); }
void write(const float* from, int64_t D, float* to) { std::memcpy(to, from, D * sizeof(float)); }
void write(const float* from, int64_t D, bf16* to) {
  for (int64_t d = 0; d < D; ++d) store(to + d, from[d]);
}

template <typename T>
void forward(const PromptLayerNorm& a, int threads) {
  const int64_t tokens = a.L - a.R + a.P;
  const auto* x = static_cast<const T*>(a.x);
  const auto* prompts = static_cast<const T*>(a.prompts);
  auto* out_tokens = static_cast<T*>(a.tokens);
  auto* out_normed = static_cast<T*>(a.normed);
  parallel_for(threads, a.B * tokens, [&](int64_t row) {
    const int64_t b = row / tokens, t = row % tokens;
    const int64_t source = source_row(t, a.P, a.R);
    const T* in = source < 0 ? prompts + ((a.G == 1 ? 0 : b) * a.P + t - 1) * a.D
                             : x + (b * a.L + source) * a.D;
    run(LayerNormRow<T>{in, a.gamma, a.beta, out_tokens + row * a.D, out_normed + row * a.D,
                        a.mean + row, a.rstd + row, a.D, a.eps});
  });
}

template <typename T>
void backward(const PromptLayerNormBackward& a, int threads) {
  const int64_t tokens_per = a.L - a.R + a.P, rows = a.B * tokens_per;
  const auto* d_tokens = static_cast<const T*>(a.d_tokens);
  const auto* d_normed = static_cast<const T*>(a.d_normed);
  const auto* tokens = static_cast<const T*>(a.tokens);
  auto* d_x = static_cast<T*>(a.d_x);
  // What reaches row `row` of the sequence; its share of d_gamma and d_beta if they are given.
  const auto token_gradient = [&](int64_t row, float* out, float* d_gamma, float* d_beta) {
    const int64_t at = row * a.D;
    if (d_normed != nullptr) {
      run(LayerNormRowBackward<T>{d_tokens ? d_tokens + at : nullptr, d_normed + at, tokens + at,
                                  a.gamma, a.mean[row], a.rstd[row], out, d_gamma, d_beta, a.D});
    } else {
      for (int64_t d = 0; d < a.D; ++d) {
        out[d] = d_tokens ? load(d_tokens[at + d]) : 0.0f;
      }
    }
  };

  parallel(threads, [&](const Member& member) {
    std::vector<float> gradient(a.D);
    // A fixed number of partial sums, so that d_gamma and d_beta do not depend on the threads.
    share(member, kLayerNormChunks, [&](int64_t chunk) {
      float* d_gamma = a.scratch + chunk * 2 * a.D;
      float* d_beta = d_gamma + a.D;
      std::memset(d_gamma, 0, 2 * a.D * sizeof(float));
      const int64_t last = rows * (chunk + 1) / kLayerNormChunks;
      for (int64_t row = rows * chunk / kLayerNormChunks; row < last; ++row) {
        const int64_t b = row / tokens_per, t = row % tokens_per;
        const int64_t source = source_row(t, a.P, a.R);
        token_gradient(row, gradient.data(), d_gamma, d_beta);
        if (source >= 0) {
          write(gradient.data(), a.D, d_x + (b * a.L + source) * a.D);
        } else if (a.G > 1) {  // every image has prompts of its own
          std::memcpy(a.d_prompts + (b * a.P + t - 1) * a.D, gradient.data(), a.D * sizeof(float));
        }
        if (t == 0) {  // the rows that were left out do not reach the output
          std::memset(d_x + (b * a.L + 1) * a.D, 0, a.R * a.D * sizeof(T));
        }
      }
    });
    // Shared prompts: one thread sums a prompt over the batch, so the order is fixed.
    if (a.G == 1) {
      share(member, a.P, [&](int64_t p) {
        float* out = a.d_prompts + p * a.D;
        std::memset(out, 0, a.D * sizeof(float));
        for (int64_t b = 0; b < a.B; ++b) {
          token_gradient(b * tokens_per + 1 + p, gradient.data(), nullptr, nullptr);
          for (int64_t d = 0; d < a.D; ++d) out[d] += gradient[d];
        }
      });
    }
    member.barrier();
    share(member, a.D, [&](int64_t d) {
      float sum_gamma = 0, sum_beta = 0;
      for (int64_t chunk = 0; chunk < kLayerNormChunks; ++chunk) {
        sum_gamma += a.scratch[chunk * 2 * a.D + d];
        sum_beta += a.scratch[(chunk * 2 + 1) * a.D + d];
      }
      a.d_gamma[d] = sum_gamma;
      a.d_beta[d] = sum_beta;
    });
  });
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
