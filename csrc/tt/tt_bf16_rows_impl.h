// Rows of the table, and their gradients, by products of bf16 operands, x and y, which are stored
// as such. Included by tt_kernels_avx512bf16_cpu.cpp alone, after tt_bf16_gemm_impl.h.
//
// The last product, of rows of 16 G numbers from last cores of Q = 4, 8 or 16 columns: 16 / Q rows
// of x by Q columns are one vector of sums. y is packed as [n][r / 32][16][Q] lanes.

#include "tt_fold_avx512_impl.h"

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
  if constexpr (Q == 8)
    return _mm512_broadcast_i32x8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(y)));
  else
    return _mm512_loadu_si512(y);
}

// Four rows of x, r / 2 lanes apart, by four columns. A vector is four steps of either.
TT_INLINE __m512 four_by_four(const float* x, const Lane* y, int64_t r) {
  __m512 sum[4] = {};
  for (int64_t p = 0; p < r / 2; p += 16) {
    __m512i row[4], steps[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) row[i] = _mm512_loadu_si512(x + i * r / 2 + p);
    transpose_four(row, steps);
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      const __m512i columns = _mm512_loadu_si512(y + 4 * p + 16 * t);
      const __m512i turned = _mm512_shuffle_epi32(steps[t], static_cast<_MM_PERM_ENUM>(0x39));
      const __m512i turned_columns =
          _mm512_shuffle_epi32(columns, static_cast<_MM_PERM_ENUM>(0x4e));
      sum[0] = add_products(sum[0], steps[t], columns);
      sum[1] = add_products(sum[1], turned, columns);
      sum[2] = add_products(sum[2], steps[t], turned_columns);
      sum[3] = add_products(sum[3], turned, turned_columns);
    }
  }
  return fold_four_by_four(sum);
}

// 16 steps of 16 / Q rows of x, from numbers [0, 32) of each, r / 2 lanes apart: vector s has one
// of row l / Q in lane l.
template <int Q>
TT_INLINE void spread(const float* x, int64_t r, __m512i* to) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i row[16 / Q];
#pragma GCC unroll 4
  for (int i = 0; i < 16 / Q; ++i) row[i] = _mm512_loadu_si512(x + i * r / 2);
  if constexpr (Q == 8) {
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

// Rows whose q is 4.
void bf16_rows_forward_by_four(const TableRows& rows, int64_t begin, int64_t end,
                               const float* products, const Lane* core, float* out) {
  const int64_t m = rows.m, r = rows.r;
  for (int64_t i = begin; i < end; ++i) {
    const float* x = products + (rows.node[i] - rows.first_node) * (m * r / 2);
    for (int64_t g = 0; g < m; g += 4, x += 2 * r, out += 16)
      _mm512_storeu_ps(out, four_by_four(x, core + rows.last[i] * 2 * r, r));
  }
}

// Rows whose q is 8, or a multiple of 16: then Q is 16, and y has as many tiles [16, r] below each
// other.
template <int Q>
void bf16_rows_forward_as(const TableRows& rows, int64_t begin, int64_t end, const float* products,
                          const Lane* core, float* out) {
  constexpr int kSums = 4;  // one would wait for itself
  const int64_t m = rows.m, r = rows.r, tiles = Q < 16 ? 1 : rows.q / 16;
  for (int64_t i = begin; i < end; ++i) {
    const float* x = products + (rows.node[i] - rows.first_node) * (m * r / 2);
    const Lane* y = core + rows.last[i] * (tiles * Q * r / 2);
    for (int64_t g = 0; g < m; g += 16 / Q, x += 16 / Q * r / 2, out += 16 * tiles) {
      for (int64_t p = 0; p < r; p += 32) {
        __m512i spread_x[16];
        spread<Q>(x + p / 2, r, spread_x);
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
  if (rows.q == 4) return bf16_rows_forward_by_four(rows, begin, end, products, y, out);
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

// 16 bf16 numbers, each the lower half of a lane.
TT_INLINE __m512i widened(const float* x) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
// Numbers [v, v + 16) of rows x and x + r / 2, as pairs.
TT_INLINE __m512i paired(const float* x, int64_t r, int64_t v) {
  return _mm512_or_si512(widened(x + v / 2), _mm512_slli_epi32(widened(x + (r + v) / 2), 16));
}

// Rows [0, M) of x, M even, and Q of a row's q columns: their part of grad_y, and their gradients.
// by_columns: g in pairs of columns, q / 2 from row to row; by_rows: in pairs of rows, q from pair
// to pair. adds: to grad_x; else that is set.
template <int Q, int M>
TT_INLINE void bf16_row_backward(const float* x, const Lane* y, const Lane* by_columns,
                                 const Lane* by_rows, int64_t q, int64_t r, bool adds,
                                 float* grad_x, float* grad_y) {
  const __mmask16 old = adds ? 0xFFFF : 0;
  for (int64_t v = 0; v < r; v += 16) {
    __m512 sum[M];
#pragma GCC unroll 8
    for (int l = 0; l < M; ++l) sum[l] = _mm512_maskz_loadu_ps(old, grad_x + l * r + v);
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
    for (int l = 0; l < M / 2; ++l) pairs[l] = paired(x + l * r, r, v);
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
    const bool node_adds = adds_to_node(rows, i);
    round_row(grad_rows, m * q, by_columns);
    pair_rows<Q>(grad_rows, m, q, by_rows);
    for (int64_t j = 0; j < q; j += Q) {
      const bool adds = node_adds || j > 0;
      const Lane* y = core + (last * q + j) * r / 2;
      float* grad_y = grad_core + (last * q + j) * r;
      int64_t l = 0;
      for (; l + 4 <= m; l += 4)
        bf16_row_backward<Q, 4>(products + (node + l * r) / 2, y, by_columns + (l * q + j) / 2,
                                by_rows + l / 2 * q + j, q, r, adds, grad_products + node + l * r,
                                grad_y);
      if (l < m)
        bf16_row_backward<Q, 2>(products + (node + l * r) / 2, y, by_columns + (l * q + j) / 2,
                                by_rows + l / 2 * q + j, q, r, adds, grad_products + node + l * r,
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
