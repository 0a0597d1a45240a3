// Internal: the norm that both CPU searches divide by.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "../splip.h"

namespace splip::cpu {

// 1 / length, or 0 for a row whose scores count as -infinity: it holds NaN, or its norm overflows
// in float32.
inline double inverse_length(double squared) {
  if (!(squared <= FLT_MAX)) return 0.0;
  return 1.0 / std::max(std::sqrt(squared), static_cast<double>(kMinNorm));
}

}  // namespace splip::cpu
