// Where the elements of a warp's matrix product lie: mma.sync m16n8k16 of 16-bit numbers and
// m16n8k8 of tf32, which place bytes in the same way (32 bytes of k). Checked on the host.
#pragma once

#include "host_device.h"

namespace splip::mma {

constexpr int kChunkBytes = 16;  // what one lane loads at once
constexpr int kRowChunks = 8;    // a row of a tile in shared memory is 128 bytes: all banks, once

struct Source {
  int row, chunk;
};

// Place of a row's chunk in shared memory: eight rows at the same chunk touch all banks.
SPLIP_HOST_DEVICE int swizzled(int row, int chunk) {
  return row * kRowChunks + (chunk ^ (row & (kRowChunks - 1)));
}

// ldmatrix.x4: what lane `lane` points at, for k-step `step` of 32 bytes.
// A: 16 rows; the four matrices are rows 0-7 and 8-15 at the low half of k, then at the high half.
SPLIP_HOST_DEVICE Source a_source(int lane, int step) { return {lane % 16, 2 * step + lane / 16}; }
// B: two blocks of 8 columns, each low and high half of k; a column of B is a row in memory.
SPLIP_HOST_DEVICE Source b_source(int lane, int step) {
  return {lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2};
}

// Row and column of element i of the product that a lane holds.
SPLIP_HOST_DEVICE int c_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
SPLIP_HOST_DEVICE int c_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// A product of rows that are loaded straight from memory, without shared memory: lane `lane` loads
// chunk lane % 4 of 64 bytes of rows lane / 4 and lane / 4 + 8, and of B's column lane / 4. Words 0
// and 1 of a chunk are the low and high half of k in one mma, words 2 and 3 in the next: not the
// order in memory, but the same for both factors, which is all that a sum over k needs.
SPLIP_HOST_DEVICE int direct_row(int lane) { return lane / 4; }
SPLIP_HOST_DEVICE int direct_chunk(int lane) { return lane % 4; }

}  // namespace splip::mma
