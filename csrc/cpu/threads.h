// Internal: the threads of a call. OpenMP's where the build has it, else a pool of our own
// (threads.cpp) that does the same: every caller has a team of its own.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace splip::cpu {

#ifdef _OPENMP

// One thread of a team.
struct Member {
  int number, size;
  void barrier() const {
#pragma omp barrier
  }
};

// Runs body(member) on up to `threads` threads, the caller among them. It throws nothing but for
// want of memory, which ends the process.
template <typename Body>
void parallel(int threads, const Body& body) {
#pragma omp parallel num_threads(threads)
  body(Member{omp_get_thread_num(), omp_get_num_threads()});
}

#else

struct Team;

struct Member {
  int number, size;
  Team* team;
  void barrier() const;
};

void run_team(int threads, void (*run)(const void* body, const Member& member),
              const void* body) noexcept;

template <typename Body>
void parallel(int threads, const Body& body) {
  run_team(
      threads,
      [](const void* what, const Member& member) { (*static_cast<const Body*>(what))(member); },
      &body);
}

#endif

// body(i) for this member's share of 0..count: as many in a row for each.
template <typename Body>
void share(const Member& member, int64_t count, const Body& body) {
  const int64_t last = count * (member.number + 1) / member.size;
  for (int64_t i = count * member.number / member.size; i < last; ++i) body(i);
}

template <typename Body>
void parallel_for(int threads, int64_t count, const Body& body) {
  parallel(threads, [&](const Member& member) { share(member, count, body); });
}

// One by one, as the members come for them. `next` begins at 0, one for all.
template <typename Body>
void take_turns(std::atomic<int64_t>& next, int64_t count, const Body& body) {
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
}

}  // namespace splip::cpu
