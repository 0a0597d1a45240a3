// Internal: the threads of a call.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace splip::cpu {

constexpr int kMaxThreads = 64;

// Of the calling thread in its team; 0 without OpenMP.
static inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace splip::cpu
