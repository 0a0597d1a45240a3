// Threads where OpenMP is not at hand, as on a Mac: PyTorch brings an OpenMP of its own there, and
// two in one process do not get along. Workers wait for the next call and stay as long as the
// process; callers never share them, so that a team may have barriers.
#include "threads.h"

#ifndef _OPENMP

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace splip::cpu {

struct Team {
  void (*run)(const void* body, const Member& member) = nullptr;
  const void* body = nullptr;
  int size = 1, working = 0;    // with the caller; workers that are not done
  int waiting = 0, passed = 0;  // at a barrier; barriers so far
  std::mutex mutex;
  std::condition_variable changed;
};

namespace {

struct Worker {
  Team* team = nullptr;  // null: idle
  int number = 0;
  std::condition_variable wake;
};

class Pool {
 public:
  // For good: threads wait in it when the process ends.
  static Pool& only() {
    static Pool* const pool = [] {
      auto* made = new Pool;
#if defined(__unix__) || defined(__APPLE__)
      // A child of fork() has the caller's thread alone.
      pthread_atfork([] { only().mutex_.lock(); }, [] { only().mutex_.unlock(); },
                     [] { only().idle_.clear(), only().mutex_.unlock(); });
#endif
      return made;
    }();
    return *pool;
  }

  // Up to `count` workers that do nothing else.
  std::vector<Worker*> hire(int count) {
    std::vector<Worker*> hired;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (; count > 0 && !idle_.empty(); --count) {
      hired.push_back(idle_.back());
      idle_.pop_back();
    }
    for (; count > 0; --count) {
      auto* worker = new Worker;
      try {
        std::thread([this, worker] { work(*worker); }).detach();
      } catch (const std::system_error&) {  // the system has no more: the team is smaller
        delete worker;
        break;
      }
      hired.push_back(worker);
    }
    return hired;
  }

  void start(const std::vector<Worker*>& workers, Team& team) {
    const std::lock_guard<std::mutex> lock(mutex_);
    int number = 0;
    for (Worker* worker : workers) {
      worker->number = ++number;
      worker->team = &team;
      worker->wake.notify_one();
    }
  }

 private:
  [[noreturn]] void work(Worker& self) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      self.wake.wait(lock, [&] { return self.team != nullptr; });
      Team& team = *self.team;
      lock.unlock();
      team.run(team.body, Member{self.number, team.size, &team});
      lock.lock();
      self.team = nullptr;
      idle_.push_back(&self);
      const std::lock_guard<std::mutex> done(team.mutex);
      if (--team.working == 0) team.changed.notify_all();
    }
  }

  std::mutex mutex_;
  std::vector<Worker*> idle_;
};

}  // namespace

void Member::barrier() const {
  std::unique_lock<std::mutex> lock(team->mutex);
  const int before = team->passed;
  if (++team->waiting == team->size) {
    team->waiting = 0;
    ++team->passed;
    team->changed.notify_all();
  } else {
    team->changed.wait(lock, [&] { return team->passed != before; });
  }
}

void run_team(int threads, void (*run)(const void* body, const Member& member),
              const void* body) noexcept {
  std::vector<Worker*> workers;
  if (threads > 1) workers = Pool::only().hire(threads - 1);
  const auto hired = static_cast<int>(workers.size());
  Team team;
  team.run = run;
  team.body = body;
  team.size = hired + 1;
  team.working = hired;
  if (hired > 0) Pool::only().start(workers, team);
  run(body, Member{0, team.size, &team});
  std::unique_lock<std::mutex> lock(team.mutex);
  team.changed.wait(lock, [&] { return team.working == 0; });
}

}  // namespace splip::cpu

#endif
