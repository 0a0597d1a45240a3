// Cosine top-k in a packed gallery: an 8-bit scan that cannot miss, then exact scores of what is
// left.
//
// Every row is a unit vector less the gallery's mean, quantised to 8 bits with a scale of its own;
// so is every query, without the mean, which shifts all of its scores alike. The norms of what
// quantisation changed bound how far a score can be off (Cauchy-Schwarz), so each row has a lower
// and an upper bound. A row whose upper bound is below the K-th largest lower bound is no result;
// all others are scored again from the float rows, in double. Bound by memory for few queries (N *
// D bytes), by arithmetic for many (Q * N * D products).
#include "packed.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../common.h"
#include "../inverse_length.h"
#include "../splip.h"
#include "entry.h"
#include "isa.h"
#include "reached.h"
#include "threads.h"

namespace splip::cpu {
namespace {

constexpr float kRounding = 4e-6f;  // what float arithmetic can change a score by, generously
constexpr int64_t kBlockBytes = 256 << 10;  // of panels: in L2 while all queries pass over them
constexpr int64_t kListBytes = 96 << 20;    // of shortlists a thread; more queries take turns
constexpr int64_t kAllListBytes = int64_t{6} << 30;  // of all threads
constexpr int64_t kMaxBatch = 512;                   // queries that share a pass over the gallery
constexpr int64_t kCounted = 1024;  // lower bounds whose K-th largest is counted, not selected
constexpr int64_t kAhead = 2;  // rows between the one that is scored and the one that is fetched

using Result = Entry<int32_t>;

int64_t list_capacity(int64_t K) { return std::max<int64_t>(8192, 32 * K); }

int64_t batch_size(int64_t Q, int64_t K, int threads) {
  const int64_t per_query = (list_capacity(K) + kPairRows) * 8;
  const int64_t bytes = std::min(kListBytes, kAllListBytes / threads);
  const int64_t fits = std::max<int64_t>(kMaxGroup, bytes / per_query / kMaxGroup * kMaxGroup);
  return std::min({round_up(Q, kMaxGroup), fits, kMaxBatch});
}

// Per-query facts of a batch.
struct Query {
  double inverse;  // 1 / length
  float scale;     // of the quantised query
  float slack;     // what its quantisation can change a score by
  float offset;    // its product with the gallery's mean
  int32_t start;   // -128 * sum
};

// Scratch memory of a call, cut up in one place.
struct Workspace {
  int8_t* packed;               // [batch / G, Dp / c, G, c]
  float* unit;                  // [threads, Dp + kDimAlign]
  int8_t* bytes;                // same
  Query* queries;               // [batch]
  std::atomic<float>* shared;   // [batch] thresholds of all threads
  std::atomic<int32_t>* spilt;  // [batch] 1: the lists could not hold what has to be scored again
  Shortlist* lists;             // [threads, batch]
  float* upper;                 // [threads, batch, capacity + kPairRows]
  int32_t* rows;                // same
  float* lower;                 // [threads, capacity + kPairRows]
  Result* heaps;                // [threads, K]
  int64_t bytes_total;

  Workspace(void* memory, int64_t batch, int64_t D, int64_t K, int threads) {
    const int64_t Dp = round_up(D, kDimAlign), room = list_capacity(K) + kPairRows;
    char* at = static_cast<char*>(memory);
    char* const begin = at;
    const auto take = [&at](auto*& field, int64_t count) {
      field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(at);
      at += round_up(count * static_cast<int64_t>(sizeof(*field)), 64);
    };
    take(packed, batch * Dp);
    take(unit, threads * (Dp + kDimAlign));
    take(bytes, threads * (Dp + kDimAlign));
    take(queries, batch);
    take(shared, batch);
    take(spilt, batch);
    take(lists, threads * batch);
    take(upper, threads * batch * room);
    take(rows, threads * batch * room);
    take(lower, threads * room);
    take(heaps, threads * K);
    bytes_total = at - begin;
  }
};

// What a thread needs to compact the list of a query that is full.
struct Compaction {
  const PackedTopk* call;
  const Workspace* space;
  Shortlist* lists;  // of this thread, from the group's first query
  float* lower;
  int64_t first;  // the group's first query in the batch
};

void raise(std::atomic<float>& shared, float value) {
  float before = shared.load(std::memory_order_relaxed);
  while (before < value &&
         !shared.compare_exchange_weak(before, value, std::memory_order_relaxed)) {
  }
}

// Raise the threshold to what K lower bounds prove, and drop the rows below it.
void compact(void* context, int q) {
  const auto& c = *static_cast<Compaction*>(context);
  Shortlist& list = c.lists[q];
  const int64_t K = c.call->K, capacity = list_capacity(K), query = c.first + q;
  const Query& facts = c.space->queries[query];
  if (list.count >= K) {
    for (int64_t i = 0; i < list.count; ++i) {
      c.lower[i] = list.upper[i] - 2 * c.call->error[list.row[i]];
    }
    float reached;
    if (list.count >= kCounted) {
      reached = reached_by(c.lower, list.count, K);
    } else {
      std::nth_element(c.lower, c.lower + K - 1, c.lower + list.count, std::greater<float>());
      reached = c.lower[K - 1];
    }
    raise(c.space->shared[query], reached - 2 * facts.slack - kRounding);
  }
  list.threshold = std::max(list.threshold, c.space->shared[query].load(std::memory_order_relaxed));
  int64_t kept = 0;
  for (int64_t i = 0; i < list.count; ++i) {
    list.upper[kept] = list.upper[i];
    list.row[kept] = list.row[i];
    kept += list.upper[i] >= list.threshold;
  }
  list.count = kept;
  list.next = std::min(capacity, std::max<int64_t>(2 * kept, K + 256));
  if (kept >= capacity) {  // too many rows are too close together: this query is scored row by row
    c.space->spilt[query].store(1, std::memory_order_relaxed);
    list.count = 0;
    list.threshold = std::numeric_limits<float>::infinity();
  }
}

float exact_score(const PackedTopk& a, const Query& query, const float* q, int64_t row,
                  int64_t ahead, DotKernel dot) {
#ifdef __GNUC__
  __builtin_prefetch(a.inverse + ahead);
#endif
  const double sum = dot(q, a.gallery + row * a.D, a.D, a.gallery + ahead * a.D);
  return static_cast<float>(sum * query.inverse * a.inverse[row]);
}

void offer(Result* heap, int64_t& size, int64_t K, Result entry) {
  if (size < K) {
    heap[size++] = entry;
    std::push_heap(heap, heap + size, better);
  } else if (better(entry, heap[0])) {
    std::pop_heap(heap, heap + K, better);
    heap[K - 1] = entry;
    std::push_heap(heap, heap + K, better);
  }
}

bool is_allowed(const PackedTopk& a, int64_t row) {
  return a.allowed == nullptr || (a.allowed[row / kPairRows] >> (row % kPairRows) & 1u);
}

// The results found, best first, then the allowed rows that score -infinity, then nothing (-1).
void write(const PackedTopk& a, int64_t q, Result* heap, int64_t size, bool all_never) {
  std::sort(heap, heap + size, better);
  float* scores = a.scores + q * a.K;
  int64_t* indices = a.indices + q * a.K;
  int64_t k = 0;
  for (; k < size; ++k) {
    scores[k] = heap[k].score;
    indices[k] = heap[k].row;
  }
  for (int64_t row = 0; k < a.K && row < a.N; ++row) {
    if ((all_never || a.error[row] == kNever) && is_allowed(a, row)) {
      scores[k] = kNever;
      indices[k++] = row;
    }
  }
  for (; k < a.K; ++k) {
    scores[k] = kNever;
    indices[k] = -1;
  }
}

// A query without a norm scores -infinity everywhere, so its results are the first rows; a zero
// query scores 0 with every row that has a norm, so they are the first of these: no scan. False
// for any other query.
bool answer_trivial(const PackedTopk& a, int64_t q, Result* heap) {
  const float* v = a.queries + q * a.D;
  const double squares = current().dot(v, v, a.D, v);
  const bool never = inverse_length(squares) == 0;
  if (!never && squares != 0) return false;
  int64_t size = 0;
  for (int64_t row = 0; row < a.N && size < a.K && !never; ++row) {
    if (a.error[row] != kNever && is_allowed(a, row)) {
      heap[size++] = {0.0f, static_cast<int32_t>(row)};
    }
  }
  write(a, q, heap, size, never);
  return true;
}

// The queries that share a pass over the gallery.
struct Batch {
  const PackedTopk& call;
  const Workspace& space;
  const Kernels& kernels;
  const Scanner& scanner;
  const int64_t* numbers;  // [count] of the queries
  int64_t count, places;   // places: whole groups; past the count they are empty
  int threads;
};

// How great the greatest component of a query has to be taken for its 8-bit numbers to sum to at
// most kMostTogether wherever a scanner adds products of `together` steps in 16 bits. 0: any is
// good. Rounding may raise each of the numbers by a half.
float least_top(const float* unit, int64_t D, int together) {
  float most = 0;
  const int64_t dims = together * kStepDims;
  for (int64_t first = 0; dims > 0 && first < D; first += dims) {
    for (int64_t half = 0; half < kStepDims; half += 2) {
      float above = 0, below = 0;
      for (int64_t d = first + half; d < std::min(D, first + dims); d += kStepDims) {
        for (int64_t i = d; i < std::min(D, d + 2); ++i) {
          above += std::max(0.0f, unit[i]);
          below += std::max(0.0f, -unit[i]);
        }
      }
      most = std::max({most, above, below});
    }
  }
  return most * 127.0f / static_cast<float>(kMostTogether - together);
}

// Quantises a query and puts it among its group's; an empty place takes part with zeros.
void prepare_query(const Batch& batch, int64_t place, int thread) {
  const PackedTopk& a = batch.call;
  const Workspace& w = batch.space;
  const int64_t D = a.D, Dp = round_up(D, kDimAlign);
  const int64_t G = batch.scanner.group, chunk = batch.scanner.chunk;
  Query& facts = w.queries[place];
  int8_t* group = w.packed + place / G * G * Dp + place % G * chunk;
  float* unit = w.unit + thread * (Dp + kDimAlign);
  int8_t* bytes = w.bytes + thread * (Dp + kDimAlign);
  std::fill(bytes, bytes + Dp, int8_t{0});
  facts = Query{0, 0, 0, 0, 0};
  if (place < batch.count) {
    const float* v = a.queries + batch.numbers[place] * D;
    facts.inverse = inverse_length(batch.kernels.dot(v, v, D, v));
    double offset = 0;
    for (int64_t d = 0; d < D; ++d) {
      unit[d] = static_cast<float>(v[d] * facts.inverse);
      offset += static_cast<double>(unit[d]) * a.centre[d];
    }
    // The greatest component sets the scale: one more, as great as the scanner needs it, lost
    // again.
    unit[D] = least_top(unit, D, batch.scanner.together);
    const Quantised quantised = batch.kernels.quantise(unit, D + 1, bytes);
    bytes[D] = 0;
    facts.scale = quantised.scale;
    facts.slack = static_cast<float>(quantised.error * a.centre[D]) * 1.0001f;
    facts.offset = static_cast<float>(offset);
    int32_t sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += bytes[d];
    facts.start = -128 * sum;
  }
  for (int64_t d = 0; d < Dp; d += chunk) std::memcpy(group + d * G, bytes + d, chunk);
}

// Empty lists, of threads that do not come, too. What no query asks for never passes.
void start_lists(const Batch& batch, int64_t place) {
  const Workspace& w = batch.space;
  const int64_t room = list_capacity(batch.call.K) + kPairRows;
  const float threshold = place < batch.count ? -FLT_MAX : std::numeric_limits<float>::infinity();
  w.shared[place].store(-FLT_MAX, std::memory_order_relaxed);
  w.spilt[place].store(0, std::memory_order_relaxed);
  for (int t = 0; t < batch.threads; ++t) {
    const int64_t list = t * batch.places + place, at = list * room;
    w.lists[list] = Shortlist{w.upper + at, w.rows + at, 0, batch.call.K + 256, threshold};
  }
}

// The gallery in blocks, which the threads take one by one.
class Blocks {
 public:
  Blocks(int64_t pairs, int64_t steps)
      : pairs_(pairs), in_block_(std::max<int64_t>(1, kBlockBytes / (steps * kStepBytes))) {
    count_ = (pairs + in_block_ - 1) / in_block_;
    // In a scattered order: a gallery sorted by score would raise the thresholds only at its end.
    stride_ = std::max<int64_t>(1, static_cast<int64_t>(count_ * 0.618));
    while (std::gcd(stride_, count_) != 1) ++stride_;
  }
  // The first pair of the next block; `pairs` when there is none.
  int64_t take() {
    const int64_t number = taken_.fetch_add(1, std::memory_order_relaxed);
    return number < count_ ? number * stride_ % count_ * in_block_ : pairs_;
  }
  int64_t pairs() const { return pairs_; }
  int64_t in_block() const { return in_block_; }

 private:
  int64_t pairs_, in_block_, count_, stride_;
  std::atomic<int64_t> taken_{0};
};

// One thread's share of the scan: all groups of queries pass over a block, then over the next.
void scan_blocks(const Batch& batch, Blocks& blocks, int thread) {
  const PackedTopk& a = batch.call;
  const Workspace& w = batch.space;
  const int64_t G = batch.scanner.group, groups = batch.places / G;
  const int64_t steps = steps_of(a.D), pair_bytes = steps * kStepBytes;
  const int64_t room = list_capacity(a.K) + kPairRows;
  Shortlist* lists = w.lists + thread * batch.places;
  for (int64_t pair = blocks.take(), next; pair < blocks.pairs(); pair = next) {
    next = blocks.take();
    // The first group would wait for memory: the groups before it each fetch a share of the next
    // block.
    const int64_t share = next < blocks.pairs() ? (kStepBytes + groups - 1) / groups : 0;
    Scan scan{};
    scan.panels = a.panels + pair * pair_bytes;
    scan.scale = a.scale + pair * kPairRows;
    scan.error = a.error + pair * kPairRows;
    scan.allowed = a.allowed == nullptr ? nullptr : a.allowed + pair;
    scan.first_row = pair * kPairRows;
    scan.pairs = std::min(blocks.in_block(), blocks.pairs() - pair);
    scan.steps = steps;
    scan.ahead_step = share;
    scan.compact = compact;
    for (int64_t g = 0; g < groups; ++g) {
      int32_t start[kMaxGroup];
      float scale[kMaxGroup];
      Compaction context{&a, &w, lists + g * G, w.lower + thread * room, g * G};
      for (int64_t q = 0; q < G; ++q) {
        const int64_t place = g * G + q;
        start[q] = w.queries[place].start;
        scale[q] = w.queries[place].scale;
        Shortlist& list = lists[place];
        list.threshold = std::max(list.threshold, w.shared[place].load(std::memory_order_relaxed));
      }
      scan.ahead =
          a.panels + (share ? next : pair) * pair_bytes + g * share * blocks.in_block() * steps;
      scan.queries = w.packed + g * G * steps * kStepDims;
      scan.start = start;
      scan.query_scale = scale;
      scan.lists = lists + g * G;
      scan.count = static_cast<int>(std::min(G, batch.count - g * G));
      scan.context = &context;
      batch.scanner.run(scan);
    }
  }
}

bool is_spilt(const Batch& batch, int64_t place) {
  return batch.space.spilt[place].load(std::memory_order_relaxed) != 0;
}

// The answer to one query from the lists of all threads. `hopeful` is room for what they hold.
void score_lists(const Batch& batch, int64_t place, int thread, std::vector<Result>& hopeful) {
  const PackedTopk& a = batch.call;
  const Workspace& w = batch.space;
  const int64_t room = list_capacity(a.K) + kPairRows, number = batch.numbers[place];
  const Query& query = w.queries[place];
  // Every thread's list once more, so that the first list's rows do not all have to be scored.
  for (int t = 0; t < batch.threads; ++t) {
    Shortlist* list = w.lists + t * batch.places + place;
    Compaction context{&a, &w, list, w.lower + thread * room, place};
    if (list->count > 0) compact(&context, 0);
  }
  hopeful.clear();
  for (int t = 0; t < batch.threads; ++t) {
    const Shortlist& list = w.lists[t * batch.places + place];
    for (int64_t i = 0; i < list.count; ++i) hopeful.push_back({list.upper[i], list.row[i]});
  }
  const auto hopes = static_cast<int64_t>(hopeful.size());
  // The most hopeful K first: what they score spares most of the others.
  if (hopes > a.K) {
    std::nth_element(hopeful.begin(), hopeful.begin() + a.K, hopeful.end(), better);
  }
  // Those that were scored take the places of the first; now and then all but the best K go.
  Result* found = hopeful.data();
  const int64_t most = a.K + std::max<int64_t>(16, a.K / 4);
  int64_t size = 0, next = a.K;
  float bar = kNever;  // the K-th best so far
  for (int64_t i = 0; i < hopes; ++i) {
    const float limit = found[i].score + query.slack + query.offset + kRounding;
    if (limit < bar) continue;
    const int64_t row = found[i].row, ahead = found[std::min(i + kAhead, hopes - 1)].row;
    const float score =
        exact_score(a, query, a.queries + number * a.D, row, ahead, batch.kernels.dot);
    found[size++] = {score, static_cast<int32_t>(row)};
    if (size < next) continue;
    std::nth_element(found, found + a.K - 1, found + size, better);
    bar = found[a.K - 1].score;
    size = a.K;
    next = most;
  }
  if (size > a.K) std::nth_element(found, found + a.K - 1, found + size, better);
  write(a, number, found, std::min(size, a.K), false);
}

// The answer to a query with too many near ties for the lists: every row, exactly.
void score_all_rows(const Batch& batch, int64_t place) {
  const PackedTopk& a = batch.call;
  Result* const heaps = batch.space.heaps;
  const Query& query = batch.space.queries[place];
  const float* q = a.queries + batch.numbers[place] * a.D;
  std::vector<int64_t> sizes(batch.threads);
  parallel_for(batch.threads, batch.threads, [&](int64_t part) {
    Result* heap = heaps + part * a.K;
    const int64_t last = a.N * (part + 1) / batch.threads;
    for (int64_t row = a.N * part / batch.threads; row < last; ++row) {
      if (a.error[row] == kNever || !is_allowed(a, row)) continue;
      const float score =
          exact_score(a, query, q, row, std::min(row + kAhead, a.N - 1), batch.kernels.dot);
      offer(heap, sizes[part], a.K, {score, static_cast<int32_t>(row)});
    }
  });
  for (int part = 1; part < batch.threads; ++part) {
    for (int64_t i = 0; i < sizes[part]; ++i) offer(heaps, sizes[0], a.K, heaps[part * a.K + i]);
  }
  write(a, batch.numbers[place], heaps, sizes[0], false);
}

// One pass over the gallery for the queries numbers[0, count).
void scan_batch(const PackedTopk& a, const Workspace& w, const int64_t* numbers, int64_t count,
                int threads) {
  const Kernels& kernels = current();
  const Scanner& scanner = a.Q <= kFewQueries ? kernels.scan_few : kernels.scan;
  const Batch batch{a,      w, kernels, scanner, numbers, count, round_up(count, scanner.group),
                    threads};
  Blocks blocks(pairs_of(a.N), steps_of(a.D));
  std::atomic<int64_t> next{0};
  parallel(threads, [&](const Member& member) {
    const int thread = member.number;
    share(member, batch.places, [&](int64_t place) {
      prepare_query(batch, place, thread);
      start_lists(batch, place);
    });
    member.barrier();
    scan_blocks(batch, blocks, thread);
    member.barrier();
    std::vector<Result> hopeful;
    take_turns(next, count, [&](int64_t place) {
      if (!is_spilt(batch, place)) score_lists(batch, place, thread, hopeful);
    });
  });
  for (int64_t place = 0; place < count; ++place) {
    if (is_spilt(batch, place)) score_all_rows(batch, place);
  }
}

}  // namespace

int64_t packed_topk_scratch(int64_t Q, int64_t D, int64_t K, int threads) {
  return Workspace(nullptr, batch_size(Q, K, threads), D, K, threads).bytes_total;
}

void packed_topk(const PackedTopk& a, int threads) {
  const int64_t batch = batch_size(a.Q, a.K, threads);
  const Workspace space(a.scratch, batch, a.D, a.K, threads);
  std::vector<char> trivial(a.Q);
  std::atomic<int64_t> next{0};
  parallel(threads, [&](const Member& member) {
    Result* heap = space.heaps + member.number * a.K;
    take_turns(next, a.Q, [&](int64_t q) { trivial[q] = answer_trivial(a, q, heap); });
  });
  std::vector<int64_t> asked;  // the queries that need the scan
  for (int64_t q = 0; q < a.Q; ++q) {
    if (!trivial[q]) asked.push_back(q);
  }
  const auto count = static_cast<int64_t>(asked.size());
  for (int64_t first = 0; first < count; first += batch) {
    scan_batch(a, space, asked.data() + first, std::min(batch, count - first), threads);
  }
}

}  // namespace splip::cpu
