// What CUDA's cosine_topk decides: which rows each pass scans, which scores pass, which rows are
// the answer. Nothing here needs a GPU: the kernels' bodies are templates over a team of threads,
// a block on the device and a loop on the host, where tests/test_topk_select.py runs them.
//
// The algorithm, for each query:
//   1. Passes over 1/R^n of the rows, ..., 1/R^2, 1/R: each keeps the rows that pass the query's
//      cut and then raises the cut to the K-th best approximate score less twice the error that
//      such a score can have. K rows of the gallery reach it, so no row below it can be in the
//      answer.
//   2. The last pass scans all rows. What passes is a candidate: about K * R rows.
//   3. The candidates not clearly worse than the K-th best are scored again, exactly, and sorted.
//   4. A query whose candidates do not fit, or are fewer than K, is scanned again exactly, row by
//      row; this always ends, whatever the scores.
// Keys order by score descending, then by index ascending, and no two are equal: the result does
// not depend on the order in which candidates arrive.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace splip::topk {

// ---- keys: (score, index) in 64 bits; 0 is no row ----

// Bits that compare, unsigned, as the scores do; -0 equals 0; never 0 for a number.
SPLIP_HOST_DEVICE uint32_t ordered(float score) {
  const float sum = score + 0.0f;  // -0 + 0 is 0
  uint32_t bits;
#ifdef __CUDA_ARCH__
  bits = __float_as_uint(sum);
#else
  std::memcpy(&bits, &sum, sizeof bits);
#endif
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

SPLIP_HOST_DEVICE float score_of(uint32_t order) {
  const uint32_t bits = order & 0x80000000u ? order & 0x7fffffffu : ~order;
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
#endif
}

SPLIP_HOST_DEVICE uint64_t make_key(float score, uint32_t index) {
  return uint64_t(ordered(score)) << 32 | (0xffffffffu - index);
}

SPLIP_HOST_DEVICE uint32_t key_order(uint64_t key) { return static_cast<uint32_t>(key >> 32); }

SPLIP_HOST_DEVICE uint32_t key_index(uint64_t key) {
  return 0xffffffffu - static_cast<uint32_t>(key);
}

// ---- the plan of passes ----

constexpr int kPerThread = 16;    // keys that a thread of a selecting block holds in registers
constexpr int kFinalists = 4096;  // candidates of a query that are scored exactly, at most
constexpr int kScanList = 4096;   // keys that a block of the exact scan holds
constexpr int kScanRound = 256;   // rows that it scores between two looks at the list
constexpr int kMaxLevels = 16;
constexpr int kMaxSplits = 128;  // blocks that share the exact scan of one query
constexpr int64_t kMaxRows = int64_t(1) << 31;

// Pass i scans rows sampled(j, step[i]), j < rows[i]. Pass 0 has no cut yet and keeps every row, in
// the order of j; the last one scans all rows.
struct Plan {
  int64_t capacity;  // candidates of a query in a pass, a power of two; rows[0] <= capacity
  int levels;
  int64_t rows[kMaxLevels];
  uint64_t step[kMaxLevels];
};

// Row j of a sample whose rows lie `step` / 2^32 apart.
constexpr uint64_t kAllRows = uint64_t(1) << 32;
SPLIP_HOST_DEVICE int64_t sampled(int64_t j, uint64_t step) {
  const auto low = static_cast<uint32_t>(step), high = static_cast<uint32_t>(step >> 32);
  const auto j32 = static_cast<uint32_t>(j);
  return int64_t(uint64_t(j32) * high + (uint64_t(j32) * low >> 32));
}

// A pass that would be less than `slack` times as large as the first one is left out: what passes
// its cut then comes from so many times more rows.
inline Plan plan_levels(int64_t N, int64_t capacity, int64_t ratio, int64_t slack = 1) {
  Plan plan{};
  plan.capacity = capacity;
  int64_t rows[kMaxLevels];
  uint64_t step[kMaxLevels];
  rows[0] = N;
  step[0] = kAllRows;
  int levels = 1;
  for (int64_t n = N; n > capacity && levels < kMaxLevels;) {
    const int64_t wanted = n / ratio > slack * capacity ? n / ratio : capacity;
    // At even distances from the first row to the last, so that a gallery sorted by class or by
    // score is sampled fairly; distances of a whole number and the golden ratio's fraction, so that
    // the sample does not fall in step with rows that take turns.
    constexpr uint64_t kGolden = 0x9e3779b9;  // 0.618 * 2^32
    uint64_t distance = (uint64_t(N / wanted) << 32) + kGolden;
    const uint64_t end = uint64_t(N) << 32;
    while ((end - 1) / distance + 1 > uint64_t(wanted)) distance += kAllRows;
    n = static_cast<int64_t>((end - 1) / distance + 1);
    rows[levels] = n;
    step[levels++] = distance;
  }
  plan.levels = levels;
  for (int i = 0; i < levels; ++i) {
    plan.rows[i] = rows[levels - 1 - i];
    plan.step[i] = step[levels - 1 - i];
  }
  return plan;
}

// A pass lets through about K * ratio rows of each query: few enough for its capacity several
// times over (how many pass varies by the K-th part's root, so small K get more room), and for
// tiles of many queries few enough that storing them costs little beside the products.
// Rows in 8 bits have scores that are known less well, and more of them pass: of normal scores with
// a deviation of 0.044 (D = 512), e^(z * margin / 0.044) times as many z deviations out, which is 6
// times at the margin 0.015 of queries in 16 bits, and 20 times at the 0.03 of queries in 8 bits.
inline Plan plan_passes(int64_t N, int64_t K, bool many_queries, bool eight_bits) {
  int64_t capacity = 16384;
  if (many_queries && !eight_bits && K <= 128) capacity = K <= 32 ? 4096 : 8192;
  int64_t ratio = capacity / ((K <= 64 ? 4 : 2) * K);
  if (eight_bits) {
    ratio /= many_queries ? 16 : 8;
    if (ratio < 4) ratio = 4;
  }
  const int64_t most = many_queries ? 32 : 1024;
  // The stream of 8 bits expects less than a fifth of its capacity: twice that fits.
  return plan_levels(N, capacity, ratio < most ? ratio : most, eight_bits && !many_queries ? 2 : 1);
}

// Blocks that share the exact scan of a query: their lists of K go where its candidates were.
inline int scan_splits(int64_t capacity, int64_t K) {
  const int64_t splits = capacity / K;
  return static_cast<int>(splits < 1 ? 1 : (splits > kMaxSplits ? kMaxSplits : splits));
}

// ---- how wrong an approximate score can be ----

// Rows in 8 bits have an error each: the length of what 8 bits lost, which no product with a unit
// query exceeds. Their keys hold the score plus the error, the most that the exact one can be.
struct RowErrors {
  const float* errors;  // [N], or null: the error is the same for all rows, and in the margin

  // The order of the least that a row's score can be; 0 if the key is no row.
  SPLIP_HOST_DEVICE uint32_t least(uint64_t key) const {
    if (errors == nullptr || key == 0) return key_order(key);
    return ordered(score_of(key_order(key)) - 2 * errors[key_index(key)]);
  }
};

// What rounding in float32 can do to a score of 8-bit numbers, whose sums are exact: four roundings
// of numbers up to 2, generously.
constexpr double kEightBitRounding = 2e-6;

// Largest difference between an approximate score of two unit vectors and the exact one, in
// float32. Products of 16-bit numbers are exact; a sum of n numbers of total size 1 on the tensor
// cores, which may cut each addend at the last bit of the largest, is off by less than 2.5 n units
// of 2^-24 (8 addends and the sum so far at once, each cut by two units, and the result by two),
// and the norm's sum of squares by n / 2; the rest is for the norms' roots, products and the cut
// itself. tf32 keeps 11 bits of both factors: mma.sync is given rounded ones, wgmma drops the rest.
inline double score_error(int64_t D, bool tf32) {
  const double unit = 1.0 / (1 << 24);
  return unit * (4.0 * D + 32.0) + (tf32 ? 2.02 / 1024 : 0.0);
}

// A row or query longer than this in float32 could overflow a product: its query is scanned
// exactly.
constexpr double kLargestSquare = 1.329227995784916e36;  // 2^120

// ---- selection; `Team` is a block of threads or its emulation ----

// Two sums at once, of a team's threads.
struct Sums {
  uint32_t first, second;
};

// The k-th largest of `count` keys at(i), or 0 if fewer than k are not 0. Two bits at a time: half
// as many rounds as a key has bits, no histogram whose bins collide. count <= team.size() *
// kPerThread, at most 2^14, so that two counts fit in 32 bits.
template <typename Key, typename Team, typename At>
SPLIP_DEVICE Key kth_largest(Team& team, At at, int count, int k) {
  typename Team::template Own<Key, kPerThread> own(team);
  team.threads([&](int thread) {
    SPLIP_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      const int i = j * team.size() + thread;
      own.of(thread)[j] = i < count ? at(i) : Key(0);
    }
  });
  Key found = 0;
  for (int bit = int(sizeof(Key)) * 8 - 2; bit >= 0; bit -= 2) {
    const Key one = found | Key(1) << bit, two = found | Key(2) << bit, three = one | two;
    const Sums reach = team.sum([&](int thread) {
      Sums n = {0, 0};
      SPLIP_UNROLL
      for (int j = 0; j < kPerThread; ++j) {
        const Key key = own.of(thread)[j];
        n.first += uint32_t(key >= one) + (uint32_t(key >= two) << 16);
        n.second += key >= three;
      }
      return n;
    });
    const auto enough = [&](uint32_t n) { return n >= static_cast<uint32_t>(k); };
    if (enough(reach.second)) {
      found = three;
    } else if (enough(reach.first >> 16)) {
      found = two;
    } else if (enough(reach.first & 0xffff)) {
      found = one;
    }
  }
  return found;
}

// What a score must reach to be of interest: the k-th best of the rows' least scores, less
// `margin`, twice the error of a score; -infinity while fewer than k rows are known.
template <typename Team>
SPLIP_DEVICE float next_cut(Team& team, const uint64_t* keys, int count, int k, float margin,
                            RowErrors errors) {
  const uint32_t kth =
      kth_largest<uint32_t>(team, [&](int i) { return errors.least(keys[i]); }, count, k);
  return kth == 0 ? -INFINITY : score_of(kth) - margin;
}

// Sort list[0, n) descending, in place (bitonic). The list has room for the next power of two.
template <typename Team>
SPLIP_DEVICE void sort_descending(Team& team, uint64_t* list, int n) {
  int size = 1;
  while (size < n) size *= 2;
  team.each(size - n, [&](int i) { list[n + i] = 0; });
  team.sync();
  for (int width = 2; width <= size; width *= 2) {
    for (int gap = width / 2; gap > 0; gap /= 2) {
      team.each(size / 2, [&](int i) {
        const int a = 2 * i - (i & (gap - 1)), b = a + gap;
        const uint64_t x = list[a], y = list[b];
        if ((x < y) == ((a & width) == 0)) {
          list[a] = y;
          list[b] = x;
        }
      });
      team.sync();
    }
  }
}

// The candidates of a query, count of them passed the last cut, to a sorted list of finalists with
// exact scores; its length, or -1 if the candidates do not hold the answer for certain.
// exact(index) is called by whole warps.
template <typename Team, typename Exact>
SPLIP_DEVICE int finish(Team& team, const uint64_t* keys, int count, int capacity, int k,
                        float margin, RowErrors errors, Exact exact, uint64_t* list, int* fill) {
  if (count > capacity || count < k) return -1;
  const float cut = next_cut(team, keys, count, k, margin, errors);
  if (!(cut > -INFINITY)) return -1;  // fewer than k rows that have a score
  const uint32_t lowest = ordered(cut);
  team.once([&] { *fill = 0; });
  team.sync();
  team.each(count, [&](int i) {
    const uint64_t key = keys[i];
    if (key_order(key) < lowest) return;
    const int slot = team.add(fill, 1);
    if (slot < kFinalists) list[slot] = key;
  });
  team.sync();
  const int n = *fill;
  if (n > kFinalists) return -1;
  team.each_warp(n, [&](int i) {
    const uint32_t index = key_index(list[i]);
    const float score = exact(index);
    team.lead([&] { list[i] = make_key(score, index); });
  });
  team.sync();
  sort_descending(team, list, n);
  return n;
}

// No score is known to be the best that a query can have.
constexpr uint32_t kNoBest = 0xffffffffu;

// Rows first to last, each scored exactly, to the k best in list[0, k); 0 beyond the allowed ones.
// `best`: the order of the best score that the query can have with any row: with k rows that have
// it the scan ends, since those before come first. A query of zeros scores 0, one without a norm
// -infinity: neither costs more than a few rows.
template <typename Team, typename Exact>
SPLIP_DEVICE void scan_exactly(Team& team, int64_t first, int64_t last, const uint8_t* allowed,
                               int k, uint32_t best, Exact exact, uint64_t* list, int* fill) {
  uint64_t bar = 0;  // the k-th best so far: what does not beat it is not kept
  team.once([&] { *fill = 0; });
  team.sync();
  for (int64_t base = first; base < last; base += kScanRound) {
    const int rows = static_cast<int>(last - base < kScanRound ? last - base : kScanRound);
    team.each_warp(rows, [&](int i) {
      const auto index = static_cast<uint32_t>(base + i);
      if (allowed != nullptr && allowed[index] == 0) return;
      const uint64_t key = make_key(exact(index), index);
      if (key > bar) team.lead([&] { list[team.add(fill, 1)] = key; });
    });
    team.sync();
    const int n = *fill;
    if (n > kScanList - kScanRound || (best != kNoBest && n >= k)) {
      sort_descending(team, list, n);
      bar = list[k - 1];
      team.once([&] { *fill = k; });
    }
    team.sync();  // before anyone adds to what others still read
    if (key_order(bar) >= best) break;
  }
  const int n = *fill;
  sort_descending(team, list, n);
  team.each(n < k ? k - n : 0, [&](int i) { list[n + i] = 0; });
  team.sync();
}

// The k best of the lists of all splits, all keys different, sorted into list[0, min(k, result)).
template <typename Team>
SPLIP_DEVICE int merge_splits(Team& team, const uint64_t* keys, int count, int k, uint64_t* list,
                              int* fill) {
  const uint64_t kth = kth_largest<uint64_t>(team, [&](int i) { return keys[i]; }, count, k);
  const uint64_t lowest = kth == 0 ? 1 : kth;
  team.once([&] { *fill = 0; });
  team.sync();
  team.each(count, [&](int i) {
    if (keys[i] >= lowest) list[team.add(fill, 1)] = keys[i];
  });
  team.sync();
  const int n = *fill;
  sort_descending(team, list, n);
  return n;
}

// Results of one query from a sorted list of n keys; index -1 at -infinity beyond them.
template <typename Team>
SPLIP_DEVICE void write_results(Team& team, const uint64_t* list, int n, int k, float* scores,
                                int64_t* indices) {
  team.each(k, [&](int i) {
    scores[i] = i < n ? score_of(key_order(list[i])) : -INFINITY;
    indices[i] = i < n ? int64_t(key_index(list[i])) : -1;
  });
}

}  // namespace splip::topk
