// Rows of frozen tables in AVX-512: tiles of 16 numbers, one register. Included by
// tt_prefix_{avx512,avx512bf16}_cpu.cpp inside their own namespaces and after their target pragmas.
//
// A policy P says how 16 lanes are loaded (of one number each, or of two of bf16) and multiplied. A
// vector of lanes spans several steps of the sum, so that the sums of a tile lie in several lanes
// of several registers; they are added up and put in order at the end. With few registers of sums,
// a multiplication would wait for the one before: there are always four.

#define TT_INLINE inline __attribute__((always_inline))

#include "tt_fold_avx512_impl.h"

TT_INLINE __m512i lanes_of(const int8_t (&numbers)[16]) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(numbers)));
}

// 4 x 4: a vector is four steps. Half of the operands need no shuffle.
template <typename P>
struct Tile44 {
  static constexpr int kLeft = 4, kRight = 4;
  static constexpr int kSteps = 4;  // come at once

  TT_INLINE __m512 make(const typename P::Lane* x, const typename P::Lane* y, int64_t steps) const {
    __m512 sum[4] = {};
#pragma GCC unroll 4
    for (int64_t p = 0; p < steps; p += kSteps, x += 16, y += 16) {
      const __m512 left = P::load(x), right = P::load(y);
      const __m512 left_turned = _mm512_permute_ps(left, 0x39);
      const __m512 right_turned = _mm512_permute_ps(right, 0x4e);
      sum[0] = P::add_products(sum[0], left, right);
      sum[1] = P::add_products(sum[1], left_turned, right);
      sum[2] = P::add_products(sum[2], left, right_turned);
      sum[3] = P::add_products(sum[3], left_turned, right_turned);
    }
    return fold_four_by_four(sum);
  }
};

// 2 x 8, and 8 x 2 with the operands' parts exchanged: a vector of the wide operand is two steps,
// one of the narrow operand eight.
template <typename P, bool SWAPPED>
struct Tile28 {
  static constexpr int kLeft = SWAPPED ? 8 : 2, kRight = SWAPPED ? 2 : 8;
  static constexpr int kSteps = 8;
  __m512i order, spread[4][2];

  Tile28() {
    order = lanes_of({0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15});
    for (int8_t k = 0; k < 4; ++k)
      for (int8_t j = 0; j < 2; ++j) {
        const int8_t first = static_cast<int8_t>(4 * k + j),
                     second = static_cast<int8_t>(first + 2);
        spread[k][j] =
            _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32(first), _mm512_set1_epi32(second));
      }
  }

  TT_INLINE __m512 make(const typename P::Lane* x, const typename P::Lane* y, int64_t steps) const {
    const typename P::Lane* narrow = SWAPPED ? y : x;
    const typename P::Lane* wide = SWAPPED ? x : y;
    __m512 sum[4] = {};
#pragma GCC unroll 2
    for (int64_t p = 0; p < steps; p += kSteps, narrow += 16, wide += 64) {
      const __m512 left = P::load(narrow);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const __m512 right = P::load(wide + 16 * k);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          __m512& to = sum[k % 2 * 2 + j];
          to = P::add_products(to, _mm512_permutexvar_ps(spread[k][j], left), right);
        }
      }
    }
    const __m512 all = fold_halves(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
    return SWAPPED ? _mm512_permutexvar_ps(order, all) : all;
  }
};

// 1 x 16, and 16 x 1: a vector of the wide operand is one step.
template <typename P, bool SWAPPED>
struct Tile116 {
  static constexpr int kLeft = SWAPPED ? 16 : 1, kRight = SWAPPED ? 1 : 16;
  static constexpr int kSteps = 4;

  TT_INLINE __m512 make(const typename P::Lane* x, const typename P::Lane* y, int64_t steps) const {
    const typename P::Lane* narrow = SWAPPED ? y : x;
    const typename P::Lane* wide = SWAPPED ? x : y;
    __m512 sum[4] = {};
#pragma GCC unroll 4
    for (int64_t p = 0; p < steps; p += kSteps, narrow += 4, wide += 64) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
        sum[k] = P::add_products(sum[k], P::broadcast(narrow + k), P::load(wide + 16 * k));
    }
    return _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
  }
};

// The tiles of a row, where there are several.
template <typename P, typename Tile>
TT_INLINE void make_tiles(const Tile& tile, const typename P::Lane* x, const typename P::Lane* y,
                          int64_t left, int64_t right, int64_t steps, float* out) {
  constexpr int kLeft = Tile::kLeft, kRight = Tile::kRight;
  const int64_t columns = right * kRight;
  for (int64_t a = 0; a < left; ++a, x += kLeft * steps)
    for (int64_t b = 0; b < right; ++b) {
      const __m512 made = tile.make(x, y + b * kRight * steps, steps);
      float* to = out + a * kLeft * columns + b * kRight;
      if (kRight == 16 || columns == kRight) {
        _mm512_storeu_ps(to, made);
        continue;
      }
      float numbers[16];
      _mm512_storeu_ps(numbers, made);
      for (int i = 0; i < kLeft; ++i)
        __builtin_memcpy(to + i * columns, numbers + i * kRight, kRight * sizeof(float));
    }
}

// STEPS: of a table of one tile where known at compile time, else 0. Out: float, or what P stores
// sums as, of tables of one tile.
template <typename P, typename Tile, int STEPS, typename Out>
TT_INLINE void make_rows_into(const PrefixTable& table, const PrefixRows& rows, int64_t begin,
                              int64_t end, Out* out, int64_t stride) {
  using Lane = typename P::Lane;
  const auto* prefix = static_cast<const Lane*>(table.prefix);
  const auto* last = static_cast<const Lane*>(table.last);
  const int64_t left = table.tiles[0], right = table.tiles[1];
  const int64_t steps = STEPS ? STEPS : table.steps;
  const int64_t prefix_width = STEPS ? STEPS * Tile::kLeft : table.width[0];
  const int64_t last_width = STEPS ? STEPS * Tile::kRight : table.width[1];
  const int64_t bytes = prefix_width * static_cast<int64_t>(sizeof(Lane)),
                ahead = rows_ahead(bytes);
  const int32_t *node = rows.node, *digit = rows.digit;
  const int64_t known = rows.known;
  const Tile tile;
  for (int64_t i = begin; i < end; ++i, out += stride) {
    if (i + ahead < known) {
      const char* next = reinterpret_cast<const char*>(prefix) + node[i + ahead] * bytes;
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b);
    }
    const Lane* x = prefix + node[i] * prefix_width;
    const Lane* y = last + digit[i] * last_width;
    if constexpr (STEPS != 0) {
      P::store(tile.make(x, y, steps), out);
    } else {
      make_tiles<P>(tile, x, y, left, right, steps, out);
    }
  }
}

template <typename P, typename Tile, int STEPS>
void make_rows(const PrefixTable& table, const PrefixRows& rows, int64_t begin, int64_t end,
               float* out, int64_t stride, float*) {
  make_rows_into<P, Tile, STEPS>(table, rows, begin, end, out, stride);
}

// Tables of one tile and a common rank are compiled on their own.
template <typename P, typename Tile>
MakeRows<float> make_rows_by_steps(const PrefixTable& table) {
  const bool one = table.dim == 16;
  if (one && table.steps == 16) return make_rows<P, Tile, 16>;
  if (one && table.steps == 32) return make_rows<P, Tile, 32>;
  return table.steps % Tile::kSteps == 0 ? make_rows<P, Tile, 0> : nullptr;
}

template <typename P>
MakeRows<float> choose_rows(const PrefixTable& table) {
  const auto is = [&](int64_t t0, int64_t t1) {
    return table.tile[0] == t0 && table.tile[1] == t1;
  };
  if (is(4, 4)) return make_rows_by_steps<P, Tile44<P>>(table);
  if (is(2, 8)) return make_rows_by_steps<P, Tile28<P, false>>(table);
  if (is(8, 2)) return make_rows_by_steps<P, Tile28<P, true>>(table);
  if (is(1, 16)) return make_rows_by_steps<P, Tile116<P, false>>(table);
  if (is(16, 1)) return make_rows_by_steps<P, Tile116<P, true>>(table);
  return nullptr;
}

#undef TT_INLINE
