// The fibers behind cuda_runtime.h, and the kernels' entry points for ctypes.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>

#include "../../../csrc/fields.h"
#include "guards.h"
#include "ptx.cuh"

namespace on_host {
namespace {

constexpr size_t kStack = 256 * 1024;
enum class State { ready, block, some, phase, warp, done };

struct Fiber {
  Thread where;
  State state = State::ready;
  bool started = false;
  jmp_buf at;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  char posted[64];
  std::deque<splip::cuda::Group> copies;
  splip::cuda::Products products;
  int barrier, others;  // waited for in `some`: the barrier, how many threads it has
  unsigned address;     // and in `phase`
  int parity;
};

std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* current = nullptr;
jmp_buf scheduler;
ucontext_t outside;
const std::function<void()>* body = nullptr;
bool running = false;  // a fiber, not the host's part of an op
Memory memory;         // of the call
Memory shared_space;   // of the block, behind the guards too
char* dynamic = nullptr;
size_t dynamic_bytes = 0;
std::map<const void*, size_t> opted_in;  // dynamic shared memory that the call has asked for
std::string failure;                     // of a thread of the block
std::mt19937 order(0);
bool contexts[2] = {true, true};  // the process uses that device
int current_device = 0, wanted_device = 0, capability = 90;
cudaStream_t wanted_stream = nullptr;
bool fail_next = false;
std::string error;

[[noreturn]] void run_fiber() {
  (*body)();
  current->state = State::done;
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) void wait_in(State state) {
  current->state = state;
  if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(Fiber* fiber) {
  if (_setjmp(scheduler) != 0) {
    running = false;
    return;
  }
  current = fiber;
  running = true;
  if (fiber->started) _longjmp(fiber->at, 1);
  fiber->started = true;
  swapcontext(&outside, &fiber->context);
}

void run_block(const dim3& grid, const dim3& block, const uint3& index) {
  const unsigned threads = block.x;
  while (fibers.size() < threads) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack.reset(new char[kStack]);
  }
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = *fibers[i];
    f.where = {{i, 0, 0}, index, block, grid};
    f.state = State::ready;
    f.started = false;
    f.copies.assign(1, {});
    f.products = {};
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  std::vector<unsigned> turns(threads);
  for (unsigned i = 0; i < threads; ++i) turns[i] = i;
  for (;;) {
    std::shuffle(turns.begin(), turns.end(), order);
    bool moved = false;
    unsigned done = 0, at_barrier = 0;
    const unsigned late = order() & order();  // one warp in four stands still: they drift apart
    for (unsigned i : turns) {
      Fiber& f = *fibers[i];
      if (f.state != State::ready) continue;
      moved = true;
      if ((late >> i / 32 & 1) == 0) resume(&f);
      if (!failure.empty()) return;
    }
    for (unsigned i : turns) {
      Fiber& f = *fibers[i];
      if (f.copies.front().barrier >= 0 && (!moved || coin())) {
        splip::cuda::finish_copies(f.copies);
        moved = true;
      }
      if (f.state == State::phase &&
          static_cast<int>(splip::cuda::phases(f.address).complete & 1) != f.parity) {
        f.state = State::ready;
        moved = true;
      }
      if (f.state != State::some) continue;
      const auto with = [&](unsigned j) {
        return fibers[j]->state == State::some && fibers[j]->barrier == f.barrier;
      };
      int waiting = 0;
      for (unsigned j = 0; j < threads; ++j) waiting += with(j);
      if (waiting < f.others) continue;
      for (unsigned j = 0; j < threads; ++j) {
        if (with(j) && j != i) fibers[j]->state = State::ready;
      }
      f.state = State::ready;
      moved = true;
    }
    for (unsigned warp = 0; warp < threads; warp += 32) {
      unsigned waiting = 0;
      for (unsigned i = warp; i < warp + 32; ++i) waiting += fibers[i]->state == State::warp;
      if (waiting == 32) {  // all lanes take part in every warp operation of these kernels
        for (unsigned i = warp; i < warp + 32; ++i) fibers[i]->state = State::ready;
        moved = true;
      }
    }
    for (unsigned i = 0; i < threads; ++i) {
      done += fibers[i]->state == State::done;
      at_barrier += fibers[i]->state == State::block;
    }
    if (done == threads) return;
    if (at_barrier == threads) {
      for (unsigned i = 0; i < threads; ++i) fibers[i]->state = State::ready;
      moved = true;
    }
    if (!moved)
      throw std::runtime_error("threads of a block wait for each other at different places");
  }
}

}  // namespace

const Thread& here() { return current->where; }
void* shared_memory() { return dynamic; }
void block_barrier() { wait_in(State::block); }
void pause() { wait_in(State::ready); }
bool coin() { return order() % 2 == 0; }

void some_barrier(int barrier, int threads) {
  current->barrier = barrier;
  current->others = threads;
  wait_in(State::some);
}

void wait_for_phase(unsigned barrier, int parity) {
  current->address = barrier;
  current->parity = parity;
  wait_in(State::phase);
}

void exchange(const void* own, size_t bytes, void* all) {
  std::memcpy(current->posted, own, bytes);
  wait_in(State::warp);
  const unsigned warp = current->where.thread.x / 32 * 32;
  for (unsigned i = 0; i < 32; ++i) {
    std::memcpy(static_cast<char*>(all) + i * bytes, fibers[warp + i]->posted, bytes);
  }
  wait_in(State::warp);  // before anyone posts the next value
}

void fail(const std::string& message) {
  if (!running) throw std::runtime_error(message);
  failure = message;
  current->state = State::done;
  _longjmp(scheduler, 1);
}

void check_global(const char* what, const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    fail(text(what, " of ", bytes, " bytes is misaligned: ", memory.place(p)));
  }
  if (!memory.holds(p, bytes)) fail(text(what, " of ", bytes, " bytes: ", memory.place(p)));
}

void* shared_at(const char* what, unsigned address, size_t bytes) {
  if (address % bytes != 0) fail(text(what, " is misaligned: byte ", address, " of shared memory"));
  if (address + bytes > dynamic_bytes) {
    fail(text(what, ": byte ", address, " of ", dynamic_bytes, " bytes of shared memory"));
  }
  return dynamic + address;
}

void launch_bounds(unsigned threads, unsigned) {
  const unsigned asked = here().block_dim.x;
  if (asked > threads) fail(text(asked, " threads, launch bounds of ", threads));
}

// Of a block, static shared memory included.
int most_shared() {
  if (capability == 80 || capability == 87) return 163 * 1024;
  return capability == 90 || capability == 100 || capability == 103 ? 227 * 1024 : 99 * 1024;
}

cudaError_t allow_shared(const void* function, int bytes) {
  if (bytes > most_shared()) return cudaErrorInvalidValue;
  opted_in[function] = bytes;
  return cudaSuccess;
}

// The programming guide's limits of a launch.
void check_launch(const char* name, const void* function, const Config& c) {
  const auto refuse = [&](const auto&... why) {
    throw std::runtime_error(text(name, ": ", why...));
  };
  const unsigned threads = c.block.x * c.block.y * c.block.z;
  if (threads == 0 || threads > 1024) refuse(threads, " threads");
  if (threads % 32 != 0) refuse(threads, " threads are no whole warps");
  if (c.grid.x == 0 || c.grid.x > 0x7fffffffu) refuse("a grid of ", c.grid.x, " blocks");
  for (const unsigned side : {c.grid.y, c.grid.z}) {
    if (side == 0 || side > 65535) refuse("a grid of ", c.grid.x, " x ", side, " blocks");
  }
  const auto asked = opted_in.find(function);
  const size_t allowed = asked == opted_in.end() ? 48 * 1024 : asked->second;
  if (c.shared > std::max<size_t>(allowed, 48 * 1024)) {
    refuse(c.shared, " bytes of shared memory, asked for ", allowed);
  }
}

void launch(const char* name, const void* function, const Config& config,
            const std::function<void()>& kernel) {
  if (config.stream != wanted_stream) throw std::runtime_error("a launch on another stream");
  if (current_device != wanted_device) throw std::runtime_error("a launch on another device");
  check_launch(name, function, config);
  body = &kernel;
  std::vector<unsigned> blocks(config.grid.x * config.grid.y);
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), order);
  shared_space.clear();
  const Buffer& shared = shared_space.add("shared memory", nullptr, config.shared, false);
  dynamic = shared.data;
  dynamic_bytes = config.shared;
  failure.clear();
  const Faults faults;
  if (sigsetjmp(Faults::at, 1) != 0) {
    running = false;
    const bool near_shared = shared.distance(static_cast<char*>(Faults::address)) < (1u << 30);
    throw std::runtime_error(text(name, " touched ",
                                  near_shared ? shared.place(static_cast<char*>(Faults::address))
                                              : memory.place(Faults::address)));
  }
  for (unsigned i : blocks) {
    std::memset(dynamic, 0xff, config.shared);  // NaN
    run_block(config.grid, config.block, {i % config.grid.x, i / config.grid.x, 0});
    if (!failure.empty()) throw std::runtime_error(text(name, ": ", failure));
    shared.check(name);
  }
  memory.check(name);
}

}  // namespace on_host

cudaError_t cudaGetLastError() {
  const bool fail = on_host::fail_next;
  on_host::fail_next = false;
  return fail ? cudaErrorInvalidConfiguration : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = on_host::current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  on_host::contexts[device] = true;
  return on_host::current_device = device, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != on_host::wanted_device) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 2, cudaSuccess;  // few: blocks must take many turns
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = on_host::most_shared(), cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = on_host::capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = on_host::capability % 10, cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

namespace splip::cuda {
bool has_context(int device) { return on_host::contexts[device]; }
std::deque<Group>& copies() { return on_host::current->copies; }
Products& products() { return on_host::current->products; }
}  // namespace splip::cuda

// ---- the compiler's checks, which call these by name ----

namespace {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  SourceLocation where;
  const TypeDescriptor* type;
  unsigned char log_alignment, kind;
};
struct OutOfBounds {
  SourceLocation where;
  const TypeDescriptor *array, *index;
};

std::string line_of(const SourceLocation& where) {
  const std::string file = where.file;
  return on_host::text(file.substr(file.rfind('/') + 1), ":", where.line, ": ");
}

}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(Mismatch* m, uintptr_t address) {
  on_host::fail(on_host::text(line_of(m->where), "an access of ", m->type->name, " is misaligned: ",
                              on_host::memory.place(reinterpret_cast<void*>(address))));
}
void __ubsan_handle_out_of_bounds(OutOfBounds* o, uintptr_t index) {
  on_host::fail(on_host::text(line_of(o->where), "index ", static_cast<int64_t>(index), " of ",
                              o->array->name));
}
}

// ---- the ops, by the names of their fields ----

using namespace splip;

namespace {

// A keyword as Python gives it: a tensor's memory, or a number.
struct Given {
  const char* name;
  void* data;
  int64_t bytes, integer;
  double real;
};

template <typename T>
void fill(const Given& given, T*& out) {
  out = nullptr;
  if (given.bytes == 0) return;  // as a GPU's allocator does it
  const bool input = std::is_const_v<T>;
  out = reinterpret_cast<T*>(on_host::memory.add(given.name, given.data, given.bytes, input).data);
}
void fill(const Given& given, int64_t& out) { out = given.integer; }
void fill(const Given& given, float& out) { out = static_cast<float>(given.real); }
template <typename T>
std::enable_if_t<std::is_enum_v<T>> fill(const Given& given, T& out) {
  out = static_cast<T>(given.integer);
}
void fill(const Given& given, float (&out)[kMaxChannels]) {
  std::memcpy(out, given.data, given.bytes);
}

template <typename Args>
void run(const Given* given, int count, void (*op)(const Args&, int, void*)) {
  Args args{};
  std::set<std::string> unknown;
  for (int i = 0; i < count; ++i) unknown.insert(given[i].name);
  visit_fields(args, [&](const char* name, auto& field, Need need = Need::required) {
    const Given* found =
        std::find_if(given, given + count, [&](const Given& g) { return !strcmp(g.name, name); });
    if (found != given + count) {
      fill(*found, field);
    } else if (need == Need::required) {
      throw std::runtime_error(on_host::text("missing: ", name));
    }
    unknown.erase(name);
  });
  if (!unknown.empty()) throw std::runtime_error("unknown: " + *unknown.begin());
  op(args, on_host::wanted_device, on_host::wanted_stream);
  on_host::memory.copy_back();
}

}  // namespace

extern "C" {
void seed(unsigned value) { on_host::order.seed(value); }
// Where the ops are to run, and what that GPU is: launches anywhere else are errors.
void place(int device, void* stream, int capability) {
  on_host::wanted_device = device;
  on_host::wanted_stream = static_cast<cudaStream_t>(stream);
  on_host::capability = capability;
}
int current_device() { return on_host::current_device; }
bool has_context(int device) { return on_host::contexts[device]; }
// As in a new process, in a thread that has chosen no device; `used`: others have used both.
void begin(int used) {
  on_host::contexts[0] = on_host::contexts[1] = used != 0;
  on_host::current_device = 0;
}
void fail_next_launch() { on_host::fail_next = true; }
const char* last_error() { return on_host::error.c_str(); }

// 0, or 1 with an error to be asked for: exceptions do not cross ctypes.
int call(const char* op, const Given* given, int count) {
  on_host::memory.clear();
  on_host::opted_in.clear();
  try {
    const std::string name = op;
    if (name == "prompt_layernorm") {
      run(given, count, cuda::prompt_layernorm);
    } else if (name == "prompt_layernorm_backward") {
      run(given, count, cuda::prompt_layernorm_backward);
    } else if (name == "patchify") {
      run(given, count, cuda::patchify);
    } else if (name == "patchify_backward") {
      run(given, count, cuda::patchify_backward);
    } else if (name == "cosine_topk") {
      run(given, count, cuda::cosine_topk);
    } else {
      throw std::runtime_error("no op " + name);
    }
    return 0;
  } catch (const std::exception& e) {
    on_host::error = e.what();
    return 1;
  }
}

int64_t prompt_layernorm_scratch(int64_t B, int64_t L, int64_t P, int64_t G, int64_t D, int64_t R) {
  return cuda::prompt_layernorm_scratch(B, L, P, G, D, R, on_host::wanted_device);
}
int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t K, int scan, int64_t pitch) {
  return cuda::cosine_topk_scratch(Q, N, K, static_cast<TopkScan>(scan), pitch);
}
}
