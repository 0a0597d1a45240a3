// The fields of each argument struct by name: Python gives them as keywords (bindings.cpp), and the
// tests that run the CUDA kernels on the host fill the same structs from the same lists. A field is
// one line here and one in splip.h; one that is missing here does not compile.
#pragma once

#include <cstddef>

#include "splip.h"

namespace splip {

// Whether a caller may leave a field out: it keeps its default then.
enum class Need { required, optional };

template <typename Visit>
constexpr void visit_fields(PromptLayerNorm& a, Visit&& field) {
  field("x", a.x);
  field("prompts", a.prompts);
  field("gamma", a.gamma);
  field("beta", a.beta);
  field("tokens", a.tokens);
  field("normed", a.normed);
  field("mean", a.mean);
  field("rstd", a.rstd);
  field("B", a.B);
  field("L", a.L);
  field("P", a.P);
  field("G", a.G);
  field("D", a.D);
  field("R", a.R);
  field("eps", a.eps);
  field("dtype", a.dtype);
}

template <typename Visit>
constexpr void visit_fields(PromptLayerNormBackward& a, Visit&& field) {
  field("d_tokens", a.d_tokens);
  field("d_normed", a.d_normed);
  field("tokens", a.tokens);
  field("gamma", a.gamma);
  field("mean", a.mean);
  field("rstd", a.rstd);
  field("d_x", a.d_x);
  field("d_prompts", a.d_prompts);
  field("d_gamma", a.d_gamma);
  field("d_beta", a.d_beta);
  field("scratch", a.scratch);
  field("B", a.B);
  field("L", a.L);
  field("P", a.P);
  field("G", a.G);
  field("D", a.D);
  field("R", a.R);
  field("dtype", a.dtype);
}

template <typename Visit>
constexpr void visit_fields(Patchify& a, Visit&& field) {
  field("images", a.images);
  field("stride_b", a.stride_b);
  field("stride_c", a.stride_c);
  field("stride_y", a.stride_y);
  field("stride_x", a.stride_x);
  field("permutation", a.permutation);
  field("patches", a.patches);
  field("B", a.B);
  field("C", a.C);
  field("H", a.H);
  field("W", a.W);
  field("S", a.S);
  field("grid", a.grid);
  field("mean", a.mean);
  field("std", a.std);
  field("image_dtype", a.image_dtype);
  field("dtype", a.dtype);
}

template <typename Visit>
constexpr void visit_fields(PatchifyBackward& a, Visit&& field) {
  field("d_patches", a.d_patches);
  field("permutation", a.permutation);
  field("d_images", a.d_images);
  field("B", a.B);
  field("C", a.C);
  field("H", a.H);
  field("W", a.W);
  field("S", a.S);
  field("grid", a.grid);
  field("std", a.std);
  field("dtype", a.dtype);
}

template <typename Visit>
constexpr void visit_fields(CosineTopk& a, Visit&& field) {
  field("queries", a.queries);
  field("gallery", a.gallery);
  field("scores", a.scores);
  field("indices", a.indices);
  field("scratch", a.scratch);
  field("Q", a.Q);
  field("N", a.N);
  field("D", a.D);
  field("K", a.K);
  field("dtype", a.dtype);
  field("scan", a.scan, Need::optional);
  field("allowed", a.allowed, Need::optional);
  field("eight_bit_rows", a.eight_bit.rows, Need::optional);
  field("scale", a.eight_bit.scale, Need::optional);
  field("error", a.eight_bit.error, Need::optional);
  field("centre", a.eight_bit.centre, Need::optional);
  field("pitch", a.eight_bit.pitch, Need::optional);
  field("inverse", a.inverse, Need::optional);
}

template <typename Visit>
constexpr void visit_fields(CosineTopkKeys& a, Visit&& field) {
  field("queries", a.queries);
  field("gallery", a.gallery);
  field("inverse", a.inverse);
  field("thresholds", a.thresholds);
  field("keys", a.keys);
  field("counts", a.counts);
  field("Q", a.Q);
  field("N", a.N);
  field("D", a.D);
  field("dtype", a.dtype);
  field("scan", a.scan);
}

template <typename Visit>
constexpr void visit_fields(PackGallery& a, Visit&& field) {
  field("gallery", a.gallery);
  field("panels", a.panels);
  field("scale", a.scale);
  field("error", a.error);
  field("inverse", a.inverse);
  field("centre", a.centre);
  field("scratch", a.scratch);
  field("N", a.N);
  field("D", a.D);
}

template <typename Visit>
constexpr void visit_fields(PackedTopk& a, Visit&& field) {
  field("queries", a.queries);
  field("gallery", a.gallery);
  field("panels", a.panels);
  field("scale", a.scale);
  field("error", a.error);
  field("inverse", a.inverse);
  field("centre", a.centre);
  field("allowed", a.allowed);
  field("scores", a.scores);
  field("indices", a.indices);
  field("scratch", a.scratch);
  field("Q", a.Q);
  field("N", a.N);
  field("D", a.D);
  field("K", a.K);
}

namespace detail {

struct Bytes {
  size_t sum = 0;
  template <typename T>
  constexpr void operator()(const char*, T&, Need = Need::required) {
    sum += sizeof(T);
  }
};

// The structs have no padding but at their end, so what is missing in a list shows in their size.
template <typename Args>
constexpr bool lists_all() {
  Args a{};
  Bytes bytes;
  visit_fields(a, bytes);
  return (bytes.sum + alignof(Args) - 1) / alignof(Args) * alignof(Args) == sizeof(Args);
}

static_assert(lists_all<PromptLayerNorm>() && lists_all<PromptLayerNormBackward>());
static_assert(lists_all<Patchify>() && lists_all<PatchifyBackward>());
static_assert(lists_all<CosineTopk>() && lists_all<CosineTopkKeys>());
static_assert(lists_all<PackGallery>() && lists_all<PackedTopk>());

}  // namespace detail

}  // namespace splip
