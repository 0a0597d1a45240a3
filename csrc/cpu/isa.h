// Internal: which kernels run. Chosen when the module is loaded, from what the processor has.
#pragma once

#include "layernorm.h"
#include "packed.h"

namespace splip::cpu {

constexpr int kMaxThreads = 64;
constexpr int kFewQueries = 2;

struct Kernels {
  const char* name;
  Scanner scan;
  Scanner scan_few;  // for at most kFewQueries, bound by memory alone
  DotKernel dot;
  QuantiseKernel quantise;
  void (*layernorm_f32)(const LayerNormRow<float>&);      // null: the portable loop
  void (*layernorm_bf16)(const LayerNormRow<uint16_t>&);  // null: the portable loop
};

const Kernels& current();

}  // namespace splip::cpu
