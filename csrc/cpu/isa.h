// Internal: which kernels run. Chosen when the module is loaded, from what the processor has.
#pragma once

#include "packed.h"

namespace splip::cpu {

constexpr int kMaxThreads = 64;

struct Kernels {
  const char* name;
  ScanKernel scan;
  DotKernel dot;
  QuantiseKernel quantise;
};

const Kernels& current();

}  // namespace splip::cpu
