// The fibers behind cuda_runtime.h, and the kernels' entry points for ctypes.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "../../csrc/splip.h"
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
std::vector<uint4> dynamic;
std::mt19937 order(0);
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
  if (_setjmp(scheduler) != 0) return;
  current = fiber;
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
void* shared_memory() { return dynamic.data(); }
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

void launch(const Config& config, const std::function<void()>& kernel) {
  if (config.stream != wanted_stream) throw std::runtime_error("a launch on another stream");
  if (current_device != wanted_device) throw std::runtime_error("a launch on another device");
  body = &kernel;
  std::vector<unsigned> blocks(config.grid.x * config.grid.y);
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), order);
  for (unsigned i : blocks) {
    dynamic.assign(config.shared / 16 + 1, {~0u, ~0u, ~0u, ~0u});  // NaN
    run_block(config.grid, config.block, {i % config.grid.x, i / config.grid.x, 0});
  }
}

}  // namespace on_host

cudaError_t cudaGetLastError() {
  const bool fail = on_host::fail_next;
  on_host::fail_next = false;
  return fail ? cudaErrorInvalidConfiguration : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = on_host::current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return on_host::current_device = device, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != on_host::wanted_device) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 2, cudaSuccess;  // few: blocks must take many turns
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = 227 * 1024, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = on_host::capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = on_host::capability % 10, cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

namespace splip::cuda {
std::deque<Group>& copies() { return on_host::current->copies; }
Products& products() { return on_host::current->products; }
}  // namespace splip::cuda

using namespace splip;

namespace {

// 0, or 1 with an error to be asked for: exceptions do not cross ctypes.
template <typename Args>
int run(const Args& args, void (*op)(const Args&, int, void*)) {
  try {
    op(args, on_host::wanted_device, on_host::wanted_stream);
    return 0;
  } catch (const std::exception& e) {
    on_host::error = e.what();
    return 1;
  }
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
void fail_next_launch() { on_host::fail_next = true; }
const char* last_error() { return on_host::error.c_str(); }

int prompt_layernorm(const void* const* p, const int64_t* n, float eps, int dtype) {
  const auto f = [&](int i) { return static_cast<float*>(const_cast<void*>(p[i])); };
  const PromptLayerNorm a{p[0],
                          p[1],
                          f(2),
                          f(3),
                          const_cast<void*>(p[4]),
                          const_cast<void*>(p[5]),
                          f(6),
                          f(7),
                          n[0],
                          n[1],
                          n[2],
                          n[3],
                          n[4],
                          n[5],
                          eps,
                          static_cast<DType>(dtype)};
  return run(a, cuda::prompt_layernorm);
}

int64_t prompt_layernorm_scratch(const int64_t* n) {
  return cuda::prompt_layernorm_scratch(n[0], n[1], n[2], n[3], n[4], n[5], on_host::wanted_device);
}

int prompt_layernorm_backward(void* const* p, const int64_t* n, int dtype) {
  const auto f = [&](int i) { return static_cast<float*>(p[i]); };
  const PromptLayerNormBackward a{p[0], p[1], p[2], f(3), f(4),  f(5),
                                  p[6], f(7), f(8), f(9), f(10), n[0],
                                  n[1], n[2], n[3], n[4], n[5],  static_cast<DType>(dtype)};
  return run(a, cuda::prompt_layernorm_backward);
}

int patchify(const void* images, const int64_t* strides, const int64_t* permutation, void* patches,
             const int64_t* n, const float* mean, const float* std, int image_dtype, int dtype) {
  Patchify a{images,
             strides[0],
             strides[1],
             strides[2],
             strides[3],
             permutation,
             patches,
             n[0],
             n[1],
             n[2],
             n[3],
             n[4],
             n[5],
             {},
             {},
             static_cast<DType>(image_dtype),
             static_cast<DType>(dtype)};
  std::copy(mean, mean + n[1], a.mean);
  std::copy(std, std + n[1], a.std);
  return run(a, cuda::patchify);
}

int patchify_backward(const void* d_patches, const int64_t* permutation, float* d_images,
                      const int64_t* n, const float* std, int dtype) {
  PatchifyBackward a{d_patches,
                     permutation,
                     d_images,
                     n[0],
                     n[1],
                     n[2],
                     n[3],
                     n[4],
                     n[5],
                     {},
                     static_cast<DType>(dtype)};
  std::copy(std, std + n[1], a.std);
  return run(a, cuda::patchify_backward);
}

int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t K, int scan, int64_t pitch) {
  return cuda::cosine_topk_scratch(Q, N, K, static_cast<TopkScan>(scan), pitch);
}

// p: queries, gallery, allowed, scores, indices, scratch, then rows in 8 bits, scale, error,
// centre.
int cosine_topk(void* const* p, const int64_t* n, int dtype, int scan) {
  const auto f = [&](int i) { return static_cast<float*>(p[i]); };
  const CosineTopk a{p[0],
                     p[1],
                     f(3),
                     static_cast<int64_t*>(p[4]),
                     p[5],
                     n[0],
                     n[1],
                     n[2],
                     n[3],
                     static_cast<DType>(dtype),
                     static_cast<uint8_t*>(p[2]),
                     static_cast<TopkScan>(scan),
                     {static_cast<int8_t*>(p[6]), f(7), f(8), f(9), n[4]}};
  return run(a, cuda::cosine_topk);
}
}
