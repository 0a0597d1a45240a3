// Cosine top-k in a packed gallery: an 8-bit scan that cannot miss, then exact scores of what is
// left.
//
// Every row is a unit vector less the gallery's mean, quantised to 8 bits with a scale of its own;
// so is every query, without the mean, which shifts all of its scores alike. The norms of what
// quantisation changed bound how far a score can be off (Cauchy-Schwarz), so each row has a lower
// and an upper bound. A row whose upper bound is below the K-th largest lower bound is no result;
// all others are scored again from the float rows, in double. Bound by memory for few queries (N *
// D bytes), by arithmetic for many (Q * N * D products).
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common.h"
#include "../inverse_length.h"
#include "../splip.h"
#include "entry.h"
#include "isa.h"
#include "packed.h"

namespace splip::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kRounding = 4e-6f;  // what float arithmetic can change a score by, generously
constexpr int64_t kBlockBytes = 256
                                << 10;    // of panels: stay in L2 while all queries pass over them
constexpr int64_t kListBytes = 96 << 20;  // of shortlists a thread; more queries take turns
constexpr int64_t kMaxBatch = 512;        // queries that share a pass over the gallery
constexpr int64_t kAhead = 2;  // rows between the one that is scored and the one that is fetched
constexpr int64_t kMeanChunks = 64;  // fixed, so that the mean does not depend on the threads

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
int64_t steps_of(int64_t D) { return round_up(D, kDimAlign) / kStepDims; }
int64_t pairs_of(int64_t N) { return (N + kPairRows - 1) / kPairRows; }

// A scan through small pages spends its time in the page tables.
void use_huge_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

using Result = Entry<int32_t>;

int64_t list_capacity(int64_t K) { return std::max<int64_t>(8192, 32 * K); }

int64_t batch_size(int64_t Q, int64_t K) {
  const int64_t per_query = (list_capacity(K) + kPairRows) * 8;
  const int64_t fits = std::max<int64_t>(kMaxGroup, kListBytes / per_query / kMaxGroup * kMaxGroup);
  return std::min({round_up(Q, kMaxGroup), fits, kMaxBatch});
}

// Per-query facts of a batch.
struct Query {
  double inverse;  // 1 / length
  float scale;     // of the quantised query
  float slack;     // what its quantisation can change a score by
  float offset;    // its product with the gallery's mean
  int32_t start;   // -128 * sum
  bool used;       // false: no query, the group is not full
};

// Scratch memory of a call, cut up in one place.
struct Workspace {
  int8_t* packed;               // [batch / G, Dp / c, G, c]
  float* unit;                  // [threads, Dp]
  int8_t* bytes;                // [threads, Dp]
  Query* queries;               // [batch]
  std::atomic<float>* shared;   // [batch] thresholds of all threads
  std::atomic<int32_t>* spilt;  // [batch] 1: the lists could not hold what has to be scored again
  Shortlist* lists;             // [threads, batch]
  float* upper;                 // [threads, batch, capacity + kPairRows]
  int32_t* rows;                // same
  float* lower;                 // [threads, capacity + kPairRows]
  Result* heaps;                // [threads, K]
  Result* hopeful;              // [threads, threads, capacity + kPairRows]
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
    take(unit, threads * Dp);
    take(bytes, threads * Dp);
    take(queries, batch);
    take(shared, batch);
    take(spilt, batch);
    take(lists, threads * batch);
    take(upper, threads * batch * room);
    take(rows, threads * batch * room);
    take(lower, threads * room);
    take(heaps, threads * K);
    take(hopeful, static_cast<int64_t>(threads) * threads * room);
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
    std::nth_element(c.lower, c.lower + K - 1, c.lower + list.count, std::greater<float>());
    const float proven = c.lower[K - 1] - 2 * facts.slack - kRounding;
    raise(c.space->shared[query], proven);
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

// q: -1 for none.
void prepare_query(const PackedTopk& a, const Workspace& w, const Scanner& scanner, int64_t q,
                   int64_t place, int thread) {
  const int64_t D = a.D, Dp = round_up(D, kDimAlign), G = scanner.group, chunk = scanner.chunk;
  Query& facts = w.queries[place];
  int8_t* group = w.packed + place / G * G * Dp + place % G * chunk;
  float* unit = w.unit + thread * Dp;
  int8_t* bytes = w.bytes + thread * Dp;
  std::fill(bytes, bytes + Dp, int8_t{0});
  facts = Query{0, 0, 0, 0, 0, false};
  w.shared[place].store(-FLT_MAX, std::memory_order_relaxed);
  w.spilt[place].store(0, std::memory_order_relaxed);
  if (q >= 0) {
    const float* v = a.queries + q * D;
    facts.inverse = inverse_length(current().dot(v, v, D, v));
    facts.used = true;
    double offset = 0;
    for (int64_t d = 0; d < D; ++d) {
      unit[d] = static_cast<float>(v[d] * facts.inverse);
      offset += static_cast<double>(unit[d]) * a.centre[d];
    }
    const Quantised quantised = current().quantise(unit, D, bytes);
    facts.scale = quantised.scale;
    facts.slack = static_cast<float>(quantised.error * a.centre[D]) * 1.0001f;
    facts.offset = static_cast<float>(offset);
    int32_t sum = 0;
    for (int64_t d = 0; d < D; ++d) sum += bytes[d];
    facts.start = -128 * sum;
  }
  for (int64_t d = 0; d < Dp; d += chunk) std::memcpy(group + d * G, bytes + d, chunk);
}

// One pass over the gallery for the queries numbers[0, count).
void scan_batch(const PackedTopk& a, const Workspace& w, const int64_t* numbers, int64_t count,
                int threads) {
  const Kernels& kernels = current();
  const Scanner& scanner = a.Q <= kFewQueries ? kernels.scan_few : kernels.scan;
  const int64_t G = scanner.group, batch = round_up(count, G), groups = batch / G;
  const int64_t Dp = round_up(a.D, kDimAlign), steps = Dp / kStepDims, pairs = pairs_of(a.N);
  const int64_t room = list_capacity(a.K) + kPairRows;
  const int64_t block_pairs = std::max<int64_t>(1, kBlockBytes / (steps * kStepBytes));
  const int64_t blocks = (pairs + block_pairs - 1) / block_pairs;
  // Blocks in a scattered order: a gallery sorted by score would raise the thresholds only at its
  // end.
  int64_t stride = std::max<int64_t>(1, static_cast<int64_t>(blocks * 0.618));
  while (std::gcd(stride, blocks) != 1) ++stride;
  std::atomic<int64_t> taken{0};

#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
#pragma omp for schedule(static)
    for (int64_t place = 0; place < batch; ++place) {
      prepare_query(a, w, scanner, place < count ? numbers[place] : -1, place, thread);
      const float threshold =
          w.queries[place].used ? -FLT_MAX : std::numeric_limits<float>::infinity();
      for (int t = 0; t < threads; ++t) {  // of threads that do not come, too
        const int64_t list = t * batch + place, at = list * room;
        w.lists[list] = Shortlist{w.upper + at, w.rows + at, 0, a.K + 256, threshold};
      }
    }
    Shortlist* lists = w.lists + thread * batch;
    const auto take = [&] {
      const int64_t number = taken.fetch_add(1, std::memory_order_relaxed);
      return number < blocks ? number * stride % blocks * block_pairs : pairs;
    };
    for (int64_t pair = take(), next; pair < pairs; pair = next) {
      next = take();
      // The first group would wait for memory: the groups before it each fetch a share of the next
      // block.
      const int64_t share = next < pairs ? (kStepBytes + groups - 1) / groups : 0;
      for (int64_t g = 0; g < groups; ++g) {
        int32_t start[kMaxGroup];
        float scale[kMaxGroup];
        Compaction context{&a, &w, lists + g * G, w.lower + thread * room, g * G};
        for (int64_t q = 0; q < G; ++q) {
          const int64_t place = g * G + q;
          start[q] = w.queries[place].start;
          scale[q] = w.queries[place].scale;
          Shortlist& list = lists[place];
          list.threshold =
              std::max(list.threshold, w.shared[place].load(std::memory_order_relaxed));
        }
        scanner.run(Scan{
            a.panels + pair * steps * kStepBytes, a.scale + pair * kPairRows,
            a.error + pair * kPairRows, a.allowed == nullptr ? nullptr : a.allowed + pair,
            pair * kPairRows, std::min(block_pairs, pairs - pair), steps,
            a.panels + (share ? next : pair) * steps * kStepBytes + g * share * block_pairs * steps,
            share, w.packed + g * G * Dp, start, scale, lists + g * G,
            static_cast<int>(std::min(G, count - g * G)), compact, &context});
      }
    }
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (int64_t place = 0; place < count; ++place) {
      const Query& query = w.queries[place];
      if (w.spilt[place].load(std::memory_order_relaxed) != 0) continue;
      Result* heap = w.heaps + thread * a.K;
      int64_t size = 0;
      const float* q = a.queries + numbers[place] * a.D;
      // Every thread's list once more, so that the first list's rows do not all have to be
      // scored.
      for (int t = 0; t < threads; ++t) {
        Compaction context{&a, &w, w.lists + t * batch + place, w.lower + thread * room, place};
        if (w.lists[t * batch + place].count > 0) compact(&context, 0);
      }
      Result* hopeful = w.hopeful + thread * threads * room;
      int64_t hopes = 0;
      for (int t = 0; t < threads; ++t) {
        const Shortlist& list = w.lists[t * batch + place];
        for (int64_t i = 0; i < list.count; ++i) hopeful[hopes++] = {list.upper[i], list.row[i]};
      }
      // The most hopeful K first: what they score spares most of the others.
      if (hopes > a.K) std::nth_element(hopeful, hopeful + a.K, hopeful + hopes, better);
      for (int64_t i = 0; i < hopes; ++i) {
        const float limit = hopeful[i].score + query.slack + query.offset + kRounding;
        if (size == a.K && limit < heap[0].score) continue;
        offer(heap, size, a.K,
              {exact_score(a, query, q, hopeful[i].row,
                           hopeful[std::min(i + kAhead, hopes - 1)].row, kernels.dot),
               hopeful[i].row});
      }
      write(a, numbers[place], heap, size, false);
    }
  }

  // Too many near ties for the lists: every row, exactly.
  for (int64_t place = 0; place < count; ++place) {
    if (w.spilt[place].load(std::memory_order_relaxed) == 0) continue;
    const Query& query = w.queries[place];
    const float* q = a.queries + numbers[place] * a.D;
    int64_t sizes[kMaxThreads] = {};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; ++part) {
      Result* heap = w.heaps + part * a.K;
      for (int64_t row = a.N * part / threads; row < a.N * (part + 1) / threads; ++row) {
        if (a.error[row] == kNever || !is_allowed(a, row)) continue;
        offer(heap, sizes[part], a.K,
              {exact_score(a, query, q, row, std::min(row + kAhead, a.N - 1), kernels.dot),
               static_cast<int32_t>(row)});
      }
    }
    for (int part = 1; part < threads; ++part) {
      for (int64_t i = 0; i < sizes[part]; ++i)
        offer(w.heaps, sizes[0], a.K, w.heaps[part * a.K + i]);
    }
    write(a, numbers[place], w.heaps, sizes[0], false);
  }
}

}  // namespace

int64_t packed_panel_bytes(int64_t N, int64_t D) { return pairs_of(N) * steps_of(D) * kStepBytes; }

int64_t pack_gallery_scratch(int64_t D, int threads) {
  const int64_t rows = std::min(threads, kMaxThreads) * 2 * round_up(D, kDimAlign);
  return (kMeanChunks * D + rows) * static_cast<int64_t>(sizeof(float));
}

void pack_gallery(const PackGallery& a, int threads) {
  threads = std::min(threads, kMaxThreads);
  const int64_t Dp = round_up(a.D, kDimAlign), steps = Dp / kStepDims, pairs = pairs_of(a.N);
  auto* sums = static_cast<float*>(a.scratch);
  float* rows = sums + kMeanChunks * a.D;
  const Kernels& kernels = current();
  std::fill(sums, sums + kMeanChunks * a.D, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < kMeanChunks; ++chunk) {
    float* sum = sums + chunk * a.D;
    for (int64_t n = a.N * chunk / kMeanChunks; n < a.N * (chunk + 1) / kMeanChunks; ++n) {
      const float* g = a.gallery + n * a.D;
      a.inverse[n] = inverse_length(kernels.dot(g, g, a.D, g + (n + 1 < a.N) * a.D));
      const auto inverse = static_cast<float>(a.inverse[n]);
      if (inverse == 0) continue;
      for (int64_t d = 0; d < a.D; ++d) sum[d] += g[d] * inverse;
    }
  }
  for (int64_t d = 0; d < a.D; ++d) {
    double total = 0;
    for (int64_t chunk = 0; chunk < kMeanChunks; ++chunk) total += sums[chunk * a.D + d];
    a.centre[d] = static_cast<float>(total / std::max<int64_t>(1, a.N));
  }
  use_huge_pages(a.panels, pairs * steps * kStepBytes);
  double longest = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : longest)
  for (int64_t pair = 0; pair < pairs; ++pair) {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    float* residual = rows + thread * 2 * Dp;
    auto* bytes = reinterpret_cast<int8_t*>(residual + Dp);
    std::fill(bytes, bytes + Dp, int8_t{0});
    uint8_t* panel = a.panels + pair * steps * kStepBytes;
    for (int64_t r = 0; r < kPairRows; ++r) {
      const int64_t n = pair * kPairRows + r;
      const bool odd = n >= a.N || a.inverse[n] == 0;
      if (odd) {
        a.scale[n] = 0;
        a.error[n] = kNever;
        std::fill(bytes, bytes + a.D, int8_t{0});
      } else {
        const float* g = a.gallery + n * a.D;
        const auto inverse = static_cast<float>(a.inverse[n]);
        for (int64_t d = 0; d < a.D; ++d) residual[d] = g[d] * inverse - a.centre[d];
        const Quantised row = kernels.quantise(residual, a.D, bytes);
        a.scale[n] = row.scale;
        a.error[n] = static_cast<float>(row.error * 1.0001 + 1e-6);
        longest = std::max(longest, row.length);
      }
      uint8_t* out =
          panel + r * kStepDims;  // panel 0 holds rows 0 to 15 of a step, panel 1 the others
      for (int64_t s = 0; s < steps; ++s) {
        uint32_t word;
        std::memcpy(&word, bytes + s * kStepDims, sizeof(word));
        word ^= 0x80808080u;  // + 128 in each byte
        std::memcpy(out + s * kStepBytes, &word, sizeof(word));
      }
    }
  }
  a.centre[a.D] = static_cast<float>(longest * 1.0001);
}

int64_t packed_topk_scratch(int64_t Q, int64_t D, int64_t K, int threads) {
  threads = std::min(threads, kMaxThreads);
  return Workspace(nullptr, batch_size(Q, K), D, K, threads).bytes_total;
}

void packed_topk(const PackedTopk& a, int threads) {
  threads = std::min(threads, kMaxThreads);
  const int64_t batch = batch_size(a.Q, a.K);
  const Workspace space(a.scratch, batch, a.D, a.K, threads);
  std::vector<char> trivial(a.Q);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t q = 0; q < a.Q; ++q) {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    trivial[q] = answer_trivial(a, q, space.heaps + thread * a.K);
  }
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
