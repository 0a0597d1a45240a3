// CUDA cosine_topk, few queries: a warp multiplies 16 gallery rows with 8 to 32 queries on the
// tensor cores, straight from memory. Bound by memory: every row is read once for all queries of a
// group, N * D * sizeof(T) bytes; a warp has 4 KB of them in flight, a multiprocessor 64 KB.
//
// Rows in 8 bits: mma.sync of 8-bit numbers rather than dp4a. A multiprocessor of an H100 is sent
// about 15 bytes a clock. In that clock dp4a (64 lanes) does 256 products: 17 queries would already
// be bound by it, and queries in two parts take twice the products. The tensor cores do 4,096 (half
// of that by mma.sync), 32 queries in two parts need 960. What costs instead is reading the queries
// from shared memory, 16 bytes a lane for two products: 32 clocks for 32 queries in two parts, per
// 64 bytes of 16 rows that take 70 to arrive.
#include "cosine_topk.cuh"

namespace splip::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 16;               // gallery rows of a warp: the M of its products
constexpr int kGroupQueries = 8;        // their N
constexpr int kBlockBytes = 64;         // of a row, in one step: four lanes, one chunk each
constexpr int kUnroll = 4;              // steps whose loads are issued together
constexpr int kPanelBytes = 64 * 1024;  // of shared memory for the queries
constexpr int kBlocksPerMultiprocessor = 2;

// One chunk of 16 bytes of a row from `column` on; zero past the end.
template <typename T, bool kVector>
__device__ __forceinline__ uint4 load_chunk(const T* row, int column, int D, bool use) {
  uint4 chunk = {0, 0, 0, 0};
  if (!use) return chunk;
  if (kVector) {
    if (column < D) chunk = load_stream(row + column);  // D is a multiple of a chunk
    return chunk;
  }
  constexpr int kPerWord = 4 / sizeof(T);
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kPerWord; ++j) {
      const int c = column + i * kPerWord + j;
      if (c >= D) continue;
      if (sizeof(T) == 4) {
        words[i] = reinterpret_cast<const uint32_t*>(row)[c];
      } else {
        words[i] |= uint32_t(reinterpret_cast<const uint16_t*>(row)[c]) << (16 * j);
      }
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// Chunks of the queries from block `from` of their bytes on, to shared memory as the lanes want
// them: [block of 64 bytes][group][part][lane].
template <typename T, int kGroups, bool kVector>
__device__ __forceinline__ void fill_panel(const Pass& p, uint4* panel, int panel_blocks, int from,
                                           int first_query) {
  constexpr int kChunk = mma::kChunkBytes / sizeof(T);  // elements
  constexpr int kColumns = kBlockBytes / sizeof(T);
  constexpr int kParts = Element<T>::kMostParts;
  const auto* queries = static_cast<const T*>(p.queries);
  for (int i = threadIdx.x; i < panel_blocks * kGroups * kParts * kWarp; i += kWarp * kWarps) {
    const int own = i % kWarp, part = i / kWarp % kParts, group = i / kWarp / kParts % kGroups;
    const int q = first_query + group * kGroupQueries + mma::direct_row(own);
    const int block = i / kWarp / kParts / kGroups;
    const int column = (from + block) * kColumns + mma::direct_chunk(own) * kChunk;
    uint4 words =
        load_chunk<T, kVector>(queries + (int64_t(q) * kParts + part) * p.D, column, p.D, q < p.Q);
    words.x = Element<T>::operand(words.x);
    words.y = Element<T>::operand(words.y);
    words.z = Element<T>::operand(words.z);
    words.w = Element<T>::operand(words.w);
    panel[i] = words;
  }
}

// One chunk of each of the lane's two rows times the queries of a block of the panel.
template <typename T, int kGroups, int kParts>
__device__ __forceinline__ void multiply(const uint4& x, const uint4& y, const uint4* block,
                                         typename Element<T>::Sum (&product)[kGroups][kParts][4],
                                         float (&squares)[2]) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t xs[4] = {x.x, x.y, x.z, x.w};
  const uint32_t ys[4] = {y.x, y.y, y.z, y.w};
  uint32_t xo[4], yo[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    squares[0] = Element<T>::squares(xs[i], squares[0]);
    squares[1] = Element<T>::squares(ys[i], squares[1]);
    xo[i] = Element<T>::operand(xs[i]);
    yo[i] = Element<T>::operand(ys[i]);
  }
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint4 w = block[(group * kParts + part) * kWarp + lane];
      mma_sync<T>(product[group][part], xo[0], yo[0], xo[1], yo[1], w.x, w.y);
      mma_sync<T>(product[group][part], xo[2], yo[2], xo[3], yo[3], w.z, w.w);
    }
  }
}

// The lane's scores of its two rows: all to their keys in a dense pass, else those that reach the
// cut of their query.
template <typename T, int kGroups, int kParts>
__device__ __forceinline__ void keep_scores(
    const Pass& p, const typename Element<T>::Sum (&product)[kGroups][kParts][4],
    const RowFactors (&factors)[2], const int64_t (&rows)[2], const float (&cuts)[kGroups][2],
    int first_query) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2;
      const int q = first_query + group * kGroupQueries + mma::c_column(lane, i);
      float score;
      if constexpr (Element<T>::kFactors) {
        const float both = fmaf(256.0f, static_cast<float>(product[group][0][i]),
                                static_cast<float>(product[group][1][i]));
        // From the L1 cache each time: eight registers more would spill.
        const float scale = q < p.Q ? p.query_scale[q] : 0.0f;
        score = fmaf(both * scale, factors[half].scale, factors[half].error);
      } else {
        score = product[group][0][i] * factors[half].scale;
      }
      const auto index = static_cast<uint32_t>(topk::sampled(rows[half], p.step));
      if (p.dense) {
        if (q < p.Q && rows[half] < p.rows) {
          p.out.keys[int64_t(q) * p.out.capacity + rows[half]] =
              score == score ? topk::make_key(score, index) : 0;
        }
      } else if (score >= cuts[group][i % 2]) {
        push(p.out, q, index, score);
      }
    }
  }
}

// blockIdx.y: 8 * kGroups queries. A row longer than the panel takes several, each filled anew.
template <typename T, int kGroups, bool kVector>
__global__ void __launch_bounds__(kWarp* kWarps, kBlocksPerMultiprocessor)
    stream_kernel(Pass p, int panel_blocks) {
  extern __shared__ uint4 panel[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int g = mma::direct_row(lane), chunk = mma::direct_chunk(lane);
  constexpr int kChunk = mma::kChunkBytes / sizeof(T);  // elements
  constexpr int kColumns = kBlockBytes / sizeof(T);
  constexpr int kParts = Element<T>::kMostParts;
  const int blocks = (p.D + kColumns - 1) / kColumns;
  const int first_query = blockIdx.y * kGroups * kGroupQueries;
  const auto* gallery = static_cast<const T*>(p.gallery);

  float cuts[kGroups][2];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int q = first_query + group * kGroupQueries + mma::c_column(lane, i);
      cuts[group][i] = q < p.Q ? p.out.cuts[q] : NAN;
    }
  }
  const bool one_panel = blocks <= panel_blocks;
  if (one_panel) {
    fill_panel<T, kGroups, kVector>(p, panel, panel_blocks, 0, first_query);
    __syncthreads();
  }

  const int64_t row_blocks = (p.rows + kRows - 1) / kRows;
  // The same number of turns for all warps of the block: they fill the panels together.
  for (int64_t base = int64_t(blockIdx.x) * kWarps; base < row_blocks;
       base += int64_t(gridDim.x) * kWarps) {
    int64_t rows[2];
    bool use[2];
    const T* data[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows[half] = (base + warp) * kRows + g + half * 8;
      const int64_t index = topk::sampled(rows[half], p.step);
      use[half] = rows[half] < p.rows && (p.allowed == nullptr || p.allowed[index] != 0);
      data[half] = gallery + index * p.D;
    }
    const bool any = __any_sync(kFullMask, use[0] || use[1]);  // else spare the reads
    typename Element<T>::Sum product[kGroups][kParts][4] = {};
    float squares[2] = {0, 0};
    for (int from = 0; from < blocks; from += panel_blocks) {
      if (!one_panel) {
        __syncthreads();
        fill_panel<T, kGroups, kVector>(p, panel, panel_blocks, from, first_query);
        __syncthreads();
      }
      const int count = blocks - from < panel_blocks ? blocks - from : panel_blocks;
      for (int b = 0; any && b < count; b += kUnroll) {
        uint4 x[kUnroll], y[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int column = (from + b + u) * kColumns + chunk * kChunk;
          x[u] = load_chunk<T, kVector>(data[0], column, p.D, use[0]);
          y[u] = load_chunk<T, kVector>(data[1], column, p.D, use[1]);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          multiply<T>(x[u], y[u], panel + (b + u) * kGroups * kParts * kWarp, product, squares);
        }
      }
    }
    RowFactors factors[2] = {{NAN, 0}, {NAN, 0}};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (Element<T>::kFactors) {
        if (use[half]) factors[half] = row_factors(p, topk::sampled(rows[half], p.step));
      } else {  // the four lanes of a row share its squares
        squares[half] += __shfl_xor_sync(kFullMask, squares[half], 1);
        squares[half] += __shfl_xor_sync(kFullMask, squares[half], 2);
        if (use[half]) factors[half].scale = inverse_norm(squares[half]);
      }
    }
    keep_scores<T>(p, product, factors, rows, cuts, first_query);
  }
}

template <typename T, int kGroups, bool kVector>
void launch(const Pass& p, int device, cudaStream_t stream) {
  constexpr int kColumns = kBlockBytes / sizeof(T);
  // Panel bytes of a block of columns.
  constexpr int kBlock = kGroups * Element<T>::kMostParts * kWarp * mma::kChunkBytes;
  const int needed = (p.D + kColumns - 1) / kColumns;
  const int padded = (needed + kUnroll - 1) / kUnroll * kUnroll;
  const int panel_blocks = padded < kPanelBytes / kBlock ? padded : kPanelBytes / kBlock;
  const int shared = panel_blocks * kBlock;
  allow_shared(stream_kernel<T, kGroups, kVector>, shared);
  const int64_t work = (p.rows + kRows * kWarps - 1) / (kRows * kWarps);
  const unsigned blocks =
      grid_for(work, int64_t(multiprocessors(device)) * kBlocksPerMultiprocessor);
  const int groups = (p.Q + kGroups * kGroupQueries - 1) / (kGroups * kGroupQueries);
  stream_kernel<T, kGroups, kVector>
      <<<dim3(blocks, groups), kWarp * kWarps, shared, stream>>>(p, panel_blocks);
  SPLIP_CUDA_CHECK(cudaGetLastError());
}

template <typename T>
void launch_any(const Pass& p, int device, cudaStream_t stream) {
  const bool vector = p.D % (mma::kChunkBytes / sizeof(T)) == 0 &&
                      aligned(p.gallery, mma::kChunkBytes) && aligned(p.queries, mma::kChunkBytes);
  if constexpr (!Element<T>::kFactors) {  // rows in 8 bits are padded
    if (!vector) return launch<T, 4, false>(p, device, stream);
  }
  if (p.Q <= kGroupQueries) return launch<T, 1, true>(p, device, stream);
  launch<T, 4, true>(p, device, stream);
}

}  // namespace

void scan_stream(const Pass& pass, DType dtype, int device, cudaStream_t stream) {
  switch (dtype) {
    case DType::f32:
      return launch_any<float>(pass, device, stream);
    case DType::f16:
      return launch_any<__half>(pass, device, stream);
    case DType::i8:
      return launch_any<int8_t>(pass, device, stream);
    default:
      return launch_any<__nv_bfloat16>(pass, device, stream);
  }
}

}  // namespace splip::cuda
