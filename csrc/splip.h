// The whole C++ API of splip: one argument struct per op, whose fields fields.h lists by name.
//
// Sizes: B batch, L tokens, P prompts, T tokens with prompts, G prompt sets, D width,
//        Q queries, N gallery, K results, C channels, H W image, S patch, M patches.
// Every pointer is to caller-owned memory, contiguous unless strides are given. Nothing here
// allocates on a device, synchronises, or keeps a pointer after it returns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace splip {

enum class DType : int { f32 = 0, f16 = 1, bf16 = 2, u8 = 3, i8 = 4 };

// Insert prompt tokens after the class token and normalise the sequence:
// tokens = cat(x[:, :1], prompts, x[:, 1 + R:]), normed = layer_norm(tokens), T = L - R + P.
//
//   x        [B, L, D]  in   class token first
//   prompts  [G, P, D]  in   dtype of x; G is 1 (shared by the batch) or B
//   gamma    [D] f32    in
//   beta     [D] f32    in
//   tokens   [B, T, D]  out  dtype of x
//   normed   [B, T, D]  out  dtype of x
//   mean     [B, T] f32 out  row means, kept for the backward pass
//   rstd     [B, T] f32 out  1 / sqrt(variance + eps)
//   R                   in   tokens after the class token that are left out (the previous prompts)
struct PromptLayerNorm {
  const void* x;
  const void* prompts;
  const float* gamma;
  const float* beta;
  void* tokens;
  void* normed;
  float* mean;
  float* rstd;
  int64_t B, L, P, G, D, R;
  float eps;
  DType dtype;
};

// Gradients of PromptLayerNorm. Deterministic: sums run in a fixed order.
//
//   d_tokens  [B, T, D]              in   gradient of tokens, or null for zero
//   d_normed  [B, T, D]              in   gradient of normed, or null for zero
//   tokens    [B, T, D]              in   output of the forward pass
//   d_x       [B, L, D]              out  zero in the R rows that were left out
//   d_prompts [G, P, D] f32          out
//   d_gamma   [D] f32                out
//   d_beta    [D] f32                out
//   scratch   [kLayerNormChunks, 2, D] f32; CUDA: prompt_layernorm_scratch() floats
//
// CUDA: B >= 1, rows of a multiple of 16 bytes and aligned to it, at most kNormBytes, or
// kNormGradients wide in the backward pass.
struct PromptLayerNormBackward {
  const void* d_tokens;
  const void* d_normed;
  const void* tokens;
  const float* gamma;
  const float* mean;
  const float* rstd;
  void* d_x;
  float* d_prompts;
  float* d_gamma;
  float* d_beta;
  float* scratch;
  int64_t B, L, P, G, D, R;
  DType dtype;
};

// Partial sums of d_gamma and d_beta; fixed, so that the result does not depend on the threads.
constexpr int64_t kLayerNormChunks = 64;

constexpr int64_t kMaxChannels = 4;

// Cut images into patches, ready for the patch embedding's matrix product: optional shuffle of the
// tiles of a grid x grid raster, (value - mean[c]) / std[c] with u8 divided by 255, im2col.
// M = (H / S) * (W / S); tiles are H / grid by W / grid pixels, the remainder at the bottom and
// right stays in place.
//
//   images       [B, C, H, W]     in   u8 or f32, any strides (in elements)
//   permutation  [B, grid * grid] in   int64, source tile of each output tile; null: no shuffle
//   patches      [B, M, C * S * S] out f32, f16 or bf16
struct Patchify {
  const void* images;
  int64_t stride_b, stride_c, stride_y, stride_x;
  const int64_t* permutation;
  void* patches;
  int64_t B, C, H, W, S, grid;
  float mean[kMaxChannels];
  float std[kMaxChannels];
  DType image_dtype;
  DType dtype;
};

// Gradient of Patchify with respect to float images.
//
//   d_patches    [B, M, C * S * S] in   f32, f16 or bf16
//   permutation  [B, grid * grid]  in   each row a permutation; null: no shuffle
//   d_images     [B, C, H, W] f32  out
struct PatchifyBackward {
  const void* d_patches;
  const int64_t* permutation;
  float* d_images;
  int64_t B, C, H, W, S, grid;
  float std[kMaxChannels];
  DType dtype;
};

// How CUDA's cosine_topk multiplies: past 32 queries at a time; in tiles of 64 or 128 of them and
// 128 rows; in tiles of 128 queries and 256 rows, by mma.sync (tiles256) or by Hopper's wgmma.
// `automatic` chooses by Q; the others are for tests and measurements. What a GPU or an input does
// not allow falls back to the next simpler one.
enum class TopkScan : int {
  automatic = 0,
  stream = 1,
  tiles64 = 2,
  tiles128 = 3,
  tiles256 = 4,
  wgmma = 5
};

// A gallery in 8 bits for CUDA's cosine_topk: unit rows less their mean, each with a scale. It is
// what the scan reads; exact scores come from the rows it was made of, or, where these were not
// kept, from 8 bits too.
//
//   rows    [N, pitch] i8   in  pitch: D rounded up to 16, zero past D; 16-byte aligned
//   scale   [N] f32         in  NaN: a row without a score
//   error   [N] f32         in  at least the length of what 8 bits lost; null: rows not kept
//   centre  [D + 1] f32     in  mean of the unit rows; last: at least the length of any row in 8
//                               bits
struct EightBitRows {
  const int8_t* rows = nullptr;
  const float* scale = nullptr;
  const float* error = nullptr;
  const float* centre = nullptr;
  int64_t pitch = 0;
};

// The K largest cosine similarities of each query, score descending, then index ascending.
// Norms below kMinNorm count as kMinNorm, so a zero row scores 0. A score that is not a number, or
// whose norm overflows, counts and is reported as -infinity.
//
//   queries  [Q, D]      in   f32 (CUDA: f32, f16 or bf16)
//   gallery  [N, D]      in   same dtype; CUDA: null if only eight_bit is at hand
//   scores   [Q, K] f32  out  CUDA: -infinity beyond the allowed rows
//   indices  [Q, K] i64  out  CUDA: -1 there
//   scratch  cosine_topk_scratch() bytes, 16-byte aligned
//   allowed  [N] u8      in   CUDA: 0 is a row that may not be a result; null: all may
//   eight_bit            in   CUDA: what to scan in place of the gallery
//   inverse  [N] f32     in   CUDA: 1 / norm of the gallery's rows, NaN for a row without a score;
//                             null: norms are summed on the way
struct CosineTopk {
  const void* queries;
  const void* gallery;
  float* scores;
  int64_t* indices;
  void* scratch;
  int64_t Q, N, D, K;
  DType dtype;
  TopkScan scan = TopkScan::automatic;
  const uint8_t* allowed = nullptr;
  EightBitRows eight_bit = {};
  const float* inverse = nullptr;
};

// One pass of CosineTopk over all rows on a GPU, for measurements: what it scores, unselected.
//
//   queries     [Q, D]      in   f32, f16 or bf16
//   gallery     [N, D]      in   same dtype
//   inverse     [N] f32     in   as of CosineTopk, or null
//   thresholds  [Q] f32     in   what a score must reach
//   keys        [Q, N] u64  out  of the scores that do, in no order (topk_select.h); a score is the
//                                product of the query as it is with the unit row
//   counts      [Q] i32     both 0 before, then the number of keys
struct CosineTopkKeys {
  const void* queries;
  const void* gallery;
  const float* inverse;
  float* thresholds;
  uint64_t* keys;
  int* counts;
  int64_t Q, N, D;
  DType dtype;
  TopkScan scan;
};

// A gallery made ready for many searches on the CPU: unit rows less their mean, in 8 bits, in the
// order of the scan. Rows whose norm is not a number or overflows never are results but at
// -infinity.
//
//   gallery  [N, D] f32  in
//   panels   packed_panel_bytes(), 64-byte aligned  out
//   scale    [ceil(N / 32) * 32] f32   out
//   error    [ceil(N / 32) * 32] f32   out  length of what quantisation changed
//   inverse  [N] f64      out  1 / norm, 0 for such a row
//   centre   [D + 1] f32  out  mean of unit rows; last: the greatest length of a quantised row
//   scratch  pack_gallery_scratch() bytes, 8-byte aligned
struct PackGallery {
  const float* gallery;
  uint8_t* panels;
  float* scale;
  float* error;
  double* inverse;
  float* centre;
  void* scratch;
  int64_t N, D;
};

// CosineTopk in a packed gallery: the same scores and indices, whatever the kernels and threads.
//
//   queries  [Q, D] f32   in
//   gallery  [N, D] f32   in   what was packed
//   panels, scale, error, inverse, centre  in  its packed form
//   allowed  [ceil(N / 32)] u32   in   bit n % 32 of word n / 32: row n may be a result; null: all
//   scores   [Q, K] f32   out  -infinity beyond the allowed rows
//   indices  [Q, K] i64   out  -1 there
//   scratch  packed_topk_scratch() bytes, 64-byte aligned
struct PackedTopk {
  const float* queries;
  const float* gallery;
  const uint8_t* panels;
  const float* scale;
  const float* error;
  const double* inverse;
  const float* centre;
  const uint32_t* allowed;
  float* scores;
  int64_t* indices;
  void* scratch;
  int64_t Q, N, D, K;
};

constexpr float kMinNorm = 1e-12f;  // as torch.nn.functional.normalize

namespace cpu {

// What this machine can execute, e.g. {"sse4.2", "avx2", "avx512f"}.
std::vector<std::string> instruction_sets();
// Levels of kernels that this machine can run, slowest first; the fastest is used.
std::vector<std::string> levels();
std::string isa();
void set_isa(const std::string& level);

void prompt_layernorm(const PromptLayerNorm& a, int threads);
void prompt_layernorm_backward(const PromptLayerNormBackward& a, int threads);
void patchify(const Patchify& a, int threads);
void patchify_backward(const PatchifyBackward& a, int threads);
int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t D, int64_t K, int threads);
void cosine_topk(const CosineTopk& a, int threads);
int64_t packed_panel_bytes(int64_t N, int64_t D);
int64_t pack_gallery_scratch(int64_t D, int threads);
void pack_gallery(const PackGallery& a, int threads);
int64_t packed_topk_scratch(int64_t Q, int64_t D, int64_t K, int threads);
void packed_topk(const PackedTopk& a, int threads);

}  // namespace cpu

#ifdef SPLIP_HAS_CUDA
namespace cuda {

constexpr int64_t kMaxK = 1024;
constexpr int64_t kMaxQueries = 1 << 14;  // of one call of cosine_topk
constexpr int64_t kMaxWidth = 1 << 16;    // of its rows
// Bytes of a row of prompt_layernorm, which a warp holds in registers: D = 1024 in float32, 2048 in
// 16 bits; and D of its backward pass, whose sums are in registers too.
constexpr int64_t kNormBytes = 4096;
constexpr int64_t kNormGradients = 1024;
// Up to these many queries the automatic choice is the stream. Then it is wgmma where there is one,
// else tiles of 64 queries up to the second number and of 128 beyond; up to that number rows of
// more than 1 KB take tiles of 64 everywhere.
constexpr int64_t kStreamQueries = 32;
constexpr int64_t kNarrowQueries = 64;

// One line per GPU: name, compute capability, memory. Throws without a driver.
std::vector<std::string> devices();

void prompt_layernorm(const PromptLayerNorm& a, int device, void* stream);
int64_t prompt_layernorm_scratch(int64_t B, int64_t L, int64_t P, int64_t G, int64_t D, int64_t R,
                                 int device);
void prompt_layernorm_backward(const PromptLayerNormBackward& a, int device, void* stream);
void patchify(const Patchify& a, int device, void* stream);
void patchify_backward(const PatchifyBackward& a, int device, void* stream);
// pitch: of rows in 8 bits, 0 for others.
int64_t cosine_topk_scratch(int64_t Q, int64_t N, int64_t K, TopkScan scan, int64_t pitch);
void cosine_topk(const CosineTopk& a, int device, void* stream);
void cosine_topk_keys(const CosineTopkKeys& a, int device, void* stream);
// True if this build holds wgmma's code and the device can run it.
bool has_wgmma(int device);

}  // namespace cuda
#endif

}  // namespace splip
