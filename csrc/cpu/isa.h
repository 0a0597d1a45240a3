// Internal: which kernels run. Chosen when the module is loaded, from what the processor has.
#pragma once

#include "layernorm.h"
#include "packed.h"

namespace splip::cpu {

constexpr int kFewQueries = 2;

struct Kernels {
  const char* name;
  Scanner scan;
  Scanner scan_few;  // for at most kFewQueries, bound by memory alone
  DotKernel dot;
  QuantiseKernel quantise;
  const LayerNormKernels* layernorm;
  DotsKernel dots = dots_scalar;
  const PackKernels* pack = &kPackScalar;
};

const Kernels& current();

}  // namespace splip::cpu
