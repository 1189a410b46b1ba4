// Products of bf16 operands with fp32 sums: two steps of a sum at once (VDPBF16PS). Operands are
// rounded on the way into a product, to the nearest; everything between products is fp32.
#include "tt_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
// GCC 12 warns of its own _mm512_undefined_* (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")

namespace recsys_opt::tt {
namespace avx512bf16 {
namespace {
// Of a block of a product: 6 x 4 sums, 4 + 1 operands in 32 registers.
constexpr int kRows = 6, kVectors = 4;
#include "tt_kernels_impl.h"

#define TT_INLINE inline __attribute__((always_inline))

constexpr int64_t kPairs = 128;  // steps of two that a block's left operand is rounded for at once
constexpr int64_t kOuterPairs = 20;  // pairs of rows of an outer product that are rounded at once

using Lane = uint32_t;  // two bf16 numbers: the earlier one below

TT_INLINE __m512i rounded(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}
// Lane l: (first[l], second[l]).
TT_INLINE __m512i interleaved(const float* first, const float* second) {
  constexpr auto at = [](int l) { return static_cast<short>(l / 2 + (l % 2) * 16); };
  const __m512i order = _mm512_set_epi16(
      at(31), at(30), at(29), at(28), at(27), at(26), at(25), at(24), at(23), at(22), at(21),
      at(20), at(19), at(18), at(17), at(16), at(15), at(14), at(13), at(12), at(11), at(10), at(9),
      at(8), at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0));
  return _mm512_permutexvar_epi16(order, rounded(_mm512_loadu_ps(first), _mm512_loadu_ps(second)));
}
TT_INLINE __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// to[n / 2]: n numbers, a multiple of 16, in their order.
TT_INLINE void round_row(const float* from, int64_t n, Lane* to) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    _mm512_storeu_si512(to + i / 2,
                        rounded(_mm512_loadu_ps(from + i), _mm512_loadu_ps(from + i + 16)));
  if (i < n)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i))));
}

// packed[k / 2][q n] = the rows 2 p and 2 p + 1 of q matrices [k, n], the matrices side by side.
void pack(const float* slice, int64_t q, int64_t k, int64_t n, float* packed) {
  for (int64_t p = 0; p < k; p += 2)
    for (int64_t j = 0; j < q; ++j) {
      const float* row = slice + (j * k + p) * n;
      for (int64_t i = 0; i < n; i += 16, packed += 16)
        _mm512_storeu_si512(packed, interleaved(row + i, row + n + i));
    }
}

// packed[q n / 2][k] = the transposes of q matrices [k, n] below each other, packed.
template <int W>
TT_INLINE void pack_transposed_by(const float* slice, int64_t q, int64_t k, int64_t n,
                                  float* packed) {
  using V = Vector<float, W>;
  for (int64_t j = 0; j < q; ++j, slice += k * n)
    for (int64_t c = 0; c < n; c += 2 * W, packed += W * k)
      for (int64_t i = 0; i < k; i += W) {
        V x[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) {
          const float* row = slice + (i + l) * n + c;
          if constexpr (W == 16) {
            x[l] = reinterpret_cast<V>(rounded(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16)));
          } else {
            x[l] = reinterpret_cast<V>(_mm512_cvtneps_pbh(_mm512_loadu_ps(row)));
          }
        }
        transpose_blocks<W, W / 2>(x);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) at<V>(packed + l * k + i) = x[l];
      }
}
void pack_transposed(const float* slice, int64_t q, int64_t k, int64_t n, float* packed) {
  if (n % 32 == 0) return pack_transposed_by<16>(slice, q, k, n, packed);
  pack_transposed_by<8>(slice, q, k, n, packed);
}

// A block of MR rows by NV vectors of c (+)= a . b over `pairs` steps of two. b: [pairs][columns],
// from the block's first column on. Asks for two lines of `next` with each vector of b; nullptr:
// for nothing.
template <int MR, int NV>
TT_INLINE void bf16_block(const Lane (*a)[kPairs], const float* b, int64_t pairs, int64_t columns,
                          float* const* c, bool accumulate, const float* next) {
  __m512 sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j)
      sum[i][j] = accumulate ? _mm512_loadu_ps(c[i] + 16 * j) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p, b += columns) {
    __m512i x[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) x[j] = _mm512_loadu_si512(b + 16 * j);
    if (next) {
#pragma GCC unroll 16
      for (int j = 0; j < 2 * NV; ++j) __builtin_prefetch(next + 16 * j);
      next += 32 * NV;
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const __m512i y = _mm512_set1_epi32(static_cast<int>(a[i][p]));
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) sum[i][j] = add_products(sum[i][j], y, x[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) _mm512_storeu_ps(c[i] + 16 * j, sum[i][j]);
}

template <int MR>
TT_INLINE void bf16_columns(const Lane (*a)[kPairs], const float* b, int64_t pairs, int64_t columns,
                            float* const* c, bool accumulate, const float* next) {
  float* to[MR];
  int64_t v = 0;
  for (; v + 64 <= columns; v += 64) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) to[i] = c[i] + v;
    bf16_block<MR, 4>(a, b + v, pairs, columns, to, accumulate, next);
    if (next) next += 128 * pairs;
  }
  for (; v + 32 <= columns; v += 32) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) to[i] = c[i] + v;
    bf16_block<MR, 2>(a, b + v, pairs, columns, to, accumulate, next);
    if (next) next += 64 * pairs;
  }
  if (v < columns) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) to[i] = c[i] + v;
    bf16_block<MR, 1>(a, b + v, pairs, columns, to, accumulate, next);
  }
}

template <int MR>
TT_INLINE void bf16_rows(int64_t rows, const Lane (*a)[kPairs], const float* b, int64_t pairs,
                         int64_t columns, float* const* c, bool accumulate, const float* next) {
  if constexpr (MR >= 1) {
    if (rows == MR)
      bf16_columns<MR>(a, b, pairs, columns, c, accumulate, next);
    else
      bf16_rows<MR - 1>(rows, a, b, pairs, columns, c, accumulate, next);
  }
}

void bf16_product(const float* const* a, int64_t rows, const float* packed, int64_t q, int64_t k,
                  int64_t n, float* const* c, bool accumulate, const float* next) {
  const int64_t columns = q * n;
  Lane left[kRows][kPairs];
  for (int64_t blocks = (rows + kRows - 1) / kRows; blocks > 0; --blocks) {
    const int64_t count = (rows + blocks - 1) / blocks;
    for (int64_t p = 0; p < k; p += 2 * kPairs) {
      const int64_t steps = k - p < 2 * kPairs ? k - p : 2 * kPairs;
      for (int64_t i = 0; i < count; ++i) round_row(a[i] + p, steps, left[i]);
      bf16_rows<kRows>(count, left, packed + p / 2 * columns, steps / 2, columns, c,
                       accumulate || p > 0, p == 0 ? next : nullptr);
    }
    a += count;
    c += count;
    rows -= count;
    next = nullptr;
  }
}

// A block of MR rows by NV vectors of a slice (+)= a^T . b over pairs of rows. a: [pairs][kPairs]
// from the block's first row on, b: [pairs][64].
template <int MR, int NV>
TT_INLINE void bf16_outer_block(const Lane* a, const Lane* b, int64_t pairs, float* const* c,
                                int64_t n, bool accumulate) {
  __m512 sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j)
      sum[i][j] = accumulate ? _mm512_loadu_ps(c[j] + i * n) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    __m512i x[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) x[j] = _mm512_loadu_si512(b + 64 * p + 16 * j);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const __m512i y = _mm512_set1_epi32(static_cast<int>(a[kPairs * p + i]));
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) sum[i][j] = add_products(sum[i][j], y, x[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) _mm512_storeu_ps(c[j] + i * n, sum[i][j]);
}

// Rows [0, count) of a and of b, interleaved in pairs; an odd last row is paired with zeros.
TT_INLINE void interleave_rows(const float* const* rows, int64_t count, int64_t from,
                               int64_t columns, int64_t stride, Lane* to) {
  alignas(64) static const float kZeros[16] = {};
  for (int64_t p = 0; p < count; p += 2, to += stride)
    for (int64_t i = 0; i < columns; i += 16)
      _mm512_storeu_si512(
          to + i, interleaved(rows[p] + from + i, p + 1 < count ? rows[p + 1] + from + i : kZeros));
}

template <int NV>
TT_INLINE void bf16_outer_columns(const Lane* a, int64_t rows_of_slice, const float* const* b,
                                  int64_t count, float* slice, int64_t k, int64_t n, int64_t v,
                                  int64_t first_row, bool accumulate) {
  Lane right[kOuterPairs * 64];
  interleave_rows(b, count, 16 * v, 16 * NV, 64, right);
  float* c[NV];
  const int64_t pairs = (count + 1) / 2;
  int64_t i = 0;
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j)
    c[j] = const_cast<float*>(slice_column<float, 16>(slice, k, n, v + j)) + first_row * n;
  for (; i + 4 <= rows_of_slice; i += 4) {
    bf16_outer_block<4, NV>(a + i, right, pairs, c, n, accumulate);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) c[j] += 4 * n;
  }
}

void bf16_outer_product(const float* const* a, const float* const* b, int64_t rows, float* slice,
                        int64_t q, int64_t k, int64_t n, bool accumulate) {
  const int64_t vectors = q * n / 16;
  Lane left[kOuterPairs * kPairs];
  for (int64_t r = 0; r < rows; r += 2 * kOuterPairs) {
    const int64_t count = rows - r < 2 * kOuterPairs ? rows - r : 2 * kOuterPairs;
    const bool adds = accumulate || r > 0;
    for (int64_t i = 0; i < k; i += kPairs) {
      const int64_t height = k - i < kPairs ? k - i : kPairs;
      interleave_rows(a + r, count, i, height, kPairs, left);
      int64_t v = 0;
      for (; v + 4 <= vectors; v += 4)
        bf16_outer_columns<4>(left, height, b + r, count, slice, k, n, v, i, adds);
      for (; v + 2 <= vectors; v += 2)
        bf16_outer_columns<2>(left, height, b + r, count, slice, k, n, v, i, adds);
      if (v < vectors) bf16_outer_columns<1>(left, height, b + r, count, slice, k, n, v, i, adds);
    }
  }
}
// The last product, of rows of 16 G numbers from last cores of Q = 4, 8 or 16 columns: 16 / Q rows
// of x by Q columns are one vector of sums. y is packed as [n][r / 32][16][Q] lanes.

// Four rows of 16 lanes as four vectors: lane 4 l + i of vector t has step 4 l + t of row i.
TT_INLINE void transpose_four(const __m512i* row, __m512i* steps) {
  const __m512i a = _mm512_unpacklo_epi32(row[0], row[1]),
                b = _mm512_unpackhi_epi32(row[0], row[1]);
  const __m512i c = _mm512_unpacklo_epi32(row[2], row[3]),
                d = _mm512_unpackhi_epi32(row[2], row[3]);
  steps[0] = _mm512_unpacklo_epi64(a, c);
  steps[1] = _mm512_unpackhi_epi64(a, c);
  steps[2] = _mm512_unpacklo_epi64(b, d);
  steps[3] = _mm512_unpackhi_epi64(b, d);
}

// 32 numbers as lanes: steps of two.
TT_INLINE __m512i rounded_row(const float* x) {
  return rounded(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16));
}

// The slices [Q, r] of the last core as [r / 32][16][Q] lanes, the steps of each 32 in the order of
// `spread`.
template <int Q>
void pack_last_as(const float* core, int64_t n, int64_t r, float* packed) {
  for (int64_t i = 0; i < n; ++i, core += Q * r)
    for (int64_t p = 0; p < r; p += 32, packed += 16 * Q) {
      if constexpr (Q == 4) {
        __m512i row[4], steps[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) row[j] = rounded_row(core + j * r + p);
        transpose_four(row, steps);
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) _mm512_storeu_si512(packed + 16 * t, steps[t]);
      } else {
        alignas(64) float lanes[16 * Q];
        for (int j = 0; j < Q; ++j)
          _mm512_store_si512(lanes + 16 * j, rounded_row(core + j * r + p));
        transpose<float, Q>(lanes, Q, 16, packed);
      }
    }
}

void pack_last(const float* core, int64_t n, int64_t q, int64_t r, float* packed) {
  if (q == 4) return pack_last_as<4>(core, n, r, packed);
  if (q == 8) return pack_last_as<8>(core, n, r, packed);
  pack_last_as<16>(core, n * (q / 16), r, packed);
}

template <int Q>
TT_INLINE __m512i repeated(const Lane* y) {
  if constexpr (Q == 4)
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(y)));
  else if constexpr (Q == 8)
    return _mm512_broadcast_i32x8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(y)));
  else
    return _mm512_loadu_si512(y);
}

// 16 steps of 16 / Q rows of x, from numbers [0, 32) of each, `r` apart: vector s has one of row
// l / Q in lane l.
template <int Q>
TT_INLINE void spread(const float* x, int64_t r, __m512i* to) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i row[16 / Q];
#pragma GCC unroll 4
  for (int i = 0; i < 16 / Q; ++i) row[i] = rounded_row(x + i * r);
  if constexpr (Q == 4) {
    __m512i steps[4];
    transpose_four(row, steps);
    const __m512i quarter = _mm512_srli_epi32(lane, 2);
#pragma GCC unroll 16
    for (int s = 0; s < 16; ++s)
      to[s] = _mm512_permutexvar_epi32(_mm512_add_epi32(quarter, _mm512_set1_epi32(s % 4 * 4)),
                                       steps[s / 4]);
  } else if constexpr (Q == 8) {
    const __m512i second = _mm512_slli_epi32(_mm512_srli_epi32(lane, 3), 4);  // 16: of the other
#pragma GCC unroll 16
    for (int s = 0; s < 16; ++s)
      to[s] =
          _mm512_permutex2var_epi32(row[0], _mm512_add_epi32(second, _mm512_set1_epi32(s)), row[1]);
  } else {
#pragma GCC unroll 16
    for (int s = 0; s < 16; ++s) to[s] = _mm512_permutexvar_epi32(_mm512_set1_epi32(s), row[0]);
  }
}

// Rows whose q is Q, or a multiple of 16: then Q is 16, and y has as many tiles [16, r] below each
// other.
template <int Q>
void bf16_rows_forward_as(const TableRows& rows, int64_t begin, int64_t end, const float* products,
                          const Lane* core, float* out) {
  constexpr int kSums = 4;  // one would wait for itself
  const int64_t m = rows.m, r = rows.r, tiles = Q < 16 ? 1 : rows.q / 16;
  for (int64_t i = begin; i < end; ++i) {
    const float* x = products + (rows.node[i] - rows.first_node) * (m * r);
    const Lane* y = core + rows.last[i] * (tiles * Q * r / 2);
    for (int64_t g = 0; g < m; g += 16 / Q, x += 16 / Q * r, out += 16 * tiles) {
      for (int64_t p = 0; p < r; p += 32) {
        __m512i spread_x[16];
        spread<Q>(x + p, r, spread_x);
        for (int64_t t = 0; t < tiles; ++t) {
          const Lane* steps = y + (t * r + p) / 2 * Q;
          __m512 sum[kSums];
#pragma GCC unroll 4
          for (int s = 0; s < kSums; ++s) sum[s] = _mm512_setzero_ps();
          if (p > 0) sum[0] = _mm512_loadu_ps(out + 16 * t);
#pragma GCC unroll 16
          for (int s = 0; s < 16; ++s)
            sum[s % kSums] = add_products(sum[s % kSums], spread_x[s], repeated<Q>(steps + s * Q));
          _mm512_storeu_ps(out + 16 * t, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        }
      }
    }
  }
}

void bf16_rows_forward(const TableRows& rows, int64_t begin, int64_t end, const float* products,
                       const float* core, float* out) {
  const auto* y = reinterpret_cast<const Lane*>(core);
  if (rows.q == 4) return bf16_rows_forward_as<4>(rows, begin, end, products, y, out);
  if (rows.q == 8) return bf16_rows_forward_as<8>(rows, begin, end, products, y, out);
  bf16_rows_forward_as<16>(rows, begin, end, products, y, out);
}

// The gradients of the same products. y is packed as [n][Q / 2][r] lanes, pairs of its columns.

constexpr int64_t kMostColumns = 256;  // of a row of the table

// to[n][q / 2][r] = pack of every slice.
void pack_last_backward(const float* core, int64_t n, int64_t q, int64_t r, float* packed) {
  for (int64_t i = 0; i < n; ++i) pack(core + i * q * r, 1, q, r, packed + i * q * r / 2);
}

// pairs[m / 2][q] lanes: rows 2 i and 2 i + 1 of g [m, q], interleaved; q is Q, or a multiple
// of 16.
template <int Q>
TT_INLINE void pair_rows(const float* g, int64_t m, int64_t q, Lane* pairs) {
  if constexpr (Q == 16) {
    for (int64_t i = 0; i < m; i += 2)
      for (int64_t j = 0; j < q; j += 16)
        _mm512_storeu_si512(pairs + i / 2 * q + j, interleaved(g + i * q + j, g + (i + 1) * q + j));
  } else {
    const __m256i order =
        Q == 4 ? _mm256_set_epi16(15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0)
               : _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
    for (int64_t i = 0; i < m * Q; i += 16) {
      const auto row = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(g + i)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + i / 2),
                          _mm256_permutexvar_epi16(order, row));
    }
  }
}

// Rows [0, M) of x, M even, and Q of a row's q columns: their part of grad_y, and their gradients.
// by_columns: g in pairs of columns, q / 2 from row to row; by_rows: in pairs of rows, q from pair
// to pair.
template <int Q, int M>
TT_INLINE void bf16_row_backward(const float* x, const Lane* y, const Lane* by_columns,
                                 const Lane* by_rows, int64_t q, int64_t r, float* grad_x,
                                 float* grad_y) {
  for (int64_t v = 0; v < r; v += 16) {
    __m512 sum[M];
#pragma GCC unroll 8
    for (int l = 0; l < M; ++l) sum[l] = _mm512_loadu_ps(grad_x + l * r + v);
#pragma GCC unroll 8
    for (int j = 0; j < Q / 2; ++j) {
      const __m512i pair = _mm512_loadu_si512(y + j * r + v);
#pragma GCC unroll 8
      for (int l = 0; l < M; ++l)
        sum[l] = add_products(
            sum[l], _mm512_set1_epi32(static_cast<int>(by_columns[l * (q / 2) + j])), pair);
    }
#pragma GCC unroll 8
    for (int l = 0; l < M; ++l) _mm512_storeu_ps(grad_x + l * r + v, sum[l]);
    __m512i pairs[M / 2];
#pragma GCC unroll 8
    for (int l = 0; l < M / 2; ++l)
      pairs[l] = interleaved(x + 2 * l * r + v, x + (2 * l + 1) * r + v);
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
      __m512 grad = _mm512_loadu_ps(grad_y + j * r + v);
#pragma GCC unroll 8
      for (int l = 0; l < M / 2; ++l)
        grad =
            add_products(grad, _mm512_set1_epi32(static_cast<int>(by_rows[l * q + j])), pairs[l]);
      _mm512_storeu_ps(grad_y + j * r + v, grad);
    }
  }
}

template <int Q>
void bf16_rows_backward_as(const TableRows& rows, int64_t begin, int64_t end, const float* products,
                           const Lane* core, const float* grad_rows, float* grad_products,
                           float* grad_core) {
  const int64_t m = rows.m, r = rows.r, q = Q < 16 ? Q : rows.q;
  Lane by_columns[kMostColumns / 2], by_rows[kMostColumns / 2];
  for (int64_t i = begin; i < end; ++i, grad_rows += m * q) {
    const int64_t node = (rows.node[i] - rows.first_node) * (m * r), last = rows.last[i];
    round_row(grad_rows, m * q, by_columns);
    pair_rows<Q>(grad_rows, m, q, by_rows);
    for (int64_t j = 0; j < q; j += Q) {
      const Lane* y = core + (last * q + j) * r / 2;
      float* grad_y = grad_core + (last * q + j) * r;
      int64_t l = 0;
      for (; l + 4 <= m; l += 4)
        bf16_row_backward<Q, 4>(products + node + l * r, y, by_columns + (l * q + j) / 2,
                                by_rows + l / 2 * q + j, q, r, grad_products + node + l * r,
                                grad_y);
      if (l < m)
        bf16_row_backward<Q, 2>(products + node + l * r, y, by_columns + (l * q + j) / 2,
                                by_rows + l / 2 * q + j, q, r, grad_products + node + l * r,
                                grad_y);
    }
  }
}

void bf16_rows_backward(const TableRows& rows, int64_t begin, int64_t end, const float* products,
                        const float* core, const float* grad_rows, float* grad_products,
                        float* grad_core) {
  const auto* y = reinterpret_cast<const Lane*>(core);
  if (rows.q == 4)
    return bf16_rows_backward_as<4>(rows, begin, end, products, y, grad_rows, grad_products,
                                    grad_core);
  if (rows.q == 8)
    return bf16_rows_backward_as<8>(rows, begin, end, products, y, grad_rows, grad_products,
                                    grad_core);
  bf16_rows_backward_as<16>(rows, begin, end, products, y, grad_rows, grad_products, grad_core);
}
#undef TT_INLINE

}  // namespace
}  // namespace avx512bf16

namespace avx512bf16 {
namespace {

Kernels<float> with_bf16_products(bool rows) {
  Kernels<float> result = *kernels_of_width<float, 16>();
  result.pack = pack;
  result.pack_transposed = pack_transposed;
  result.product = bf16_product;
  result.outer_product = bf16_outer_product;
  result.kept_product_bytes = int64_t{1} << 21;
  if (!rows) return result;
  result.pack_last = pack_last;
  result.pack_last_backward = pack_last_backward;
  result.rows_backward = bf16_rows_backward;
  result.rows_forward = bf16_rows_forward;
  return result;
}

}  // namespace
}  // namespace avx512bf16

const Kernels<float>* avx512bf16_kernels(int64_t ranks_divisor, int64_t m, int64_t q, int64_t r) {
  static const bool usable =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bf16");
  static const Kernels<float> all = avx512bf16::with_bf16_products(true);
  static const Kernels<float> but_rows = avx512bf16::with_bf16_products(false);
  if (!usable || ranks_divisor % 16 != 0) return nullptr;
  const bool rows = (q == 4 || q == 8 || q % 16 == 0) && m % 2 == 0 && m * q % 16 == 0 &&
                    m * q <= avx512bf16::kMostColumns && r % 32 == 0;
  return rows ? &all : &but_rows;
}

#else

namespace recsys_opt::tt {
const Kernels<float>* avx512bf16_kernels(int64_t, int64_t, int64_t, int64_t) {
  return nullptr;
}

#endif

}  // namespace recsys_opt::tt
