// The fibers behind cuda_runtime.h, and the kernels' entry points for ctypes.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <stdexcept>

#include "../../csrc/splip.h"
#include "ptx.cuh"

namespace on_host {
namespace {

constexpr size_t kStack = 256 * 1024;
enum class State { ready, block, warp, done };

struct Fiber {
  Thread where;
  State state = State::ready;
  bool started = false;
  jmp_buf at;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  char posted[64];
  std::deque<std::vector<splip::cuda::Copy>> copies;
};

std::vector<std::unique_ptr<Fiber>> fibers;
Fiber* current = nullptr;
jmp_buf scheduler;
ucontext_t outside;
const std::function<void()>* body = nullptr;
std::vector<uint4> dynamic;
std::mt19937 order(0);

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
    for (unsigned i : turns) {
      if (fibers[i]->state == State::ready) {
        resume(fibers[i].get());
        moved = true;
      }
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

namespace splip::cuda {
std::deque<std::vector<Copy>>& copies() { return on_host::current->copies; }
}  // namespace splip::cuda

using namespace splip;

extern "C" {
void seed(unsigned value) { on_host::order.seed(value); }

void prompt_layernorm(const void* const* p, const int64_t* n, float eps, int dtype) {
  PromptLayerNorm a{p[0],
                    p[1],
                    static_cast<const float*>(p[2]),
                    static_cast<const float*>(p[3]),
                    const_cast<void*>(p[4]),
                    const_cast<void*>(p[5]),
                    static_cast<float*>(const_cast<void*>(p[6])),
                    static_cast<float*>(const_cast<void*>(p[7])),
                    n[0],
                    n[1],
                    n[2],
                    n[3],
                    n[4],
                    n[5],
                    eps,
                    static_cast<DType>(dtype)};
  cuda::prompt_layernorm(a, 0, nullptr);
}

int64_t prompt_layernorm_scratch(const int64_t* n) {
  return cuda::prompt_layernorm_scratch(n[0], n[1], n[2], n[3], n[4], n[5], 0);
}

void prompt_layernorm_backward(void* const* p, const int64_t* n, int dtype) {
  const auto f = [&](int i) { return static_cast<float*>(p[i]); };
  PromptLayerNormBackward a{p[0], p[1], p[2], f(3), f(4),  f(5),
                            p[6], f(7), f(8), f(9), f(10), n[0],
                            n[1], n[2], n[3], n[4], n[5],  static_cast<DType>(dtype)};
  cuda::prompt_layernorm_backward(a, 0, nullptr);
}

void patchify(const void* images, const int64_t* strides, const int64_t* permutation, void* patches,
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
  cuda::patchify(a, 0, nullptr);
}

void patchify_backward(const void* d_patches, const int64_t* permutation, float* d_images,
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
  cuda::patchify_backward(a, 0, nullptr);
}

int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t K, int scan) {
  return cuda::cosine_topk_scratch(Q, N, K, static_cast<TopkScan>(scan));
}

void cosine_topk(const void* queries, const void* gallery, const uint8_t* allowed, float* scores,
                 int64_t* indices, void* scratch, const int64_t* n, int dtype, int scan) {
  const CosineTopk a{queries, gallery,
                     scores,  indices,
                     scratch, n[0],
                     n[1],    n[2],
                     n[3],    static_cast<DType>(dtype),
                     allowed, static_cast<TopkScan>(scan)};
  cuda::cosine_topk(a, 0, nullptr);
}
}
