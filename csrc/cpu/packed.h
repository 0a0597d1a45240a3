// Internal to the CPU's search in a packed gallery: its layout, and the inner kernels of each
// instruction set.
#pragma once

#include <cstdint>

namespace splip::cpu {

// Rows stand in pairs of panels of 16. A step is 4 dimensions of one pair, 2 x 16 rows x 4 bytes:
// the scan reads one stream, and a register of scores is 16 rows.
constexpr int64_t kPanelRows = 16;
constexpr int64_t kPairRows = 32;
constexpr int64_t kStepDims = 4;
constexpr int64_t kStepBytes = kPairRows * kStepDims;
constexpr int64_t kDimAlign = 64;  // D is padded to this
constexpr int kGroup = 8;          // queries that a vector kernel scans with at once
constexpr int kTileQueries = 32;   // queries that the AMX kernel scans with at once
constexpr int kMaxGroup = 32;
constexpr int kTogether = 2;  // steps that the AVX2 kernel adds in 16 bits

// Every file has functions of its own (static), as in convert.h.
static inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
static inline int64_t steps_of(int64_t D) { return round_up(D, kDimAlign) / kStepDims; }
static inline int64_t pairs_of(int64_t N) { return (N + kPairRows - 1) / kPairRows; }

// Rows that may be among the K best of one query, with an upper bound of their score.
struct Shortlist {
  float* upper;
  int32_t* row;
  int64_t count;
  int64_t next;     // call `compact` at this many; the buffers hold kPairRows more
  float threshold;  // rows whose upper bound is lower are of no interest
};

// A group of queries against a run of pairs. G queries stand in chunks of c dimensions: [Dp / c, G,
// c].
struct Scan {
  const uint8_t* panels;    // [pairs, steps, 2, 16, 4] quantised residuals + 128
  const float* scale;       // [pairs, 32]
  const float* error;       // [pairs, 32]; -infinity: never a result
  const uint32_t* allowed;  // [pairs] one bit a row, or null for all
  int64_t first_row, pairs, steps;
  const uint8_t* ahead;      // what is scanned next: fetched to L2 by the way
  int64_t ahead_step;        // bytes of it for each step
  const int8_t* queries;     // [Dp / c, G, c]
  const int32_t* start;      // [G] -128 * the sum of the query
  const float* query_scale;  // [G]
  Shortlist* lists;          // [G]
  int count;                 // queries in the group; the others have a threshold of +infinity
  void (*compact)(void* context, int query);
  void* context;
};

// A kernel, and how it wants its queries.
struct Scanner {
  void (*run)(const Scan&);
  int group, chunk;  // G, c
  // Steps whose products are added in 16 bits, two neighbours of each, or 0: a query's numbers that
  // meet there must sum to at most kMostTogether, those above zero and those below on their own.
  int together = 0;
};
constexpr int kMostTogether = 128;  // times 255, the greatest byte of a row: less than 2^15
void scan_scalar(const Scan& a);
void scan_avx2(const Scan& a);
void scan_avxvnni(const Scan& a);
void scan_avxvnni_emulated(const Scan& a);
void scan_avx512(const Scan& a);
void scan_amx(const Scan& a);
void scan_amx_emulated(const Scan& a);
void scan_neon(const Scan& a);
void scan_dotprod(const Scan& a);
void scan_i8mm(const Scan& a);

// Dot product of float rows, summed in double in 16 fixed lanes: every kernel gives the same bits.
// `ahead` is a row that is wanted soon: it is fetched line by line, all at once would block the
// loads of this row.
using DotKernel = double (*)(const float* a, const float* b, int64_t D, const float* ahead);
double dot_scalar(const float* a, const float* b, int64_t D, const float* ahead);
double dot_avx2(const float* a, const float* b, int64_t D, const float* ahead);
double dot_avx512(const float* a, const float* b, int64_t D, const float* ahead);
double dot_neon(const float* a, const float* b, int64_t D, const float* ahead);

// Dot products of a float row and `count` queries, [count, D] in double: the bits of DotKernel, but
// the row is read and widened once for some of them, and the queries never.
using DotsKernel = void (*)(const float* row, const double* queries, int64_t count, int64_t D,
                            double* out);
void dots_scalar(const float* row, const double* queries, int64_t count, int64_t D, double* out);
void dots_avx2(const float* row, const double* queries, int64_t count, int64_t D, double* out);
void dots_avx512(const float* row, const double* queries, int64_t count, int64_t D, double* out);

// A vector as 8-bit numbers times a scale, with the lengths of what was lost and of the result.
struct Quantised {
  float scale;
  double error, length;
};
using QuantiseKernel = Quantised (*)(const float* v, int64_t D, int8_t* out);
Quantised quantise_scalar(const float* v, int64_t D, int8_t* out);
Quantised quantise_avx2(const float* v, int64_t D, int8_t* out);
Quantised quantise_avx512(const float* v, int64_t D, int8_t* out);
Quantised quantise_neon(const float* v, int64_t D, int8_t* out);

// What packing does with the rows of a gallery besides.
//   residual: out[d] = row[d] * inverse - centre[d]
//   place: kPlaceRows quantised rows, [kPlaceRows, steps * 4], to their places in each step of a
//          pair; `out`: that of the first row
constexpr int64_t kPlaceRows = 8;
struct PackKernels {
  void (*residual)(const float* row, float inverse, const float* centre, int64_t D, float* out);
  void (*place)(const int8_t* rows, int64_t steps, uint8_t* out);
};
extern const PackKernels kPackScalar, kPackAvx2;

}  // namespace splip::cpu
