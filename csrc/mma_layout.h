// Where the elements of a warp's matrix product lie: mma.sync m16n8k16 of 16-bit numbers, m16n8k8
// of tf32 and m16n8k32 of 8-bit numbers, which place bytes in the same way (32 bytes of k); and of
// a warpgroup's, wgmma m64n256. Checked on the host.
#pragma once

#include <cstdint>

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

// ---- wgmma: a warpgroup of 128 threads, both factors straight from shared memory ----

// A factor is rows of 128 bytes of k, eight of them to 1,024 bytes, chunks placed by `swizzled`:
// the manual's K-major layout with 128-byte swizzle. The hardware swizzles by bits of the address,
// so a factor begins at a multiple of 1,024.
constexpr int kEightRows = 8 * kRowChunks * kChunkBytes;

// Fields of the manual's matrix descriptor: start address, leading offset (not used when swizzled,
// 1 by convention), stride from eight rows to the next eight, all in units of 16 bytes; at bit 62
// the swizzle, 1 for 128 bytes.
SPLIP_HOST_DEVICE uint64_t descriptor(unsigned address) {
  return (uint64_t(address >> 4) & 0x3fff) | uint64_t(1) << 16 | uint64_t(kEightRows >> 4) << 32 |
         uint64_t(1) << 62;
}

// The same rows, 32 bytes of k further on: within a row of 128 bytes the start alone moves.
SPLIP_HOST_DEVICE uint64_t descriptor_at(uint64_t first, int step) { return first + 2 * step; }

// Row and column of element i of the product of 64 rows that a thread of the warpgroup holds.
SPLIP_HOST_DEVICE int group_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
SPLIP_HOST_DEVICE int group_column(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

}  // namespace splip::mma
