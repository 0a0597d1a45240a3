// Internal to the CPU prompt_layernorm: one row forward, one row backward, in the kernels of each
// instruction set. Rows of float or bfloat16.
#pragma once

#include <cstdint>

#include "convert.h"

namespace splip::cpu {

// Copy a row to `tokens`, normalise it to `normed`, keep its mean and 1 / deviation.
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

// gradient = d_tokens + rstd * (g - mean(g) - xhat * mean(g * xhat)), g = d_normed * gamma.
template <typename T>
struct LayerNormRowBackward {
  const T* d_tokens;  // null: zeros
  const T* d_normed;
  const T* tokens;
  const float* gamma;
  float mean, rstd;
  float* gradient;  // [D] out
  float* d_gamma;   // [D] added to; null: not wanted
  float* d_beta;    // [D] added to; null with d_gamma
  int64_t D;
};

struct LayerNormKernels {
  void (*forward_f32)(const LayerNormRow<float>&);
  void (*forward_bf16)(const LayerNormRow<bf16>&);
  void (*backward_f32)(const LayerNormRowBackward<float>&);
  void (*backward_bf16)(const LayerNormRowBackward<bf16>&);
};

// The same source, compiled for each instruction set.
extern const LayerNormKernels kLayerNormScalar, kLayerNormAvx2, kLayerNormAvx512;

}  // namespace splip::cpu
