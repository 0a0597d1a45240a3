// CUDA patchify: one thread per output value, so that the writes coalesce.
// Bound by memory: B * C * H * W * (sizeof(input) + sizeof(output)).
#include "../patch_map.h"
#include "common.cuh"

namespace splip::cuda {
namespace {

constexpr int kThreads = 256;

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

template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads)
    patchify_kernel(const In* images, const int64_t* permutation, Out* patches, Shape s,
                    int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const Place at = place_of(i, s);
    const int64_t* own = permutation ? permutation + at.b * s.grid * s.grid : nullptr;
    const Pixel from = source_pixel(at.y, at.x, own, s.grid, s.H / s.grid, s.W / s.grid);
    const float value = load(
        images[at.b * s.stride_b + at.c * s.stride_c + from.y * s.stride_y + from.x * s.stride_x]);
    // Division, as in the reference: bit for bit what ToTensor + Normalize give on the CPU.
    const float unit = sizeof(In) == 1 ? __fdiv_rn(value, 255.0f) : value;
    store(patches + i, __fdiv_rn(unit - s.mean[at.c], s.std[at.c]));
  }
}

template <typename Grad>
__global__ void __launch_bounds__(kThreads)
    patchify_backward_kernel(const Grad* d_patches, const int64_t* permutation, float* d_images,
                             Shape s, int64_t count) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) {
    const Place at = place_of(i, s);
    const int64_t* own = permutation ? permutation + at.b * s.grid * s.grid : nullptr;
    const Pixel from = source_pixel(at.y, at.x, own, s.grid, s.H / s.grid, s.W / s.grid);
    // A permutation reaches every source pixel exactly once, so this is a store, not a sum.
    d_images[((at.b * s.C + at.c) * s.H + from.y) * s.W + from.x] =
        load(d_patches[i]) / s.std[at.c];
  }
}

unsigned blocks_for(int64_t count) { return grid_for((count + kThreads - 1) / kThreads); }

template <typename In, typename Out>
void launch(const Patchify& a, cudaStream_t stream) {
  const int64_t count = a.B * a.C * a.H * a.W;
  if (count == 0) return;
  Shape s{a.B, a.C, a.H, a.W, a.S, a.grid, a.stride_b, a.stride_c, a.stride_y, a.stride_x, {}, {}};
  for (int64_t c = 0; c < a.C; ++c) {
    s.mean[c] = a.mean[c];
    s.std[c] = a.std[c];
  }
  patchify_kernel<In, Out><<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const In*>(a.images), a.permutation, static_cast<Out*>(a.patches), s, count);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename Grad>
void launch_backward(const PatchifyBackward& a, cudaStream_t stream) {
  const int64_t count = a.B * a.C * a.H * a.W;
  if (count == 0) return;
  Shape s{a.B, a.C, a.H, a.W, a.S, a.grid, 0, 0, 0, 0, {}, {}};
  for (int64_t c = 0; c < a.C; ++c) s.std[c] = a.std[c];
  patchify_backward_kernel<Grad><<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const Grad*>(a.d_patches), a.permutation, a.d_images, s, count);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename In>
void launch_to(const Patchify& a, cudaStream_t stream) {
  switch (a.dtype) {
    case DType::f32:
      return launch<In, float>(a, stream);
    case DType::f16:
      return launch<In, __half>(a, stream);
    case DType::bf16:
      return launch<In, __nv_bfloat16>(a, stream);
    default:
      SPLIP_CHECK(false, "patchify writes float32, float16 or bfloat16");
  }
}

}  // namespace

void patchify(const Patchify& a, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.image_dtype == DType::u8) return launch_to<uint8_t>(a, s);
  SPLIP_CHECK(a.image_dtype == DType::f32, "patchify reads uint8 or float32");
  launch_to<float>(a, s);
}

void patchify_backward(const PatchifyBackward& a, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case DType::f32:
      return launch_backward<float>(a, s);
    case DType::f16:
      return launch_backward<__half>(a, s);
    case DType::bf16:
      return launch_backward<__nv_bfloat16>(a, s);
    default:
      SPLIP_CHECK(false, "patchify writes float32, float16 or bfloat16");
  }
}

}  // namespace splip::cuda
