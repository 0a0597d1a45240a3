// Internal to the CPU searches: a result, and the order of results.
#pragma once

#include <limits>

namespace splip::cpu {

// The score of a row without a norm. In a packed gallery its error too: it reaches no threshold.
constexpr float kNever = -std::numeric_limits<float>::infinity();

template <typename Index>
struct Entry {
  float score;
  Index row;
};

// Score descending, then index ascending. As the comparison of std's heap functions it keeps the
// worst entry on top.
constexpr auto better = [](const auto& a, const auto& b) {
  return a.score > b.score || (a.score == b.score && a.row < b.row);
};

}  // namespace splip::cpu
