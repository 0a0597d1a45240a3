// The CPU's kernels against plain arithmetic, without Python: for processors that are emulated.
//
//     kernel_check [LEVEL [emulated]]
//
// LEVEL: what the processor must choose by itself. emulated: without what emulators of programs
// cannot do, a fork() with threads.
//
// Every buffer ends where memory that cannot be touched begins, stands behind bytes that must stay
// as they are, and holds what no answer may depend on.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/convert.h"
#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/reached.h"
#include "../../csrc/splip.h"
#include "guarded.h"

namespace {

using namespace splip;
using cpu::bf16;

std::mt19937 generator(1);
float normal() { return std::normal_distribution<float>()(generator); }
int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }

// ---- the parts of a level, against the portable ones ----

void check_dot() {
  for (int64_t D : {1, 3, 15, 16, 17, 31, 64, 100, 512, 769}) {
    Guarded<float> a(D), b(D);
    for (int64_t d = 0; d < D; ++d) a[d] = normal(), b[d] = normal() * 1e3f;
    const double got = cpu::current().dot(a.data(), b.data(), D, a.data());
    const double want = cpu::dot_scalar(a.data(), b.data(), D, a.data());
    CHECK(got == want, "D=%d: %a, not %a", static_cast<int>(D), got, want);
  }
}

void check_quantise() {
  for (int64_t D : {1, 3, 7, 8, 9, 15, 16, 17, 33, 64, 100, 512, 770}) {
    // The last: numbers of halves, which round to the even neighbour.
    for (float size : {0.0f, 1e-40f, 1e-30f, 1e-6f, 1.0f, 254.0f}) {
      Guarded<float> v(D);
      Guarded<int8_t> got(D), want(D);
      for (float& x : v) x = normal() * size;
      if (size == 254.0f) {
        for (float& x : v) x = static_cast<float>(below(255) - 127) / 2;
        v[below(D)] = 127;
      }
      const cpu::Quantised a = cpu::current().quantise(v.data(), D, got.data());
      const cpu::Quantised b = cpu::quantise_scalar(v.data(), D, want.data());
      CHECK(std::equal(got.begin(), got.end(), want.begin()), "bytes, D=%d size=%g",
            static_cast<int>(D), size);
      CHECK(a.scale == b.scale, "%g, not %g", a.scale, b.scale);
      if (size == 0.0f || size > 1e-10f) {
        const double slack = 1e-5 * b.error + 1e-6 * b.length;  // the level may round in float
        CHECK(std::fabs(a.error - b.error) <= slack, "%g, not %g", a.error, b.error);
        CHECK(std::fabs(a.length - b.length) <= 1e-5 * b.length, "%g, not %g", a.length, b.length);
      }
    }
  }
}

void check_packing() {
  const cpu::PackKernels& level = *cpu::current().pack;
  for (int64_t D : {1, 3, 8, 9, 17, 33, 64, 100, 130, 512, 770}) {
    Guarded<float> row(D), centre(D), got(D), want(D);
    for (int64_t d = 0; d < D; ++d) row[d] = normal(), centre[d] = 0.1f * normal();
    const float inverse = 0.001f + static_cast<float>(below(1000)) / 997;
    level.residual(row.data(), inverse, centre.data(), D, got.data());
    cpu::kPackScalar.residual(row.data(), inverse, centre.data(), D, want.data());
    CHECK(std::equal(got.begin(), got.end(), want.begin()), "residual, D=%d", static_cast<int>(D));
    const int64_t steps = cpu::steps_of(D), bytes = steps * cpu::kStepBytes;
    Guarded<int8_t> rows(cpu::kPlaceRows * steps * cpu::kStepDims);
    for (int8_t& byte : rows) byte = static_cast<int8_t>(below(256) - 128);
    for (int64_t first = 0; first < cpu::kPairRows; first += cpu::kPlaceRows) {
      Guarded<uint8_t> pair(bytes), same(bytes);
      std::fill(pair.begin(), pair.end(), uint8_t{7});
      std::fill(same.begin(), same.end(), uint8_t{7});
      level.place(rows.data(), steps, pair.data() + first * cpu::kStepDims);
      cpu::kPackScalar.place(rows.data(), steps, same.data() + first * cpu::kStepDims);
      CHECK(std::equal(pair.begin(), pair.end(), same.begin()), "place, D=%d first=%d",
            static_cast<int>(D), static_cast<int>(first));
    }
  }
}

void check_reached() {
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t count = 1 + below(4000), K = 1 + below(count);
    Guarded<float> v(count);
    const float size = trial % 3 == 0 ? 1e-6f : 1.0f, middle = trial % 2 == 0 ? 0.0f : 0.9f;
    for (float& x : v) x = middle + size * normal() * (below(50) == 0 ? 30.0f : 1.0f);
    const float foot = cpu::reached_by(v.data(), count, K);
    const auto reach = std::count_if(v.begin(), v.end(), [&](float x) { return x >= foot; });
    CHECK(reach >= K, "%d of %d reach it, not %d", static_cast<int>(reach), static_cast<int>(count),
          static_cast<int>(K));
  }
}

struct Compactions {
  int calls = 0;
};

// Every row that reaches the threshold, with its upper bound, and no other. whole: of whole
// numbers, where the thresholds are some rows' very bounds.
void check_scan(const cpu::Scanner& scanner, int count, int64_t pairs, int64_t steps, bool masked,
                bool whole) {
  const int64_t rows = pairs * cpu::kPairRows, Dp = steps * cpu::kStepDims;
  const int64_t room = rows + cpu::kPairRows;
  const int G = scanner.group;
  Guarded<uint8_t> panels(pairs * steps * cpu::kStepBytes);
  Guarded<float> scale(rows), error(rows), upper(G * room), query_scale(G);
  Guarded<uint32_t> allowed(pairs);
  Guarded<int8_t> queries(G * Dp);
  Guarded<int32_t> start(G), row(G * room);
  Guarded<cpu::Shortlist> lists(G);
  std::vector<int8_t> plain(G * Dp);
  for (uint8_t& byte : panels) byte = static_cast<uint8_t>(below(2) ? 1 + below(255) : 255);
  for (float& x : scale) x = whole ? 1.0f : 0.001f + 0.01f * static_cast<float>(below(100));
  for (float& x : error) x = whole ? 0.0f : 0.1f * normal();
  error[below(rows)] = -std::numeric_limits<float>::infinity();
  for (uint32_t& bits : allowed) bits = static_cast<uint32_t>(generator());
  // Of row n and query q.
  const auto product = [&](int64_t n, int q) {
    const uint8_t* step = panels.data() + n / cpu::kPairRows * steps * cpu::kStepBytes;
    int64_t sum = 0;
    for (int64_t d = 0; d < Dp; ++d) {
      const int64_t place = d / cpu::kStepDims * cpu::kStepBytes +
                            n % cpu::kPairRows * cpu::kStepDims + d % cpu::kStepDims;
      sum += (step[place] - 128) * plain[q * Dp + d];
    }
    return static_cast<double>(sum);
  };
  Compactions compactions;
  for (int q = 0; q < G; ++q) {
    int32_t sum = 0;
    // What may meet in 16 bits, spread evenly; else many of the largest: too narrow sums overflow.
    const int64_t most = scanner.together > 0 ? cpu::kMostTogether / (2 * scanner.together) : 127;
    for (int64_t d = 0; d < Dp; ++d) {
      const int64_t any = below(2 * most + 1) - most, end = below(2) ? most : -most;
      const int64_t value = q >= count ? 0 : below(2) ? any : end;
      plain[q * Dp + d] = static_cast<int8_t>(value);
      queries[(d / scanner.chunk * G + q) * scanner.chunk + d % scanner.chunk] =
          static_cast<int8_t>(value);
      sum += static_cast<int32_t>(value);
    }
    start[q] = -128 * sum;
    query_scale[q] = q >= count ? 0 : whole ? 1 : 0.01f + 0.001f * static_cast<float>(q);
    float threshold = q >= count ? std::numeric_limits<float>::infinity() : q % 3 * 20.0f;
    if (whole && q < count) threshold = static_cast<float>(product(below(rows), q));
    lists[q] = {upper.data() + q * room, row.data() + q * room, 0, room, threshold};
    if (q == 1) lists[q].next = 1;  // whatever it finds is compacted
  }
  cpu::Scan scan{};
  scan.panels = panels.data();
  scan.scale = scale.data();
  scan.error = error.data();
  scan.allowed = masked ? allowed.data() : nullptr;
  scan.first_row = 1000;
  scan.pairs = pairs;
  scan.steps = steps;
  scan.ahead = panels.data();
  scan.queries = queries.data();
  scan.start = start.data();
  scan.query_scale = query_scale.data();
  scan.lists = lists.data();
  scan.count = count;
  scan.compact = [](void* context, int q) {
    CHECK(q == 1, "query %d is compacted", q);
    ++static_cast<Compactions*>(context)->calls;
  };
  scan.context = &compactions;
  scanner.run(scan);
  for (int q = 0; q < G; ++q) {
    const cpu::Shortlist& list = lists[q];
    int64_t next = 0;
    std::vector<float> found(rows, -std::numeric_limits<float>::infinity());
    for (; next < list.count; ++next) found.at(list.row[next] - 1000) = list.upper[next];
    for (int64_t n = 0; n < rows; ++n) {
      const double want = product(n, q) * scale[n] * query_scale[q] + error[n];
      const double size = std::fabs(want) + std::fabs(static_cast<double>(error[n]));
      const double slack = whole ? 0 : 1e-6 * size;
      const bool open = !masked || (allowed[n / cpu::kPairRows] >> n % cpu::kPairRows & 1u);
      if (!open || q >= count || want < list.threshold - slack) {
        CHECK(std::isinf(found[n]), "query %d row %d should not be there", q, static_cast<int>(n));
      } else if (whole ? want >= list.threshold : want > list.threshold + slack) {
        CHECK(std::fabs(found[n] - want) <= slack, "query %d row %d: %g, not %g", q,
              static_cast<int>(n), found[n], want);
      }
    }
  }
  if (count > 1) CHECK(compactions.calls > 0 || lists[1].count == 0, "a full list stays full");
}

// ---- searches ----

struct Packed {
  Guarded<uint8_t> panels;
  Guarded<float> scale, error, centre;
  Guarded<double> inverse;
  Packed(float* gallery, int64_t N, int64_t D, int threads)
      : panels(cpu::packed_panel_bytes(N, D)),
        scale((N + 31) / 32 * 32),
        error((N + 31) / 32 * 32),
        centre(D + 1),
        inverse(N) {
    Guarded<char> scratch((cpu::pack_gallery_scratch(D, threads) + 7) / 8 * 8);
    cpu::pack_gallery({gallery, panels.data(), scale.data(), error.data(), inverse.data(),
                       centre.data(), scratch.data(), N, D},
                      threads);
  }
};

struct Answer {
  std::vector<float> scores;
  std::vector<int64_t> indices;
  bool operator==(const Answer& other) const {
    return indices == other.indices && scores.size() == other.scores.size() &&
           std::memcmp(scores.data(), other.scores.data(), 4 * scores.size()) == 0;
  }
};

Answer search(float* queries, float* gallery, const uint32_t* allowed, int64_t Q, int64_t N,
              int64_t D, int64_t K, int threads) {
  Packed packed(gallery, N, D, threads);
  Guarded<char> scratch((cpu::packed_topk_scratch(Q, D, K, threads) + 63) / 64 * 64);
  Guarded<float> scores(Q * K);
  Guarded<int64_t> indices(Q * K);
  cpu::packed_topk({queries, gallery, packed.panels.data(), packed.scale.data(),
                    packed.error.data(), packed.inverse.data(), packed.centre.data(), allowed,
                    scores.data(), indices.data(), scratch.data(), Q, N, D, K},
                   threads);
  return {{scores.begin(), scores.end()}, {indices.begin(), indices.end()}};
}

Answer search_unpacked(float* queries, float* gallery, int64_t Q, int64_t N, int64_t D, int64_t K,
                       int threads) {
  Guarded<char> scratch((cpu::cosine_topk_scratch(Q, N, D, K, threads) + 15) / 16 * 16);
  Guarded<float> scores(Q * K);
  Guarded<int64_t> indices(Q * K);
  CosineTopk call{queries, gallery, scores.data(), indices.data(), scratch.data(), Q, N,
                  D,       K,       DType::f32};
  cpu::cosine_topk(call, threads);
  return {{scores.begin(), scores.end()}, {indices.begin(), indices.end()}};
}

// Against scores in double: each score is its row's, none is left out, ties stand by index.
void check_answer(const Answer& answer, float* queries, float* gallery, const uint32_t* allowed,
                  int64_t Q, int64_t N, int64_t D, int64_t K) {
  for (int64_t q = 0; q < Q; ++q) {
    std::vector<double> all(N);
    for (int64_t n = 0; n < N; ++n) {
      double dot = 0, a = 0, b = 0;
      for (int64_t d = 0; d < D; ++d) {
        const double x = queries[q * D + d], y = gallery[n * D + d];
        dot += x * y, a += x * x, b += y * y;
      }
      const bool open = allowed == nullptr || (allowed[n / 32] >> n % 32 & 1u);
      all[n] = open ? dot / std::max(std::sqrt(a), 1e-12) / std::max(std::sqrt(b), 1e-12) : -9;
    }
    std::vector<double> best(all);
    std::sort(best.begin(), best.end(), std::greater<double>());
    for (int64_t k = 0; k < K; ++k) {
      const float score = answer.scores[q * K + k];
      const int64_t row = answer.indices[q * K + k];
      if (best[k] == -9) {
        CHECK(row == -1 && std::isinf(score), "place %d is not empty", static_cast<int>(k));
        continue;
      }
      CHECK(row >= 0 && row < N, "row %d", static_cast<int>(row));
      CHECK(std::fabs(score - all[row]) <= 1e-7, "score %g of a row of %g", score, all[row]);
      CHECK(std::fabs(score - best[k]) <= 1e-7, "place %d: %g, not %g", static_cast<int>(k), score,
            best[k]);
      if (k == 0) continue;
      const float before = answer.scores[q * K + k - 1];
      CHECK(before > score || (before == score && answer.indices[q * K + k - 1] < row),
            "place %d is not in order", static_cast<int>(k));
    }
  }
}

// One search at every level and with several threads: the same bits, and right.
void check_search(const char* kind, int64_t Q, int64_t N, int64_t D, int64_t K, bool masked) {
  const std::string kinds = kind;
  Guarded<float> queries(Q * D), gallery(N * D);
  Guarded<uint32_t> allowed((N + 31) / 32);
  for (uint32_t& bits : allowed) bits = static_cast<uint32_t>(generator() & generator());
  std::vector<float> direction(D);
  for (float& x : direction) x = kinds == "crowded" ? 5 * normal() : 0;
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t d = 0; d < D; ++d) {
      const float x = normal();
      gallery[n * D + d] = direction[d] + (kinds == "heavy" ? x * x * x * x * x : x);
      if (kinds == "ties" && n >= 40) gallery[n * D + d] = gallery[n % 40 * D + d];
    }
  }
  for (int64_t i = 0; i < Q * D; ++i) queries[i] = direction[i % D] + normal();
  const uint32_t* mask = masked ? allowed.data() : nullptr;
  Answer first;
  const std::string before = cpu::isa(), name = at;
  for (const std::string& level : cpu::levels()) {
    cpu::set_isa(level);
    for (int threads : {1, 3, 70}) {
      if (threads == 70 && Q != 9) continue;
      at = name + " " + kinds + " Q=" + std::to_string(Q) + " N=" + std::to_string(N) +
           " D=" + std::to_string(D) + " level " + level + " threads " + std::to_string(threads);
      const Answer answer = search(queries.data(), gallery.data(), mask, Q, N, D, K, threads);
      if (first.scores.empty()) {
        first = answer;
        check_answer(first, queries.data(), gallery.data(), mask, Q, N, D, K);
      }
      CHECK(answer == first, "levels or threads differ");
    }
    if (!masked) {
      CHECK(search_unpacked(queries.data(), gallery.data(), Q, N, D, K, 3) == first, "unpacked");
    }
  }
  cpu::set_isa(before);
  at = name;
}

// Several callers at a time, each with threads of its own; a child that fork() made.
void check_callers([[maybe_unused]] bool emulated) {
  constexpr int64_t Q = 9, N = 1200, D = 64, K = 10;
  Guarded<float> queries(Q * D), gallery(N * D);
  for (float& x : queries) x = normal();
  for (float& x : gallery) x = normal();
  const auto run = [&](int threads) {
    return search(queries.data(), gallery.data(), nullptr, Q, N, D, K, threads);
  };
  const Answer want = run(1);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] {
      for (int time = 0; time < 5; ++time) CHECK(run(2 + i) == want, "caller %d", i);
    });
  }
  for (std::thread& caller : callers) caller.join();
#ifndef _OPENMP  // whose children have to do with one thread
  if (emulated) return;
  const pid_t child = fork();
  if (child == 0) _exit(run(3) == want ? 0 : 1);
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0, "a child's search");
#endif
}

// ---- the two small ops ----

template <typename T>
constexpr DType dtype_of() {
  return sizeof(T) == 2 ? DType::bf16 : DType::f32;
}

template <typename T>
void check_layernorm(int64_t B, int64_t L, int64_t P, int64_t D, int threads) {
  const int64_t tokens = L + P, rows = B * tokens;
  const double tolerance = sizeof(T) == 2 ? 0.04 : 2e-5;
  Guarded<T> x(B * L * D), prompts(P * D), out(rows * D), normed(rows * D), d_normed(rows * D),
      d_x(B * L * D);
  Guarded<float> gamma(D), beta(D), mean(rows), rstd(rows), d_prompts(P * D), d_gamma(D), d_beta(D),
      scratch(kLayerNormChunks * 2 * D);
  for (auto* values : {&x, &prompts, &d_normed}) {
    for (T& value : *values) cpu::store(&value, 2 * normal() + 1);
  }
  for (float& value : gamma) value = normal();
  for (float& value : beta) value = normal();
  cpu::prompt_layernorm(
      {x.data(), prompts.data(), gamma.data(), beta.data(), out.data(), normed.data(), mean.data(),
       rstd.data(), B, L, P, 1, D, 0, 1e-5f, dtype_of<T>()},
      threads);
  std::vector<double> want_gamma(D), want_beta(D);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / tokens, t = row % tokens;
    const bool is_prompt = t >= 1 && t <= P;
    T* in =
        is_prompt ? prompts.data() + (t - 1) * D : x.data() + (b * L + (t == 0 ? 0 : t - P)) * D;
    double sum = 0, squares = 0, mean_g = 0, mean_gx = 0;
    for (int64_t d = 0; d < D; ++d) sum += cpu::load(in[d]) / static_cast<double>(D);
    for (int64_t d = 0; d < D; ++d) {
      squares += std::pow(cpu::load(in[d]) - sum, 2) / static_cast<double>(D);
    }
    const double scale = 1 / std::sqrt(squares + 1e-5);
    for (int64_t d = 0; d < D; ++d) {
      CHECK(cpu::load(out[row * D + d]) == cpu::load(in[d]), "tokens are copied");
      const double unit = (cpu::load(in[d]) - sum) * scale, want = unit * gamma[d] + beta[d];
      CHECK(std::fabs(cpu::load(normed[row * D + d]) - want) <= tolerance * (1 + std::fabs(want)),
            "normed: %g, not %g", cpu::load(normed[row * D + d]), want);
      const double g = cpu::load(d_normed[row * D + d]);
      want_gamma[d] += g * unit, want_beta[d] += g;
      mean_g += g * gamma[d] / static_cast<double>(D);
      mean_gx += g * gamma[d] * unit / static_cast<double>(D);
    }
    CHECK(std::fabs(mean[row] - sum) <= 1e-5 && std::fabs(rstd[row] / scale - 1) <= 1e-5, "mean");
    if (row > 0) continue;
    cpu::prompt_layernorm_backward({nullptr, d_normed.data(), out.data(), gamma.data(), mean.data(),
                                    rstd.data(), d_x.data(), d_prompts.data(), d_gamma.data(),
                                    d_beta.data(), scratch.data(), B, L, P, 1, D, 0, dtype_of<T>()},
                                   threads);
    for (int64_t d = 0; d < D; ++d) {
      const double g = cpu::load(d_normed[d]) * static_cast<double>(gamma[d]);
      const double unit = (cpu::load(in[d]) - sum) * scale;
      const double want = scale * (g - mean_g - unit * mean_gx);
      CHECK(std::fabs(cpu::load(d_x[d]) - want) <= tolerance * (1 + std::fabs(want)),
            "d_x: %g, not %g", cpu::load(d_x[d]), want);
    }
  }
  for (int64_t d = 0; d < D; ++d) {
    CHECK(std::fabs(d_gamma[d] - want_gamma[d]) <= 1e-3 * (1 + std::fabs(want_gamma[d])),
          "d_gamma");
    CHECK(std::fabs(d_beta[d] - want_beta[d]) <= 1e-3 * (1 + std::fabs(want_beta[d])), "d_beta");
  }
}

template <typename In, typename Out>
void check_patchify(int64_t H, int64_t W, int64_t S, bool channels_last, int threads) {
  constexpr int64_t B = 2, C = 3;
  Guarded<In> images(B * C * H * W);
  Guarded<Out> patches(B * C * (H / S) * (W / S) * S * S);
  for (In& value : images) value = static_cast<In>(below(256));
  Patchify call{};
  call.images = images.data();
  call.stride_b = C * H * W;
  call.stride_c = channels_last ? 1 : H * W;
  call.stride_y = channels_last ? W * C : W;
  call.stride_x = channels_last ? C : 1;
  call.patches = patches.data();
  call.B = B, call.C = C, call.H = H, call.W = W, call.S = S, call.grid = 1;
  for (int c = 0; c < C; ++c) call.mean[c] = 0.4f + 0.05f * c, call.std[c] = 0.2f + 0.01f * c;
  call.image_dtype = sizeof(In) == 1 ? DType::u8 : DType::f32;
  call.dtype = dtype_of<Out>();
  cpu::patchify(call, threads);
  for (int64_t i = 0; i < patches.size(); ++i) {
    const int64_t x = i % S, y = i / S % S, c = i / (S * S) % C, patch = i / (C * S * S);
    const int64_t per = (H / S) * (W / S), b = patch / per;
    const int64_t py = patch % per / (W / S) * S + y, px = patch % (W / S) * S + x;
    auto value = static_cast<float>(
        images[b * call.stride_b + c * call.stride_c + py * call.stride_y + px * call.stride_x]);
    if (sizeof(In) == 1) value /= 255.0f;
    Out want;
    cpu::store(&want, (value - call.mean[c]) / call.std[c]);
    CHECK(std::memcmp(&want, &patches[i], sizeof(Out)) == 0, "%g, not %g", cpu::load(patches[i]),
          cpu::load(want));
  }
}

void check_level() {
  check_dot();
  check_quantise();
  check_packing();
  check_reached();
  for (const cpu::Scanner* scanner : {&cpu::current().scan, &cpu::current().scan_few}) {
    for (int count = 1; count <= scanner->group; count += count < 9 ? 1 : 7) {
      check_scan(*scanner, count, 3, 16, false, false);
      check_scan(*scanner, count, 2, 144, true, false);  // sums of 16 bits would overflow
      check_scan(*scanner, count, 2, 16, false, true);
    }
  }
  for (int threads : {1, 3}) {
    check_layernorm<float>(2, 5, 2, 33, threads);
    check_layernorm<float>(1, 3, 1, 768, threads);
    check_layernorm<bf16>(2, 5, 2, 33, threads);
    check_layernorm<bf16>(1, 3, 1, 256, threads);
    for (bool last : {false, true}) {
      check_patchify<uint8_t, float>(8, 12, 4, last, threads);
      check_patchify<uint8_t, bf16>(10, 5, 5, last, threads);
      check_patchify<float, float>(14, 21, 7, last, threads);
      check_patchify<float, bf16>(16, 32, 16, last, threads);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string chosen = cpu::isa();
  if (count > 1 && chosen != arguments[1]) {
    std::printf("this processor chooses %s, not %s\n", chosen.c_str(), arguments[1]);
    return 1;
  }
  std::string names;
  for (const std::string& level : cpu::levels()) {
    at = level;
    cpu::set_isa(level);
    check_level();
    names += " " + level;
  }
  cpu::set_isa(chosen);
  at = "search";
  check_search("random", 1, 1, 1, 1, false);
  check_search("random", 5, 7, 64, 7, true);
  check_search("random", 9, 2500, 24, 50, false);
  check_search("heavy", 17, 700, 33, 5, false);
  check_search("crowded", 2, 900, 130, 300, true);
  check_search("crowded", 11, 900, 130, 20, false);
  check_search("ties", 3, 9000, 16, 250, false);  // more near ties than a list holds
  at = "callers";
  check_callers(count > 2);
  std::printf("kernel check: %d checks passed, levels%s, chosen %s\n", checks.load(), names.c_str(),
              chosen.c_str());
  return 0;
}
