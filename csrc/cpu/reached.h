// Internal: a bound that many numbers reach, without selecting one of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace splip::cpu {

// A number that at least K of v[0, count) reach: the foot of the K-th largest one's among kBuckets
// equal intervals. Where a few lie far from the others more than K may reach it, which is as right
// and less good. Counting has no branches to mispredict, as a selection has.
static inline float reached_by(const float* v, int64_t count, int64_t K) {
  constexpr int kBuckets = 1024;
  float low = v[0], high = v[0];
  for (int64_t i = 1; i < count; ++i) {
    low = std::min(low, v[i]);
    high = std::max(high, v[i]);
  }
  const float span = high - low;
  if (!(span > 1e-20f)) return low;
  int32_t counts[kBuckets] = {};
  const float inverse = kBuckets / span;
  for (int64_t i = 0; i < count; ++i) {
    ++counts[std::min(kBuckets - 1, static_cast<int>((v[i] - low) * inverse))];
  }
  int bucket = kBuckets - 1;
  for (int64_t reach = counts[bucket]; reach < K; reach += counts[bucket]) --bucket;
  // Less what rounding can have put into a bucket too high.
  return low + static_cast<float>(bucket) / inverse - 1e-6f * (std::fabs(low) + std::fabs(high));
}

}  // namespace splip::cpu
