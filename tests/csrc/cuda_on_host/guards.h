// What a kernel may touch, and what stops it when it touches anything else.
//
// Buffers of a call are copied into address space that nothing else has: unmapped pages for many
// gigabytes around them, a margin of poison at both ends up to the next page, pages that cannot be
// written for inputs. A wild access is a fault that names the nearest buffer, a near one is found
// in the poison after the launch, which is NaN in every format, so that reading it shows as well.
// Vector accesses are checked one by one where cuda_runtime.h and ptx.cuh see them (__ldg,
// load_stream, copy_async, ldmatrix), all others, stores included, by the compiler's own checks of
// alignment and of array bounds (-fsanitize=alignment,bounds), which call in here.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace on_host {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

constexpr size_t kPage = 4096, kMargin = 512;
constexpr unsigned char kPoison[2] = {0xa5, 0xff};  // NaN in 16, 32 and 64 bits

inline void poison(char* from, char* to) {
  for (char* p = from; p < to; ++p) *p = static_cast<char>(kPoison[p - from & 1]);
}
// The first byte in [from, to) that is not as poison() left it, or `to`.
inline const char* touched(const char* from, const char* to) {
  const char* p = from;
  while (p < to && *p == static_cast<char>(kPoison[p - from & 1])) ++p;
  return p;
}

// Memory of `bytes` bytes with margins on both sides.
struct Buffer {
  std::string name;
  char* data;
  size_t bytes;
  void* original;  // what it is a copy of
  bool input;
  char *first, *last;  // its pages

  // Where an address is, seen from this buffer.
  std::string place(const char* p) const {
    if (p < data) return text(data - p, " bytes before ", name);
    if (p >= data + bytes) return text(p - data - bytes, " bytes past the end of ", name);
    return text("byte ", p - data, " of ", name);
  }
  size_t distance(const char* p) const {
    return p < data ? data - p : (p >= data + bytes ? p - data - bytes : 0);
  }
  bool holds(const char* p, size_t count) const { return p >= data && p + count <= data + bytes; }
  void check(const std::string& kernel) const {
    for (const auto& [from, to] : {std::pair(first, data), std::pair(data + bytes, last)}) {
      const char* p = touched(from, to);
      if (p != to) throw std::runtime_error(text(kernel, " wrote ", place(p)));
    }
  }
};

class Memory {
 public:
  Memory() {
    space_ = static_cast<char*>(
        mmap(nullptr, kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (space_ == MAP_FAILED) throw std::runtime_error("no address space for the guards");
    next_ = space_ + kSpace / 2;
  }

  // A buffer at the same place in a line of 64 bytes as `original`, with its bytes if there are
  // any.
  Buffer& add(const std::string& name, void* original, size_t bytes, bool input) {
    const size_t offset = kMargin + reinterpret_cast<uintptr_t>(original) % 64;
    const size_t size = (offset + bytes + kMargin + kPage - 1) / kPage * kPage;
    char* first = next_ + kPage;
    next_ = first + size;
    if (next_ > space_ + kSpace) throw std::runtime_error("no room for " + name);
    mprotect(first, size, PROT_READ | PROT_WRITE);
    buffers_.push_back({name, first + offset, bytes, original, input, first, first + size});
    Buffer& b = buffers_.back();
    poison(b.first, b.data);
    if (original != nullptr) std::memcpy(b.data, original, bytes);
    poison(b.data + bytes, b.last);
    if (input) mprotect(first, size, PROT_READ);
    return b;
  }
  void copy_back() const {
    for (const Buffer& b : buffers_) {
      if (!b.input) std::memcpy(b.original, b.data, b.bytes);
    }
  }
  void clear() {
    for (const Buffer& b : buffers_) {
      mmap(b.first, b.last - b.first, PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    }
    buffers_.clear();
    next_ = space_ + kSpace / 2;
  }
  void check(const std::string& kernel) const {
    for (const Buffer& b : buffers_) b.check(kernel);
  }
  bool holds(const void* p, size_t bytes) const {
    return std::any_of(buffers_.begin(), buffers_.end(), [&](const Buffer& b) {
      return b.holds(static_cast<const char*>(p), bytes);
    });
  }
  std::string place(const void* p) const {
    const Buffer* nearest = nullptr;
    const auto* at = static_cast<const char*>(p);
    for (const Buffer& b : buffers_) {
      if (nearest == nullptr || b.distance(at) < nearest->distance(at)) nearest = &b;
    }
    return nearest == nullptr ? text(p) : nearest->place(at);
  }

 private:
  static constexpr size_t kSpace = size_t(96) << 30;  // an int times 8 bytes is 16 GB, either way
  char *space_, *next_;
  std::vector<Buffer> buffers_;
};

// While it lives, a fault jumps to `at` and leaves its address.
class Faults {
 public:
  Faults() {
    stack_.ss_sp = store_;
    stack_.ss_size = sizeof store_;
    sigaltstack(&stack_, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      address = info->si_addr;
      siglongjmp(at, 1);
    };
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~Faults() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    if (!(old_stack_.ss_flags & SS_DISABLE)) sigaltstack(&old_stack_, nullptr);
  }
  inline static sigjmp_buf at;
  inline static void* address = nullptr;

 private:
  inline static char store_[64 * 1024];
  stack_t stack_{}, old_stack_{};
  struct sigaction old_segv_, old_bus_;
};

}  // namespace on_host
