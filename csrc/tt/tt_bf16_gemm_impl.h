// bf16 operands and the products of the tensor train's chain with them. Included by
// tt_kernels_avx512bf16_cpu.cpp alone, after tt_kernels_impl.h.

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

// to[n / 2] lanes: n numbers, a multiple of 16, in their order.
template <typename Number>
TT_INLINE void round_row(const float* from, int64_t n, Number* to) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32)
    _mm512_storeu_si512(to + i / 2,
                        rounded(_mm512_loadu_ps(from + i), _mm512_loadu_ps(from + i + 16)));
  if (i < n)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i))));
}
void round_products(const float* slice, int64_t n, float* packed) {
  round_row(slice, n, packed);
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

// What becomes of a product's sums.
enum class To { kSet, kAdd, kRound };  // kRound: set to bf16 numbers, two in a lane

// A block of MR rows by NV vectors of c (+)= a . b over `pairs` steps of two. b: [pairs][columns],
// from the block's first column on. Asks for two lines of `next` with each vector of b; nullptr:
// for nothing.
template <To TO, int MR, int NV>
TT_INLINE void bf16_block(const Lane (*a)[kPairs], const float* b, int64_t pairs, int64_t columns,
                          float* const* c, const float* next) {
  __m512 sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j)
      sum[i][j] = TO == To::kAdd ? _mm512_loadu_ps(c[i] + 16 * j) : _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p, b += columns) {
    __m512i x[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) x[j] = _mm512_loadu_si512(b + 16 * j);
    if (next) {
#pragma GCC unroll 16
      for (int j = 0; j < 2 * NV; ++j) __builtin_prefetch(next + 16 * j, 0, 2);
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
  for (int i = 0; i < MR; ++i) {
    if constexpr (TO == To::kRound) {
#pragma GCC unroll 16
      for (int j = 0; j + 2 <= NV; j += 2)
        _mm512_storeu_si512(c[i] + 8 * j, rounded(sum[i][j], sum[i][j + 1]));
      if constexpr (NV % 2)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(c[i] + 8 * (NV - 1)),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum[i][NV - 1])));
    } else {
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) _mm512_storeu_ps(c[i] + 16 * j, sum[i][j]);
    }
  }
}

template <To TO, int MR>
TT_INLINE void bf16_columns(const Lane (*a)[kPairs], const float* b, int64_t pairs, int64_t columns,
                            float* const* c, const float* next) {
  constexpr int kShare = TO == To::kRound ? 2 : 1;
  float* to[MR];
  int64_t v = 0;
  for (; v + 64 <= columns; v += 64) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) to[i] = c[i] + v / kShare;
    bf16_block<TO, MR, 4>(a, b + v, pairs, columns, to, next);
    if (next) next += 128 * pairs;
  }
  for (; v + 32 <= columns; v += 32) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) to[i] = c[i] + v / kShare;
    bf16_block<TO, MR, 2>(a, b + v, pairs, columns, to, next);
    if (next) next += 64 * pairs;
  }
  if (v < columns) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) to[i] = c[i] + v / kShare;
    bf16_block<TO, MR, 1>(a, b + v, pairs, columns, to, next);
  }
}

template <To TO, int MR>
TT_INLINE void bf16_rows(int64_t rows, const Lane (*a)[kPairs], const float* b, int64_t pairs,
                         int64_t columns, float* const* c, const float* next) {
  if constexpr (MR >= 1) {
    if (rows == MR)
      bf16_columns<TO, MR>(a, b, pairs, columns, c, next);
    else
      bf16_rows<TO, MR - 1>(rows, a, b, pairs, columns, c, next);
  }
}

// k above 2 kPairs is done in parts, which add up: not where sums are rounded.
template <To TO>
TT_INLINE void bf16_product_to(const float* const* a, int64_t rows, const float* packed, int64_t q,
                               int64_t k, int64_t n, float* const* c, const float* next) {
  const int64_t columns = q * n;
  Lane left[kRows][kPairs];
  for (int64_t blocks = (rows + kRows - 1) / kRows; blocks > 0; --blocks) {
    const int64_t count = (rows + blocks - 1) / blocks;
    for (int64_t p = 0; p < k; p += 2 * kPairs) {
      const int64_t steps = k - p < 2 * kPairs ? k - p : 2 * kPairs;
      for (int64_t i = 0; i < count; ++i) round_row(a[i] + p, steps, left[i]);
      const float* right = packed + p / 2 * columns;
      if (p == 0)
        bf16_rows<TO, kRows>(count, left, right, steps / 2, columns, c, next);
      else
        bf16_rows<To::kAdd, kRows>(count, left, right, steps / 2, columns, c, nullptr);
    }
    a += count;
    c += count;
    rows -= count;
    next = nullptr;
  }
}

void bf16_product(const float* const* a, int64_t rows, const float* packed, int64_t q, int64_t k,
                  int64_t n, float* const* c, bool accumulate, const float* next) {
  if (accumulate) return bf16_product_to<To::kAdd>(a, rows, packed, q, k, n, c, next);
  bf16_product_to<To::kSet>(a, rows, packed, q, k, n, c, next);
}

template <To TO>
void bf16_top_product(const float* const* a, int64_t rows, const float* packed, int64_t q,
                      int64_t k, int64_t n, float* const* c, const float* next) {
  bf16_product_to<TO>(a, rows, packed, q, k, n, c, next);
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
