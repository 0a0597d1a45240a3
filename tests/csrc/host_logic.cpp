// The logic that the CUDA kernels share with the host, as a library for the tests: the same
// templates, run by a team of emulated threads that arrive in any order.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/mma_layout.h"
#include "../../csrc/patch_map.h"
#include "../../csrc/topk_select.h"

namespace {

using namespace splip;

struct HostTeam {
  int count;
  std::mt19937 random;

  template <typename Key, int kCount>
  struct Own {
    std::vector<Key> keys;
    explicit Own(const HostTeam& team) : keys(size_t(team.count) * kCount) {}
    Key* of(int thread) { return keys.data() + size_t(thread) * kCount; }
  };

  int size() const { return count; }
  void sync() const {}
  template <typename F>
  void threads(F f) const {
    for (int i = 0; i < count; ++i) f(i);
  }
  template <typename F>
  void once(F f) const {
    f();
  }
  template <typename F>
  void each(int n, F f) {
    std::vector<int> order(n > 0 ? n : 0);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (int i : order) f(i);
  }
  template <typename F>
  void each_warp(int n, F f) {
    each(n, f);
  }
  template <typename F>
  void lead(F f) const {
    f();
  }
  int add(int* counter, int n) const {
    const int before = *counter;
    *counter += n;
    return before;
  }
  template <typename F>
  topk::Sums sum(F f) const {
    topk::Sums total = {0, 0};
    for (int i = 0; i < count; ++i) {
      const topk::Sums own = f(i);
      total.first += own.first;
      total.second += own.second;
    }
    return total;
  }
};

}  // namespace

extern "C" {

uint64_t make_key(float score, uint32_t index) { return topk::make_key(score, index); }
float key_score(uint64_t key) { return topk::score_of(topk::key_order(key)); }
uint32_t key_index(uint64_t key) { return topk::key_index(key); }

// rows, step: kMaxLevels each. Returns the number of levels; ratio 0: the plan of the kernels.
int plan(int64_t N, int64_t K, int many, int eight_bits, int64_t ratio, int64_t capacity,
         int64_t* rows, uint64_t* step, int64_t* room) {
  const topk::Plan p = ratio == 0 ? topk::plan_passes(N, K, many != 0, eight_bits != 0)
                                  : topk::plan_levels(N, capacity, ratio);
  std::copy(p.rows, p.rows + p.levels, rows);
  std::copy(p.step, p.step + p.levels, step);
  *room = p.capacity;
  return p.levels;
}
int64_t sampled(int64_t j, uint64_t step) { return topk::sampled(j, step); }
int scan_splits(int64_t capacity, int64_t K) { return topk::scan_splits(capacity, K); }
double score_error(int64_t D, int tf32) { return topk::score_error(D, tf32 != 0); }

uint64_t kth_largest(const uint64_t* keys, int count, int k, int threads) {
  HostTeam team{threads, std::mt19937(0)};
  return topk::kth_largest<uint64_t>(team, [&](int i) { return keys[i]; }, count, k);
}

void sort_descending(uint64_t* list, int n) {
  HostTeam team{4, std::mt19937(0)};
  topk::sort_descending(team, list, n);
}

// The whole search of one query, pass by pass as cosine_topk.cu launches it. approximate: NaN where
// a row has no score; exact: -infinity there. errors: of each row in 8 bits, or null. Returns 1 if
// the exact scan was needed.
int search(const float* approximate, const float* exact, const float* errors,
           const uint8_t* allowed, int64_t N, int k, int many, int64_t capacity, int64_t ratio,
           float margin, unsigned seed, float* scores, int64_t* indices) {
  const topk::Plan plan = ratio == 0 ? topk::plan_passes(N, k, many != 0, errors != nullptr)
                                     : topk::plan_levels(N, capacity, ratio);
  const topk::RowErrors row_errors{errors};
  HostTeam team{static_cast<int>(plan.capacity / topk::kPerThread), std::mt19937(seed)};
  std::vector<uint64_t> keys(plan.capacity, 0x1234567812345678);  // as found in fresh memory
  std::vector<uint64_t> list(topk::kFinalists);
  const auto score_exactly = [&](uint32_t index) { return exact[index]; };
  float cut = -INFINITY;
  int fill = 0, n = -1;
  for (int level = 0; level < plan.levels; ++level) {
    int count = 0;
    for (int64_t j = 0; j < plan.rows[level]; ++j) {
      const int64_t index = topk::sampled(j, plan.step[level]);
      const float most = approximate[index] + (errors ? errors[index] : 0.0f);
      const float score = allowed && !allowed[index] ? NAN : most;
      if (level == 0) {
        keys[j] = score == score ? topk::make_key(score, static_cast<uint32_t>(index)) : 0;
      } else if (score >= cut && count++ < plan.capacity) {
        keys[count - 1] = topk::make_key(score, static_cast<uint32_t>(index));
      }
    }
    if (level == 0) count = static_cast<int>(plan.rows[0]);
    if (level + 1 < plan.levels) {
      const int kept = count < plan.capacity ? count : static_cast<int>(plan.capacity);
      cut = std::fmax(cut, topk::next_cut(team, keys.data(), kept, k, margin, row_errors));
    } else {
      n = topk::finish(team, keys.data(), count, static_cast<int>(plan.capacity), k, margin,
                       row_errors, score_exactly, list.data(), &fill);
    }
  }
  const bool unresolved = n < 0;
  if (unresolved) {
    const int splits = topk::scan_splits(plan.capacity, k);
    std::vector<uint64_t> scan_list(topk::kScanList);
    for (int64_t split = 0; split < splits; ++split) {
      topk::scan_exactly(team, N * split / splits, N * (split + 1) / splits, allowed, k,
                         topk::kNoBest, score_exactly, scan_list.data(), &fill);
      std::copy(scan_list.begin(), scan_list.begin() + k, keys.begin() + split * k);
    }
    n = topk::merge_splits(team, keys.data(), splits * k, k, list.data(), &fill);
  }
  topk::write_results(team, list.data(), n, k, scores, indices);
  return unresolved;
}

int swizzled(int row, int chunk) { return mma::swizzled(row, chunk); }
void a_source(int lane, int step, int* out) {
  const mma::Source s = mma::a_source(lane, step);
  out[0] = s.row;
  out[1] = s.chunk;
}
void b_source(int lane, int step, int* out) {
  const mma::Source s = mma::b_source(lane, step);
  out[0] = s.row;
  out[1] = s.chunk;
}
int c_row(int lane, int i) { return mma::c_row(lane, i); }
int c_column(int lane, int i) { return mma::c_column(lane, i); }
uint64_t descriptor(unsigned address, int step) {
  return mma::descriptor_at(mma::descriptor(address), step);
}
int group_row(int thread, int i) { return mma::group_row(thread, i); }
int group_column(int thread, int i) { return mma::group_column(thread, i); }
int direct_row(int lane) { return mma::direct_row(lane); }
int direct_chunk(int lane) { return mma::direct_chunk(lane); }
uint32_t least(uint64_t key, const float* errors) { return topk::RowErrors{errors}.least(key); }

// Where the pixels of runs of 8 come from: patch, offset, b and kCount times (y, x) of every run.
void runs_of_eight(const int64_t* permutation, int B, int H, int W, int S, int grid, int64_t* out) {
  for (int i = 0; i < B * H * W / 8; ++i, out += 19) {
    const Run run = run_of<8>(i, H, W, S);
    const Sources from = sources_of<8>(run, permutation, H, W, grid);
    out[0] = run.patch;
    out[1] = run.offset;
    out[2] = run.b;
    for (int j = 0; j < 8; ++j) {
      const Pixel& p = j < from.turn ? from.first : from.second;
      out[3 + 2 * j] = p.y;
      out[4 + 2 * j] = p.x + j;
    }
  }
}

void load_24_bytes(const uint8_t* from, const uint8_t* begin, const uint8_t* end, uint32_t* out) {
  uint32_t words[6];
  load_bytes<24>(from, begin, end, words);
  std::copy(words, words + 6, out);
}
}
