// AMX kernel of the packed gallery: 16 queries times 16 rows times 64 dimensions an instruction.
//
// A panel of 64 dimensions is a B tile as it lies in memory, 32 queries are two A tiles, the sums
// of 32 queries and 32 rows four C tiles. The sums of a pair are compared with the thresholds while
// the next pair multiplies: the two use different units.
//
// SPLIP_EMULATE_AMX: the tiles in plain C++, to test this kernel on processors that have none.
#include "packed_avx512.h"

namespace splip::cpu {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;
constexpr int64_t kNear = 2048;  // bytes between what is multiplied and what is fetched to L1

// Which rows and columns of the tiles are used. Palette 1 is 8 tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#ifdef SPLIP_EMULATE_AMX

#define SPLIP_AMX_SCAN scan_amx_emulated

struct Tiles {
  TileConfig config;
  alignas(64) uint8_t data[8][kTileRows][kTileBytes];
};
thread_local Tiles tiles;

inline void configure(const TileConfig& config) { tiles.config = config; }
inline void release() { tiles.config = TileConfig{}; }

inline void emulate_zero(int t) { __builtin_memset(tiles.data[t], 0, sizeof(tiles.data[t])); }

inline void emulate_load(int t, const void* from, int64_t stride) {
  for (int r = 0; r < tiles.config.rows[t]; ++r) {
    __builtin_memcpy(tiles.data[t][r], static_cast<const uint8_t*>(from) + r * stride,
                     tiles.config.row_bytes[t]);
  }
}

inline void emulate_store(int t, void* to, int64_t stride) {
  for (int r = 0; r < tiles.config.rows[t]; ++r) {
    __builtin_memcpy(static_cast<uint8_t*>(to) + r * stride, tiles.data[t][r],
                     tiles.config.row_bytes[t]);
  }
}

// Signed bytes of a times unsigned bytes of b, as the instruction is specified.
inline void emulate_multiply_add(int c, int a, int b) {
  for (int m = 0; m < tiles.config.rows[c]; ++m) {
    auto* sums = reinterpret_cast<int32_t*>(tiles.data[c][m]);
    for (int k = 0; k < tiles.config.row_bytes[a] / 4; ++k) {
      for (int n = 0; n < tiles.config.row_bytes[c] / 4; ++n) {
        for (int i = 0; i < 4; ++i) {
          sums[n] += static_cast<int8_t>(tiles.data[a][m][4 * k + i]) * tiles.data[b][k][4 * n + i];
        }
      }
    }
  }
}

#define SPLIP_TILE_ZERO(t) emulate_zero(t)
#define SPLIP_TILE_LOAD(t, from, stride) emulate_load(t, from, stride)
#define SPLIP_TILE_STREAM(t, from, stride) emulate_load(t, from, stride)
#define SPLIP_TILE_STORE(t, to, stride) emulate_store(t, to, stride)
#define SPLIP_TILE_MULTIPLY_ADD(c, a, b) emulate_multiply_add(c, a, b)

#else

#define SPLIP_AMX_SCAN scan_amx

// In assembler: the intrinsics of GCC 12 forget that the configuration is read, and drop it.
inline void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void release() { asm volatile("tilerelease"); }

#define SPLIP_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t:::)
#define SPLIP_TILE_LOAD(t, from, stride)                                             \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t::"r"(static_cast<const void*>(from)), \
               "r"(static_cast<int64_t>(stride)))
// Past L1, where the queries are.
#define SPLIP_TILE_STREAM(t, from, stride)                                             \
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #t::"r"(static_cast<const void*>(from)), \
               "r"(static_cast<int64_t>(stride)))
#define SPLIP_TILE_STORE(t, to, stride)                                           \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(static_cast<void*>(to)), \
               "r"(static_cast<int64_t>(stride))                                  \
               : "memory")
#define SPLIP_TILE_MULTIPLY_ADD(c, a, b) \
  asm volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c:::)

#endif

// Sums of one pair of panels, and what turns them into upper bounds.
struct Sums {
  alignas(64) int32_t value[kTileQueries][kPairRows];
};

// Compare the sums of queries [first, last) with their thresholds.
inline void filter(const Scan& a, int64_t pair, const Sums& sums, int first, int last) {
  if (first == last) return;
  const PairBounds bounds(a, pair);
  for (int q = first; q < last; ++q) {
    const __m512i start = _mm512_set1_epi32(a.start[q]);
    filter(a, bounds, q, _mm512_add_epi32(_mm512_load_si512(sums.value[q]), start),
           _mm512_add_epi32(_mm512_load_si512(sums.value[q] + kPanelRows), start));
  }
}

// kTwo: more than 16 queries, the second A tile is needed.
template <bool kTwo>
void scan(const Scan& a) {
  const int64_t blocks = a.steps * kStepDims / kTileBytes;  // of 64 dimensions
  const int64_t block_bytes = kTileRows * kStepBytes;
  const int64_t ahead_bytes = kTileRows * a.ahead_step;
  Sums sums[2];
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint8_t* panel = a.panels + pair * a.steps * kStepBytes;
    const uint8_t* ahead = a.ahead + pair * a.steps * a.ahead_step;
    const int8_t* query = a.queries;
    SPLIP_TILE_ZERO(0);
    SPLIP_TILE_ZERO(1);
    if (kTwo) {
      SPLIP_TILE_ZERO(2);
      SPLIP_TILE_ZERO(3);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t line = 0; line < ahead_bytes; line += kTileBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + line), _MM_HINT_T1);
      }
      if (!kTwo) {  // bound by memory
        for (int64_t line = 0; line < block_bytes; line += kTileBytes) {
          _mm_prefetch(reinterpret_cast<const char*>(panel + kNear + line), _MM_HINT_T0);
        }
      }
      SPLIP_TILE_STREAM(6, panel, kStepBytes);
      SPLIP_TILE_LOAD(4, query, kTileBytes);
      SPLIP_TILE_MULTIPLY_ADD(0, 4, 6);
      SPLIP_TILE_STREAM(7, panel + kTileBytes, kStepBytes);
      SPLIP_TILE_MULTIPLY_ADD(1, 4, 7);
      if (kTwo) {
        SPLIP_TILE_LOAD(5, query + kTileRows * kTileBytes, kTileBytes);
        SPLIP_TILE_MULTIPLY_ADD(2, 5, 6);
        SPLIP_TILE_MULTIPLY_ADD(3, 5, 7);
      }
      if (pair > 0) {
        filter(a, pair - 1, sums[(pair - 1) % 2], static_cast<int>(a.count * b / blocks),
               static_cast<int>(a.count * (b + 1) / blocks));
      }
      panel += block_bytes;
      ahead += ahead_bytes;
      query += kTileQueries * kTileBytes;
    }
    Sums& now = sums[pair % 2];
    SPLIP_TILE_STORE(0, now.value[0], sizeof(now.value[0]));
    SPLIP_TILE_STORE(1, now.value[0] + kPanelRows, sizeof(now.value[0]));
    if (kTwo) {
      SPLIP_TILE_STORE(2, now.value[kTileRows], sizeof(now.value[0]));
      SPLIP_TILE_STORE(3, now.value[kTileRows] + kPanelRows, sizeof(now.value[0]));
    }
  }
  if (a.pairs > 0) filter(a, a.pairs - 1, sums[(a.pairs - 1) % 2], 0, a.count);
}

}  // namespace

void SPLIP_AMX_SCAN(const Scan& a) {
  const int first = a.count < kTileRows ? a.count : kTileRows;  // queries in the first A tile
  const int second = a.count - first;
  TileConfig config;
  const int rows[] = {first, first, second, second, first, second, kTileRows, kTileRows};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = static_cast<uint8_t>(rows[t]);
    config.row_bytes[t] = rows[t] > 0 ? kTileBytes : 0;
  }
  configure(config);
  if (second > 0) {
    scan<true>(a);
  } else {
    scan<false>(a);
  }
  release();
}

}  // namespace splip::cpu
