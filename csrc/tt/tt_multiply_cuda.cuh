#pragma once
// Small matrix products by one block, from and to shared memory (or any memory): on the tensor
// cores in tf32 with fp32 sums, or by fused multiply-adds in the matrices' own precision.
//
// Half-precision cores are widened to fp32 when they are staged. Their tf32 products are exact:
// tf32 has fp16's mantissa and bf16's range, so m16n8k8 in tf32 does what m16n8k16 would, at half
// the rate of a unit that is not the bottleneck here.
#include "cuda_intrinsics.cuh"

namespace recsys_opt::tt {

// c_b[m, n] (+)= sum over s of a_{b, s}[m, k] . b_{b, s}[k, n], for b in [0, batches), s in
// [0, parts). *_row: elements between rows; *_batch and *_part: between matrices.
struct Multiply {
  int m, n, k;
  int a_row, b_row, c_row;
  int batches, a_batch, b_batch, c_batch;
  int parts, a_part, b_part;
  bool add;
};

// kTransposed: memory holds the matrix's columns.
template <bool kTransposed, typename A>
inline __device__ A element(const A* matrix, int row, int i, int j) {
  return kTransposed ? matrix[j * row + i] : matrix[i * row + j];
}

// A warp takes 16 rows and this many tiles of 8 columns at a time.
constexpr int kColumnTiles = 2;

template <bool kTransposedA, bool kTransposedB>
inline __device__ void multiply_tensor(float* c, const float* a, const float* b,
                                       const Multiply& s) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, l = lane % 4;
  const int row_tiles = (s.m + 15) / 16;
  const int column_groups = (s.n + 8 * kColumnTiles - 1) / (8 * kColumnTiles);
  const int items = s.batches * row_tiles * column_groups;
  for (int item = threadIdx.x / kWarp; item < items; item += blockDim.x / kWarp) {
    const int batch = item / (row_tiles * column_groups);
    const int row = item / column_groups % row_tiles * 16;
    const int column = item % column_groups * 8 * kColumnTiles;
    float sum[kColumnTiles][4] = {};
    for (int part = 0; part < s.parts; ++part) {
      const float* left = a + batch * s.a_batch + part * s.a_part;
      const float* right = b + batch * s.b_batch + part * s.b_part;
      for (int p = 0; p < s.k; p += 8) {
        uint32_t x[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = row + g + e % 2 * 8, j = p + l + e / 2 * 4;
          const bool in = i < s.m && j < s.k;
          x[e] = to_tf32(in ? element<kTransposedA>(left, s.a_row, i, j) : 0.0f);
        }
#pragma unroll
        for (int t = 0; t < kColumnTiles; ++t) {
          uint32_t y[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int i = p + l + e * 4, j = column + t * 8 + g;
            const bool in = i < s.k && j < s.n;
            y[e] = to_tf32(in ? element<kTransposedB>(right, s.b_row, i, j) : 0.0f);
          }
          mma_tf32(sum[t], x, y);
        }
      }
    }
    float* result = c + batch * s.c_batch;
#pragma unroll
    for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = row + g + e / 2 * 8, j = column + t * 8 + 2 * l + e % 2;
        if (i >= s.m || j >= s.n) continue;
        float* place = result + i * s.c_row + j;
        *place = s.add ? *place + sum[t][e] : sum[t][e];
      }
    }
  }
}

// A thread takes this many rows and columns at a time.
constexpr int kThreadTile = 4;

template <bool kTransposedA, bool kTransposedB, typename A>
inline __device__ void multiply_exact(A* c, const A* a, const A* b, const Multiply& s) {
  const int row_tiles = (s.m + kThreadTile - 1) / kThreadTile;
  const int column_tiles = (s.n + kThreadTile - 1) / kThreadTile;
  const int items = s.batches * row_tiles * column_tiles;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    const int batch = item / (row_tiles * column_tiles);
    const int row = item / column_tiles % row_tiles * kThreadTile;
    const int column = item % column_tiles * kThreadTile;
    A sum[kThreadTile][kThreadTile] = {};
    for (int part = 0; part < s.parts; ++part) {
      const A* left = a + batch * s.a_batch + part * s.a_part;
      const A* right = b + batch * s.b_batch + part * s.b_part;
      for (int p = 0; p < s.k; ++p) {
        A x[kThreadTile], y[kThreadTile];
#pragma unroll
        for (int e = 0; e < kThreadTile; ++e) {
          x[e] = row + e < s.m ? element<kTransposedA>(left, s.a_row, row + e, p) : A(0);
          y[e] = column + e < s.n ? element<kTransposedB>(right, s.b_row, p, column + e) : A(0);
        }
#pragma unroll
        for (int i = 0; i < kThreadTile; ++i) {
#pragma unroll
          for (int j = 0; j < kThreadTile; ++j) sum[i][j] += x[i] * y[j];
        }
      }
    }
    A* result = c + batch * s.c_batch;
#pragma unroll
    for (int i = 0; i < kThreadTile; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadTile; ++j) {
        if (row + i >= s.m || column + j >= s.n) continue;
        A* place = result + (row + i) * s.c_row + column + j;
        *place = s.add ? *place + sum[i][j] : sum[i][j];
      }
    }
  }
}

// All threads of the block call this; memory is theirs to synchronise before and after.
template <bool kTensor, bool kTransposedA, bool kTransposedB, typename A>
inline __device__ void multiply(A* c, const A* a, const A* b, const Multiply& shape) {
  if constexpr (kTensor) {
    multiply_tensor<kTransposedA, kTransposedB>(c, a, b, shape);
  } else {
    multiply_exact<kTransposedA, kTransposedB>(c, a, b, shape);
  }
}

}  // namespace recsys_opt::tt
