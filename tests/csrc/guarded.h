// For kernel_check.cpp: a check that says what failed, and buffers with guarded ends.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

std::atomic<int> checks{0};
std::string at;  // what is being checked

#define CHECK(condition, ...)                                                     \
  do {                                                                            \
    ++checks;                                                                     \
    if (!(condition)) {                                                           \
      std::printf("%s:%d: %s: %s: ", __FILE__, __LINE__, at.c_str(), #condition); \
      std::printf(__VA_ARGS__);                                                   \
      std::printf("\n");                                                          \
      std::exit(1);                                                               \
    }                                                                             \
  } while (0)

constexpr unsigned char kPoison = 0xff;  // as a float or a double: not a number

// `count` values right before memory that cannot be touched.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const int64_t page = sysconf(_SC_PAGESIZE), size = count * static_cast<int64_t>(sizeof(T));
    inside_ = (size + page - 1) / page * page + page;
    whole_ = static_cast<unsigned char*>(
        mmap(nullptr, inside_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (whole_ == MAP_FAILED || mprotect(whole_ + inside_, page, PROT_NONE) != 0) std::abort();
    std::memset(whole_, kPoison, inside_);
    begin_ = whole_ + inside_ - size;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    CHECK(std::all_of(whole_, begin_, [](unsigned char byte) { return byte == kPoison; }),
          "written in front of a buffer");
    munmap(whole_, inside_ + sysconf(_SC_PAGESIZE));
  }
  T* data() { return reinterpret_cast<T*>(begin_); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return count_; }
  T* begin() { return data(); }
  T* end() { return data() + count_; }

 private:
  int64_t count_, inside_;
  unsigned char *whole_, *begin_;
};

}  // namespace
