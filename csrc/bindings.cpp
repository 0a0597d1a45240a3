// splip._C: pointers and sizes from Python to the argument structs. Python has checked everything.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "common.h"
#include "splip.h"

namespace py = pybind11;

namespace splip {
namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Where a tensor lives: device -1 is the CPU, with its threads; else a GPU, with its stream.
struct Where {
  int device;
  uintptr_t stream;
  int threads;
};

template <typename Args, typename Cpu, typename Cuda>
void dispatch(const Args& args, const Where& where, Cpu cpu, Cuda cuda) {
  const py::gil_scoped_release release;
  if (where.device < 0) {
    cpu(args, std::max(1, where.threads));
  } else {
    cuda(args, where.device, pointer<void>(where.stream));
  }
}

#ifdef SPLIP_HAS_CUDA
constexpr bool kHasCuda = true;
#define SPLIP_CUDA_OP(op) cuda::op
#else
constexpr bool kHasCuda = false;
#define SPLIP_CUDA_OP(op)                                                 \
  [](const auto&, int, void*) {                                           \
    throw std::runtime_error("splip was built without its CUDA kernels"); \
  }
#endif

void fill(float* out, const std::vector<float>& values) {
  SPLIP_CHECK(values.size() <= kMaxChannels, "at most ", kMaxChannels, " channels");
  std::copy(values.begin(), values.end(), out);
}

}  // namespace
}  // namespace splip

PYBIND11_MODULE(_C, m) {
  using namespace splip;
  m.doc() = "Native kernels of splip; use splip.ops.";
  m.attr("version") = SPLIP_VERSION;
  m.attr("has_cuda") = kHasCuda;
  m.attr("layernorm_chunks") = kLayerNormChunks;
  m.attr("max_channels") = kMaxChannels;
#ifdef SPLIP_HAS_CUDA
  m.attr("cuda_toolkit") = SPLIP_CUDA_TOOLKIT;
  m.attr("cuda_archs") = SPLIP_CUDA_ARCHS;
  m.attr("cuda_max_k") = cuda::kMaxK;
  m.attr("cuda_max_queries") = cuda::kMaxQueries;
  m.attr("cuda_max_width") = cuda::kMaxWidth;
  m.attr("cuda_stream_queries") = cuda::kStreamQueries;
  m.attr("cuda_narrow_queries") = cuda::kNarrowQueries;
  m.def("cuda_has_wgmma", cuda::has_wgmma);
  m.def("cuda_devices", cuda::devices);
#else
  m.attr("cuda_toolkit") = "";
  m.attr("cuda_archs") = "";
  m.attr("cuda_max_k") = 0;
  m.attr("cuda_max_queries") = 0;
  m.attr("cuda_max_width") = 0;
  m.attr("cuda_stream_queries") = 0;
  m.attr("cuda_narrow_queries") = 0;
  m.def("cuda_has_wgmma", [](int) { return false; });
  m.def("cuda_devices", [] { return std::vector<std::string>(); });
#endif
  m.def("instruction_sets", cpu::instruction_sets);
  m.def("levels", cpu::levels);
  m.def("isa", cpu::isa);
  m.def("set_isa", cpu::set_isa);

  m.def("prompt_layernorm", [](uintptr_t x, uintptr_t prompts, uintptr_t gamma, uintptr_t beta,
                               uintptr_t tokens, uintptr_t normed, uintptr_t mean, uintptr_t rstd,
                               int64_t B, int64_t L, int64_t P, int64_t G, int64_t D, int64_t R,
                               float eps, int dtype, int device, uintptr_t stream, int threads) {
    const PromptLayerNorm args{pointer<void>(x),
                               pointer<void>(prompts),
                               pointer<float>(gamma),
                               pointer<float>(beta),
                               pointer<void>(tokens),
                               pointer<void>(normed),
                               pointer<float>(mean),
                               pointer<float>(rstd),
                               B,
                               L,
                               P,
                               G,
                               D,
                               R,
                               eps,
                               static_cast<DType>(dtype)};
    dispatch(args, {device, stream, threads}, cpu::prompt_layernorm,
             SPLIP_CUDA_OP(prompt_layernorm));
  });
  m.def("prompt_layernorm_backward",
        [](uintptr_t d_tokens, uintptr_t d_normed, uintptr_t tokens, uintptr_t gamma,
           uintptr_t mean, uintptr_t rstd, uintptr_t d_x, uintptr_t d_prompts, uintptr_t d_gamma,
           uintptr_t d_beta, uintptr_t scratch, int64_t B, int64_t L, int64_t P, int64_t G,
           int64_t D, int64_t R, int dtype, int device, uintptr_t stream, int threads) {
          const PromptLayerNormBackward args{pointer<void>(d_tokens),
                                             pointer<void>(d_normed),
                                             pointer<void>(tokens),
                                             pointer<float>(gamma),
                                             pointer<float>(mean),
                                             pointer<float>(rstd),
                                             pointer<void>(d_x),
                                             pointer<float>(d_prompts),
                                             pointer<float>(d_gamma),
                                             pointer<float>(d_beta),
                                             pointer<float>(scratch),
                                             B,
                                             L,
                                             P,
                                             G,
                                             D,
                                             R,
                                             static_cast<DType>(dtype)};
          dispatch(args, {device, stream, threads}, cpu::prompt_layernorm_backward,
                   SPLIP_CUDA_OP(prompt_layernorm_backward));
        });
#ifdef SPLIP_HAS_CUDA
  m.def("prompt_layernorm_scratch", cuda::prompt_layernorm_scratch);
#endif
  m.def("patchify", [](uintptr_t images, std::vector<int64_t> strides, uintptr_t permutation,
                       uintptr_t patches, int64_t B, int64_t C, int64_t H, int64_t W, int64_t S,
                       int64_t grid, const std::vector<float>& mean, const std::vector<float>& std,
                       int image_dtype, int dtype, int device, uintptr_t stream, int threads) {
    SPLIP_CHECK(strides.size() == 4, "strides must have four entries");
    Patchify args{};
    args.images = pointer<void>(images);
    args.stride_b = strides[0];
    args.stride_c = strides[1];
    args.stride_y = strides[2];
    args.stride_x = strides[3];
    args.permutation = pointer<int64_t>(permutation);
    args.patches = pointer<void>(patches);
    args.B = B;
    args.C = C;
    args.H = H;
    args.W = W;
    args.S = S;
    args.grid = grid;
    args.image_dtype = static_cast<DType>(image_dtype);
    args.dtype = static_cast<DType>(dtype);
    fill(args.mean, mean);
    fill(args.std, std);
    dispatch(args, {device, stream, threads}, cpu::patchify, SPLIP_CUDA_OP(patchify));
  });
  m.def("patchify_backward",
        [](uintptr_t d_patches, uintptr_t permutation, uintptr_t d_images, int64_t B, int64_t C,
           int64_t H, int64_t W, int64_t S, int64_t grid, const std::vector<float>& std, int dtype,
           int device, uintptr_t stream, int threads) {
          PatchifyBackward args{};
          args.d_patches = pointer<void>(d_patches);
          args.permutation = pointer<int64_t>(permutation);
          args.d_images = pointer<float>(d_images);
          args.B = B;
          args.C = C;
          args.H = H;
          args.W = W;
          args.S = S;
          args.grid = grid;
          args.dtype = static_cast<DType>(dtype);
          fill(args.std, std);
          dispatch(args, {device, stream, threads}, cpu::patchify_backward,
                   SPLIP_CUDA_OP(patchify_backward));
        });
  m.def(
      "cosine_topk_scratch",
      [](int64_t Q, int64_t N, int64_t D, int64_t K, int device, int threads,
         [[maybe_unused]] int scan, [[maybe_unused]] int64_t pitch) -> int64_t {
        if (device < 0) return cpu::cosine_topk_scratch(Q, N, D, K, std::max(1, threads));
#ifdef SPLIP_HAS_CUDA
        return cuda::cosine_topk_scratch(Q, N, K, static_cast<TopkScan>(scan), pitch);
#else
        throw std::runtime_error("splip was built without its CUDA kernels");
#endif
      },
      py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg() = 0,
      py::arg() = 0);
  m.def(
      "cosine_topk",
      [](uintptr_t queries, uintptr_t gallery, uintptr_t scores, uintptr_t indices,
         uintptr_t scratch, int64_t Q, int64_t N, int64_t D, int64_t K, int dtype, int device,
         uintptr_t stream, int threads, uintptr_t allowed, int scan, uintptr_t eight_bit_rows,
         uintptr_t scale, uintptr_t error, uintptr_t centre, int64_t pitch, uintptr_t inverse) {
        const CosineTopk args{pointer<void>(queries),
                              pointer<void>(gallery),
                              pointer<float>(scores),
                              pointer<int64_t>(indices),
                              pointer<void>(scratch),
                              Q,
                              N,
                              D,
                              K,
                              static_cast<DType>(dtype),
                              pointer<uint8_t>(allowed),
                              static_cast<TopkScan>(scan),
                              {pointer<int8_t>(eight_bit_rows), pointer<float>(scale),
                               pointer<float>(error), pointer<float>(centre), pitch},
                              pointer<float>(inverse)};
        dispatch(args, {device, stream, threads}, cpu::cosine_topk, SPLIP_CUDA_OP(cosine_topk));
      },
      py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
      py::arg(), py::arg(), py::arg(), py::arg(), py::arg(), py::arg() = 0, py::arg() = 0,
      py::arg() = 0, py::arg() = 0, py::arg() = 0, py::arg() = 0, py::arg() = 0, py::arg() = 0);
  m.def("packed_panel_bytes", cpu::packed_panel_bytes);
  m.def("pack_gallery_scratch",
        [](int64_t D, int threads) { return cpu::pack_gallery_scratch(D, std::max(1, threads)); });
  m.def("pack_gallery",
        [](uintptr_t gallery, uintptr_t panels, uintptr_t scale, uintptr_t error, uintptr_t inverse,
           uintptr_t centre, uintptr_t scratch, int64_t N, int64_t D, int threads) {
          const PackGallery args{pointer<float>(gallery),
                                 pointer<uint8_t>(panels),
                                 pointer<float>(scale),
                                 pointer<float>(error),
                                 pointer<double>(inverse),
                                 pointer<float>(centre),
                                 pointer<void>(scratch),
                                 N,
                                 D};
          const py::gil_scoped_release release;
          cpu::pack_gallery(args, std::max(1, threads));
        });
  m.def("packed_topk_scratch", [](int64_t Q, int64_t D, int64_t K, int threads) {
    return cpu::packed_topk_scratch(Q, D, K, std::max(1, threads));
  });
  m.def("packed_topk", [](uintptr_t queries, uintptr_t gallery, uintptr_t panels, uintptr_t scale,
                          uintptr_t error, uintptr_t inverse, uintptr_t centre, uintptr_t allowed,
                          uintptr_t scores, uintptr_t indices, uintptr_t scratch, int64_t Q,
                          int64_t N, int64_t D, int64_t K, int threads) {
    const PackedTopk args{pointer<float>(queries),
                          pointer<float>(gallery),
                          pointer<uint8_t>(panels),
                          pointer<float>(scale),
                          pointer<float>(error),
                          pointer<double>(inverse),
                          pointer<float>(centre),
                          pointer<uint32_t>(allowed),
                          pointer<float>(scores),
                          pointer<int64_t>(indices),
                          pointer<void>(scratch),
                          Q,
                          N,
                          D,
                          K};
    const py::gil_scoped_release release;
    cpu::packed_topk(args, std::max(1, threads));
  });
}
