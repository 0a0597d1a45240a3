// The norm that every exact score is divided by.
#pragma once

#include <cfloat>
#include <cmath>

#include "host_device.h"
#include "splip.h"

namespace splip {

// 1 / length, or 0 for a row whose scores count as -infinity: it holds NaN, or its norm overflows
// in float32.
SPLIP_HOST_DEVICE double inverse_length(double squares) {
  if (!(squares <= static_cast<double>(FLT_MAX))) return 0.0;
  return 1.0 / std::fmax(std::sqrt(squares), static_cast<double>(kMinNorm));
}

}  // namespace splip
