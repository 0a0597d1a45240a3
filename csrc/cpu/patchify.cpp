// CPU patchify: one pass from the decoded image to the rows of the patch embedding's product.
// Bound by memory: B * C * H * W * (sizeof(input) + sizeof(output)).
#include <algorithm>
#include <vector>

#include "../common.h"
#include "../patch_map.h"
#include "../splip.h"
#include "convert.h"
#include "threads.h"

namespace splip::cpu {
namespace {

void check_permutation(const int64_t* permutation, int64_t B, int64_t tiles) {
  if (permutation == nullptr) return;
  std::vector<char> seen(tiles);
  for (int64_t b = 0; b < B; ++b) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t source = permutation[b * tiles + t];
      SPLIP_CHECK(source >= 0 && source < tiles && !seen[source], "permutation row ", b,
                  " is not a permutation of 0..", tiles - 1);
      seen[source] = 1;
    }
  }
}

// What every byte becomes in a channel, computed once a call: the divisions of the definition, bit
// for bit.
template <typename Out>
struct Table {
  Out values[kMaxChannels][256];
  explicit Table(const Patchify& a) {
    for (int64_t c = 0; c < a.C; ++c) {
      for (int v = 0; v < 256; ++v) {
        store(&values[c][v], (static_cast<float>(v) / 255.0f - a.mean[c]) / a.std[c]);
      }
    }
  }
};

// `count` pixels of one channel that lie `stride` apart.
template <typename Out>
void convert(const uint8_t* in, int64_t stride, int64_t count, const Table<Out>& table,
             const Patchify&, int64_t c, Out* out) {
  const Out* values = table.values[c];
  for (int64_t i = 0; i < count; ++i) out[i] = values[in[i * stride]];
}
template <typename Out>
void convert(const float* in, int64_t stride, int64_t count, const Table<Out>&, const Patchify& a,
             int64_t c, Out* out) {
  const float mean = a.mean[c], std = a.std[c];
  for (int64_t i = 0; i < count; ++i) store(out + i, (in[i * stride] - mean) / std);
}

template <typename In, typename Out>
void forward(const Patchify& a, int threads) {
  const auto* images = static_cast<const In*>(a.images);
  auto* patches = static_cast<Out*>(a.patches);
  const int64_t rows = a.H / a.S, columns = a.W / a.S, tiles = a.grid * a.grid;
  const int64_t tile_h = a.H / a.grid, tile_w = a.W / a.grid, patch = a.C * a.S * a.S;
  const Table<Out> table(a);
  parallel_for(threads, a.B * rows, [&](int64_t item) {
    const int64_t b = item / rows, row = item % rows;
    const int64_t* permutation = a.permutation ? a.permutation + b * tiles : nullptr;
    Out* out_row = patches + item * columns * patch;
    for (int64_t line = 0; line < a.S; ++line) {
      const int64_t y = row * a.S + line;
      // Along a line, pixels come from one place until a patch or a tile ends.
      for (int64_t x = 0, end; x < a.W; x = end) {
        end = std::min(a.W, (x / a.S + 1) * a.S);
        if (permutation != nullptr && x < a.grid * tile_w) {
          end = std::min(end, (x / tile_w + 1) * tile_w);
        }
        const Pixel from = source_pixel(y, x, permutation, a.grid, tile_h, tile_w);
        const In* in = images + b * a.stride_b + from.y * a.stride_y + from.x * a.stride_x;
        Out* out = out_row + x / a.S * patch + line * a.S + x % a.S;
        for (int64_t c = 0; c < a.C; ++c) {
          convert(in + c * a.stride_c, a.stride_x, end - x, table, a, c, out + c * a.S * a.S);
        }
      }
    }
  });
}

template <typename Grad>
void backward(const PatchifyBackward& a, int threads) {
  const auto* d_patches = static_cast<const Grad*>(a.d_patches);
  const int64_t columns = a.W / a.S, per_image = a.C * a.H * a.W, tiles = a.grid * a.grid;
  const int64_t tile_h = a.H / a.grid, tile_w = a.W / a.grid;
  parallel_for(threads, a.B, [&](int64_t b) {
    const int64_t* permutation = a.permutation ? a.permutation + b * tiles : nullptr;
    for (int64_t i = 0; i < per_image; ++i) {
      const int64_t c = i / (a.H * a.W), y = i / a.W % a.H, x = i % a.W;
      const int64_t patch = (y / a.S) * columns + x / a.S;
      const int64_t at = ((patch * a.C + c) * a.S + y % a.S) * a.S + x % a.S;
      const Pixel from = source_pixel(y, x, permutation, a.grid, tile_h, tile_w);
      // A permutation reaches every source pixel exactly once, so this is a store, not a sum.
      a.d_images[b * per_image + (c * a.H + from.y) * a.W + from.x] =
          load(d_patches[b * per_image + at]) / a.std[c];
    }
  });
}

}  // namespace

void patchify(const Patchify& a, int threads) {
  check_permutation(a.permutation, a.B, a.grid * a.grid);
  const bool bytes = a.image_dtype == DType::u8;
  if (a.dtype == DType::f32) {
    return bytes ? forward<uint8_t, float>(a, threads) : forward<float, float>(a, threads);
  }
  SPLIP_CHECK(a.dtype == DType::bf16, "patchify on the CPU writes float32 or bfloat16");
  return bytes ? forward<uint8_t, bf16>(a, threads) : forward<float, bf16>(a, threads);
}

void patchify_backward(const PatchifyBackward& a, int threads) {
  check_permutation(a.permutation, a.B, a.grid * a.grid);
  if (a.dtype == DType::f32) return backward<float>(a, threads);
  SPLIP_CHECK(a.dtype == DType::bf16, "patchify on the CPU writes float32 or bfloat16");
  return backward<bf16>(a, threads);
}

}  // namespace splip::cpu
