// Portable kernels of the packed gallery: the definition that the others are tested against.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "packed.h"

namespace splip::cpu {

void scan_scalar(const Scan& a) {
  for (int64_t pair = 0; pair < a.pairs; ++pair) {
    const uint32_t allowed = a.allowed == nullptr ? ~0u : a.allowed[pair];
    for (int q = 0; q < a.count; ++q) {
      int32_t sums[kPairRows];
      for (int32_t& sum : sums) sum = a.start[q];
      for (int64_t s = 0; s < a.steps; ++s) {
        const uint8_t* step = a.panels + (pair * a.steps + s) * kStepBytes;
        const int8_t* v = a.queries + (s * kGroup + q) * kStepDims;
        for (int64_t r = 0; r < kPairRows; ++r) {
          for (int64_t i = 0; i < kStepDims; ++i) sums[r] += step[r * kStepDims + i] * v[i];
        }
      }
      Shortlist& list = a.lists[q];
      for (int64_t r = 0; r < kPairRows; ++r) {
        const int64_t at = pair * kPairRows + r;
        const float upper =
            static_cast<float>(sums[r]) * a.scale[at] * a.query_scale[q] + a.error[at];
        if (upper >= list.threshold && (allowed >> r & 1u)) {
          list.upper[list.count] = upper;
          list.row[list.count++] = static_cast<int32_t>(a.first_row + at);
        }
      }
      if (list.count >= list.next) a.compact(a.context, q);
    }
  }
}

double dot_scalar(const float* a, const float* b, int64_t D, const float* /*ahead*/) {
  double lanes[16] = {};
  int64_t d = 0;
  for (; d + 16 <= D; d += 16) {
    for (int i = 0; i < 16; ++i) lanes[i] += static_cast<double>(a[d + i]) * b[d + i];
  }
  for (int i = 0; d + i < D; ++i) lanes[i] += static_cast<double>(a[d + i]) * b[d + i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

void dots_scalar(const float* row, const double* queries, int64_t count, int64_t D, double* out) {
  for (int64_t q = 0; q < count; ++q) {
    double lanes[16] = {};
    int64_t d = 0;
    for (; d + 16 <= D; d += 16) {
      for (int i = 0; i < 16; ++i) lanes[i] += row[d + i] * queries[q * D + d + i];
    }
    for (int i = 0; d + i < D; ++i) lanes[i] += row[d + i] * queries[q * D + d + i];
    out[q] = 0;
    for (const double lane : lanes) out[q] += lane;
  }
}

// Added to a small number and taken away again, it rounds as nearbyintf does, but is no call.
constexpr float kRounder = 1.5f * (1 << 23);

Quantised quantise_scalar(const float* v, int64_t D, int8_t* out) {
  float top = 0;
  for (int64_t d = 0; d < D; ++d) top = std::max(top, std::fabs(v[d]));
  const float scale = top > 0 ? top / 127.0f : 1.0f, inverse = 1.0f / scale;
  double error = 0, length = 0;
  for (int64_t d = 0; d < D; ++d) {
    const float scaled = std::min(127.0f, std::max(-127.0f, v[d] * inverse));
    const float rounded = scaled + kRounder - kRounder;
    out[d] = static_cast<int8_t>(rounded);
    const double back = static_cast<double>(rounded) * scale, off = v[d] - back;
    error += off * off;
    length += back * back;
  }
  return {scale, std::sqrt(error), std::sqrt(length)};
}

namespace {

void residual(const float* row, float inverse, const float* centre, int64_t D, float* out) {
  for (int64_t d = 0; d < D; ++d) out[d] = row[d] * inverse - centre[d];
}

void place(const int8_t* rows, int64_t steps, uint8_t* out) {
  for (int64_t r = 0; r < kPlaceRows; ++r) {
    const int8_t* row = rows + r * steps * kStepDims;
    for (int64_t s = 0; s < steps; ++s) {
      uint32_t word;
      std::memcpy(&word, row + s * kStepDims, sizeof(word));
      word ^= 0x80808080u;  // + 128 in each byte
      std::memcpy(out + s * kStepBytes + r * kStepDims, &word, sizeof(word));
    }
  }
}

}  // namespace

const PackKernels kPackScalar = {residual, place};

}  // namespace splip::cpu
