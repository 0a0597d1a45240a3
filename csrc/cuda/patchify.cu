// CUDA patchify: a thread takes 16 bytes of every channel of the result, so that a warp's stores
// are whole lines, and reads the pixels behind them in words, however they lie. Bound by memory: B
// * C * H * W * (sizeof(input) + sizeof(output)).
#include "../patch_map.h"
#include "common.cuh"

namespace splip::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;  // all at once; each fills its table once
constexpr int kBytes = 256;                  // values of a byte
constexpr int kRgb = 3;

// How the pixels of a row lie in memory.
enum class Layout {
  planar,   // one channel's pixels side by side
  rgb,      // the three bytes of a pixel, then the next pixel's: as pictures are decoded
  strided,  // anything: pixel by pixel
};

// Sizes and constants, passed by value: the same for every thread.
struct Shape {
  int64_t B, C, H, W, S, grid;
  int64_t stride_b, stride_c, stride_y, stride_x;
  float mean[kMaxChannels], std[kMaxChannels];
};

// Image b, channel c and pixel of element i of patches [B, M, C * S * S].
struct Place {
  int64_t b, c, y, x;
};

__device__ __forceinline__ Place place_of(int64_t i, const Shape& s) {
  const int64_t columns = s.W / s.S, patches = (s.H / s.S) * columns;
  const int64_t dx = i % s.S, dy = i / s.S % s.S, c = i / (s.S * s.S) % s.C;
  const int64_t patch = i / (s.S * s.S * s.C) % patches;
  return {i / (s.S * s.S * s.C * patches), c, patch / columns * s.S + dy,
          patch % columns * s.S + dx};
}

__device__ __forceinline__ int byte_of(const uint32_t* words, int i) {
  return static_cast<int>(words[i / 4] >> (i % 4 * 8) & 0xff);
}

template <typename Out, int kCount>
struct alignas(sizeof(Out) * kCount) Values {
  Out values[kCount];
};

// Division, as in the reference: bit for bit what ToTensor + Normalize give on the CPU.
__device__ __forceinline__ float normalised(float value, float mean, float std) {
  return __fdiv_rn(value - mean, std);
}

// What every byte becomes, in every channel: two exact divisions cost more than a look.
__device__ __forceinline__ void fill_table(float (*table)[kBytes], const Shape& s) {
  for (int i = threadIdx.x; i < static_cast<int>(s.C) * kBytes; i += kThreads) {
    const int c = i / kBytes, value = i % kBytes;
    table[c][value] = normalised(__fdiv_rn(static_cast<float>(value), 255.0f), s.mean[c], s.std[c]);
  }
  __syncthreads();
}

// A run of three channels from the words of its pixels: the first `turn` pixels from a, the others
// from b.
template <typename Out, int kCount>
__device__ __forceinline__ void write_rgb(const uint32_t (&a)[kRgb * kCount / 4],
                                          const uint32_t (&b)[kRgb * kCount / 4], int turn,
                                          const float (&table)[kMaxChannels][kBytes], Out* out,
                                          int64_t area) {
  Values<Out, kCount> result;
#pragma unroll
  for (int c = 0; c < kRgb; ++c) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int value = j < turn ? byte_of(a, kRgb * j + c) : byte_of(b, kRgb * j + c);
      store(&result.values[j], table[c][value]);
    }
    *reinterpret_cast<Values<Out, kCount>*>(out + c * area) = result;
  }
}

// images, end: the memory that the images lie in.
template <typename In, typename Out, int kCount, Layout kLayout>
__global__ void __launch_bounds__(kThreads, kLayout == Layout::strided
                                                ? kBlocksPerMultiprocessor / 2  // many addresses
                                                : kBlocksPerMultiprocessor)
    run_kernel(const In* images, const In* end, const int64_t* permutation, Out* patches,
               const __grid_constant__ Shape s, unsigned runs) {
  __shared__ float table[sizeof(In) == 1 ? kMaxChannels : 1][kBytes];
  if (sizeof(In) == 1) fill_table(table, s);
  const int64_t area = s.S * s.S;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < runs; i += gridDim.x * kThreads) {
    const Run run =
        run_of<kCount>(i, static_cast<int>(s.H), static_cast<int>(s.W), static_cast<int>(s.S));
    const In* image = images + run.b * s.stride_b;
    Out* out = patches + int64_t(run.patch) * s.C * area + run.offset;
    Values<Out, kCount> result;
    if constexpr (kLayout == Layout::strided) {
      const int64_t* own = permutation ? permutation + run.b * s.grid * s.grid : nullptr;
      const int grid = static_cast<int>(s.grid);
      const int tile_h = static_cast<int>(s.H) / grid, tile_w = static_cast<int>(s.W) / grid;
      int64_t from[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const Pixel p = source_pixel(run.y, run.x + j, own, grid, tile_h, tile_w);
        from[j] = p.y * s.stride_y + p.x * s.stride_x;
      }
      for (int64_t c = 0; c < s.C; ++c) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const In value = __ldg(image + c * s.stride_c + from[j]);
          store(&result.values[j], sizeof(In) == 1 ? table[c][static_cast<int>(value)]
                                                   : normalised(load(value), s.mean[c], s.std[c]));
        }
        *reinterpret_cast<Values<Out, kCount>*>(out + c * area) = result;
      }
    } else {
      const Sources from = sources_of<kCount>(run, permutation, static_cast<int>(s.H),
                                              static_cast<int>(s.W), static_cast<int>(s.grid));
      const In* first = image + from.first.y * s.stride_y + from.first.x * s.stride_x;
      const In* second = image + from.second.y * s.stride_y + from.second.x * s.stride_x;
      if constexpr (kLayout == Layout::rgb) {
        uint32_t a[kRgb * kCount / 4], b[kRgb * kCount / 4] = {};
        load_bytes<kRgb * kCount>(first, images, end, a);
        if (from.turn < kCount) load_bytes<kRgb * kCount>(second, images, end, b);
        write_rgb<Out, kCount>(a, b, from.turn, table, out, area);
      } else {
        for (int64_t c = 0; c < s.C; ++c) {
          if constexpr (sizeof(In) == 1) {
            uint32_t a[kCount / 4], b[kCount / 4] = {};
            load_bytes<kCount>(first + c * s.stride_c, images, end, a);
            if (from.turn < kCount) load_bytes<kCount>(second + c * s.stride_c, images, end, b);
#pragma unroll
            for (int j = 0; j < kCount; ++j) {
              store(&result.values[j], table[c][j < from.turn ? byte_of(a, j) : byte_of(b, j)]);
            }
          } else {
            float values[kCount];
            const In* line = first + c * s.stride_c;
            if (from.turn == kCount && reinterpret_cast<uintptr_t>(line) % 16 == 0) {
#pragma unroll
              for (int j = 0; j < kCount; j += 4) {
                const float4 v = __ldg(reinterpret_cast<const float4*>(line + j));
                values[j] = v.x;
                values[j + 1] = v.y;
                values[j + 2] = v.z;
                values[j + 3] = v.w;
              }
            } else {
#pragma unroll
              for (int j = 0; j < kCount; ++j) {
                values[j] = __ldg((j < from.turn ? line : second + c * s.stride_c) + j);
              }
            }
#pragma unroll
            for (int j = 0; j < kCount; ++j) {
              store(&result.values[j], normalised(values[j], s.mean[c], s.std[c]));
            }
          }
          *reinterpret_cast<Values<Out, kCount>*>(out + c * area) = result;
        }
      }
    }
  }
}

// Any sizes: one thread per value of the result.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    pixel_kernel(const In* images, const int64_t* permutation, Out* patches,
                 const __grid_constant__ Shape s, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const Place at = place_of(i, s);
    const int64_t* own = permutation ? permutation + at.b * s.grid * s.grid : nullptr;
    const Pixel from = source_pixel(at.y, at.x, own, s.grid, s.H / s.grid, s.W / s.grid);
    const float value = load(
        images[at.b * s.stride_b + at.c * s.stride_c + from.y * s.stride_y + from.x * s.stride_x]);
    const float unit = sizeof(In) == 1 ? __fdiv_rn(value, 255.0f) : value;
    store(patches + i, normalised(unit, s.mean[at.c], s.std[at.c]));
  }
}

// The gradient goes the other way: runs of the patches are read, their source pixels written. A
// permutation reaches every source pixel exactly once, so this is a store, not a sum.
template <typename Grad, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    run_backward_kernel(const Grad* d_patches, const int64_t* permutation, float* d_images,
                        const __grid_constant__ Shape s, unsigned runs) {
  const int64_t area = s.S * s.S, plane = s.H * s.W;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < runs; i += gridDim.x * kThreads) {
    const Run run =
        run_of<kCount>(i, static_cast<int>(s.H), static_cast<int>(s.W), static_cast<int>(s.S));
    const Sources to = sources_of<kCount>(run, permutation, static_cast<int>(s.H),
                                          static_cast<int>(s.W), static_cast<int>(s.grid));
    const Grad* in = d_patches + int64_t(run.patch) * s.C * area + run.offset;
    float* image = d_images + run.b * s.C * plane;
    float* first = image + to.first.y * s.W + to.first.x;
    float* second = image + to.second.y * s.W + to.second.x;
    const bool whole = kCount % 4 == 0 && to.turn == kCount &&
                       reinterpret_cast<uintptr_t>(first) % 16 == 0 && plane % 4 == 0;
    for (int64_t c = 0; c < s.C; ++c) {
      const auto grad = *reinterpret_cast<const Values<Grad, kCount>*>(in + c * area);
      float values[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = __fdiv_rn(load(grad.values[j]), s.std[c]);
      if (whole) {
#pragma unroll
        for (int j = 0; j + 3 < kCount; j += 4) {
          *reinterpret_cast<float4*>(first + c * plane + j) = {values[j], values[j + 1],
                                                               values[j + 2], values[j + 3]};
        }
      } else {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          (j < to.turn ? first : second)[c * plane + j] = values[j];
        }
      }
    }
  }
}

template <typename Grad>
__global__ void __launch_bounds__(kThreads)
    pixel_backward_kernel(const Grad* d_patches, const int64_t* permutation, float* d_images,
                          const __grid_constant__ Shape s, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const Place at = place_of(i, s);
    const int64_t* own = permutation ? permutation + at.b * s.grid * s.grid : nullptr;
    const Pixel from = source_pixel(at.y, at.x, own, s.grid, s.H / s.grid, s.W / s.grid);
    d_images[((at.b * s.C + at.c) * s.H + from.y) * s.W + from.x] =
        __fdiv_rn(load(d_patches[i]), s.std[at.c]);
  }
}

unsigned blocks_for(int64_t count) { return grid_for((count + kThreads - 1) / kThreads); }

// Runs of kCount pixels divide the rows of a patch, and a 32-bit number counts them.
bool runs_fit(int64_t B, int64_t H, int64_t W, int64_t S, int count) {
  return S % count == 0 && B * H * W < (1 << 30);  // and a step of all threads
}

template <typename In, typename Out, int kCount, Layout kLayout>
void launch_runs(const Patchify& a, const Shape& s, int device, cudaStream_t stream) {
  const auto* images = static_cast<const In*>(a.images);
  const In* end = images + (a.B - 1) * a.stride_b + (a.C - 1) * a.stride_c +
                  (a.H - 1) * a.stride_y + (a.W - 1) * a.stride_x + 1;
  const int runs = static_cast<int>(a.B * a.H * a.W / kCount);
  const unsigned blocks = grid_for((runs + kThreads - 1) / kThreads,
                                   int64_t(multiprocessors(device)) * kBlocksPerMultiprocessor);
  run_kernel<In, Out, kCount, kLayout><<<blocks, kThreads, 0, stream>>>(
      images, end, a.permutation, static_cast<Out*>(a.patches), s, runs);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename In, typename Out>
void launch(const Patchify& a, int device, cudaStream_t stream) {
  const int64_t count = a.B * a.C * a.H * a.W;
  if (count == 0) return;
  Shape s{a.B, a.C, a.H, a.W, a.S, a.grid, a.stride_b, a.stride_c, a.stride_y, a.stride_x, {}, {}};
  for (int64_t c = 0; c < a.C; ++c) {
    s.mean[c] = a.mean[c];
    s.std[c] = a.std[c];
  }
  constexpr int kCount = 16 / sizeof(Out);
  const bool stored_whole = aligned(a.patches, 16);
  if (stored_whole && runs_fit(a.B, a.H, a.W, a.S, kCount)) {
    const bool tiles_hold_runs = a.permutation == nullptr || a.W / a.grid >= kCount;
    if (tiles_hold_runs && a.stride_x == 1) {
      return launch_runs<In, Out, kCount, Layout::planar>(a, s, device, stream);
    }
    if constexpr (sizeof(In) == 1) {
      if (tiles_hold_runs && a.C == kRgb && a.stride_x == kRgb && a.stride_c == 1) {
        return launch_runs<In, Out, kCount, Layout::rgb>(a, s, device, stream);
      }
    }
    return launch_runs<In, Out, kCount, Layout::strided>(a, s, device, stream);
  }
  if (stored_whole && runs_fit(a.B, a.H, a.W, a.S, 2)) {  // patches of 14 pixels
    return launch_runs<In, Out, 2, Layout::strided>(a, s, device, stream);
  }
  pixel_kernel<In, Out><<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const In*>(a.images), a.permutation, static_cast<Out*>(a.patches), s, count);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename Grad, int kCount>
void launch_backward_runs(const PatchifyBackward& a, const Shape& s, int device,
                          cudaStream_t stream) {
  const int runs = static_cast<int>(a.B * a.H * a.W / kCount);
  const unsigned blocks = grid_for((runs + kThreads - 1) / kThreads,
                                   int64_t(multiprocessors(device)) * kBlocksPerMultiprocessor);
  run_backward_kernel<Grad, kCount><<<blocks, kThreads, 0, stream>>>(
      static_cast<const Grad*>(a.d_patches), a.permutation, a.d_images, s, runs);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename Grad>
void launch_backward(const PatchifyBackward& a, int device, cudaStream_t stream) {
  const int64_t count = a.B * a.C * a.H * a.W;
  if (count == 0) return;
  Shape s{a.B, a.C, a.H, a.W, a.S, a.grid, 0, 0, 0, 0, {}, {}};
  for (int64_t c = 0; c < a.C; ++c) s.std[c] = a.std[c];
  constexpr int kCount = 16 / sizeof(Grad);
  const auto fits = [&](int run) {
    return aligned(a.d_patches, 16) && runs_fit(a.B, a.H, a.W, a.S, run) &&
           (a.permutation == nullptr || a.W / a.grid >= run);
  };
  if (fits(kCount)) return launch_backward_runs<Grad, kCount>(a, s, device, stream);
  if (fits(2)) return launch_backward_runs<Grad, 2>(a, s, device, stream);
  pixel_backward_kernel<Grad><<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const Grad*>(a.d_patches), a.permutation, a.d_images, s, count);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename In>
void launch_to(const Patchify& a, int device, cudaStream_t stream) {
  switch (a.dtype) {
    case DType::f32:
      return launch<In, float>(a, device, stream);
    case DType::f16:
      return launch<In, __half>(a, device, stream);
    case DType::bf16:
      return launch<In, __nv_bfloat16>(a, device, stream);
    default:
      SPLIP_CHECK(false, "patchify writes float32, float16 or bfloat16");
  }
}

}  // namespace

void patchify(const Patchify& a, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.image_dtype == DType::u8) return launch_to<uint8_t>(a, device, s);
  SPLIP_CHECK(a.image_dtype == DType::f32, "patchify reads uint8 or float32");
  launch_to<float>(a, device, s);
}

void patchify_backward(const PatchifyBackward& a, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch_backward<float>(a, device, s);
    case DType::f16:
      return launch_backward<__half>(a, device, s);
    case DType::bf16:
      return launch_backward<__nv_bfloat16>(a, device, s);
    default:
      SPLIP_CHECK(false, "patchify writes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
