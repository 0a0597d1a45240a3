// Scalar conversions between the storage types and float. Plain inline code: every file that
// includes it is compiled for the same baseline instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace splip::cpu {

struct bf16 {
  uint16_t bits;
};

inline float load(float v) { return v; }
inline float load(uint8_t v) { return static_cast<float>(v); }
inline float load(bf16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &wide, sizeof(out));
  return out;
}

inline void store(float* p, float v) { *p = v; }
inline void store(bf16* p, float v) {  // round to nearest even; NaN stays NaN
  uint32_t wide;
  std::memcpy(&wide, &v, sizeof(wide));
  if ((wide & 0x7fffffffu) > 0x7f800000u) {
    p->bits = 0x7fc0;
  } else {
    p->bits = static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
  }
}

}  // namespace splip::cpu
