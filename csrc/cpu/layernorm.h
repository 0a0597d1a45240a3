// Internal to the CPU prompt_layernorm: one row, in the kernels of each instruction set.
#pragma once

#include <cstdint>

namespace splip::cpu {

// Copy a row to `tokens`, normalise it to `normed`, keep its mean and 1 / deviation. Rows of float,
// or of bfloat16 as 16-bit words.
template <typename T>
struct LayerNormRow {
  const T* in;
  const float* gamma;
  const float* beta;
  T* tokens;
  T* normed;
  float* mean;
  float* rstd;
  int64_t D;
  float eps;
};

void layernorm_row_avx512(const LayerNormRow<float>& a);
void layernorm_row_avx512(const LayerNormRow<uint16_t>& a);

}  // namespace splip::cpu
