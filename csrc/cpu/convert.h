// Internal: conversions between the storage types and float. Every file has functions of its own
// (static): the kernels of an instruction set include this too, and a shared copy could be theirs.
#pragma once

#include <cstdint>
#include <cstring>

namespace splip::cpu {

struct bf16 {
  uint16_t bits;
};

static inline float load(float v) { return v; }
static inline float load(bf16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &wide, sizeof(out));
  return out;
}

static inline void store(float* p, float v) { *p = v; }
static inline void store(bf16* p, float v) {  // to nearest even; NaN stays NaN
  uint32_t wide;
  std::memcpy(&wide, &v, sizeof(wide));
  const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>((wide & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

}  // namespace splip::cpu
