// Where a pixel of the shuffled image comes from. Shared by the CPU and CUDA versions of patchify.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace splip {

struct Pixel {
  int64_t y, x;
};

// permutation: the source tile of each output tile of one image, or null. tile_h = H / grid,
// tile_w = W / grid; pixels past the last whole tile stay where they are. Int: int where all pixels
// of an image can be counted in it, which divides faster.
template <typename Int>
SPLIP_HOST_DEVICE Pixel source_pixel(Int y, Int x, const int64_t* permutation, Int grid, Int tile_h,
                                     Int tile_w) {
  if (permutation == nullptr || y >= grid * tile_h || x >= grid * tile_w) return {y, x};
  const Int tile = static_cast<Int>(permutation[(y / tile_h) * grid + x / tile_w]);
  return {(tile / grid) * tile_h + y % tile_h, (tile % grid) * tile_w + x % tile_w};
}

// kCount pixels side by side: run `index` of all B * M * S * S / kCount, and where in a channel of
// its patch it goes. kCount divides S.
struct Run {
  int b, y, x, patch, offset;
};

template <int kCount>
SPLIP_HOST_DEVICE Run run_of(int index, int H, int W, int S) {
  const int columns = W / S, per_row = S / kCount, per_patch = per_row * S;
  const int patch = index / per_patch, in_patch = index % per_patch;
  const int patches = H / S * columns;
  const int b = patch / patches, m = patch % patches;
  return {b, m / columns * S + in_patch / per_row, m % columns * S + in_patch % per_row * kCount,
          patch, in_patch * kCount};
}

// Sources of a run: its pixels [0, turn) follow `first`, the others lie as if they followed
// `second`. Tiles must be at least as wide as a run, so that no run has three parts.
struct Sources {
  Pixel first, second;
  int turn;
};

template <int kCount>
SPLIP_HOST_DEVICE Sources sources_of(const Run& run, const int64_t* permutation, int H, int W,
                                     int grid) {
  if (permutation == nullptr) return {{run.y, run.x}, {run.y, run.x}, kCount};
  const int tile_h = H / grid, tile_w = W / grid;
  const int64_t* own = permutation + int64_t(run.b) * grid * grid;
  const Pixel first = source_pixel(run.y, run.x, own, grid, tile_h, tile_w);
  Pixel second = source_pixel(run.y, run.x + kCount - 1, own, grid, tile_h, tile_w);
  second.x -= kCount - 1;
  const int turn = run.x >= grid * tile_w ? kCount : (run.x / tile_w + 1) * tile_w - run.x;
  return {first, second, turn < kCount ? turn : kCount};
}

// kCount bytes from `from` on, four to a word. Reads aligned words if those lie in [begin, end),
// else the bytes that do; the others are 0.
template <int kCount>
SPLIP_HOST_DEVICE void load_bytes(const uint8_t* from, const uint8_t* begin, const uint8_t* end,
                                  uint32_t (&out)[kCount / 4]) {
  constexpr int kWords = kCount / 4;
  const auto address = reinterpret_cast<uintptr_t>(from);
  const int extra = static_cast<int>(address % 4);
  const auto* words = reinterpret_cast<const uint32_t*>(address - extra);
  const auto* stop = reinterpret_cast<const uint8_t*>(words + kWords + (extra != 0));
  if (reinterpret_cast<const uint8_t*>(words) >= begin && stop <= end) {
    uint32_t raw[kWords + 1];
    SPLIP_UNROLL
    for (int i = 0; i < kWords; ++i) raw[i] = words[i];
    raw[kWords] = extra != 0 ? words[kWords] : 0;
    SPLIP_UNROLL
    for (int i = 0; i < kWords; ++i) {
      out[i] = static_cast<uint32_t>((uint64_t(raw[i + 1]) << 32 | raw[i]) >> (8 * extra));
    }
    return;
  }
  SPLIP_UNROLL
  for (int i = 0; i < kWords; ++i) {
    out[i] = 0;
    SPLIP_UNROLL
    for (int j = 0; j < 4; ++j) {
      const uint8_t* p = from + 4 * i + j;
      if (p >= begin && p < end) out[i] |= uint32_t(*p) << (8 * j);
    }
  }
}

}  // namespace splip
