// Sums of products that lie in several lanes of several registers, added up and put in order. Part
// of tt_bf16_rows_impl.h and tt_prefix_avx512_impl.h.

// a's halves added up, and b's: below and above.
TT_INLINE __m512 fold_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
}

// A 4 x 4 tile, row by row. Sum d of four has, in lane 4 s + j for four s, products of row
// j + d % 2 and column j + d / 2 * 2, modulo 4.
TT_INLINE __m512 fold_four_by_four(const __m512 (&sum)[4]) {
  const __m512 low = fold_halves(sum[0], sum[1]), high = fold_halves(sum[2], sum[3]);
  const __m512i order = _mm512_set_epi32(3, 6, 11, 14, 13, 2, 5, 10, 9, 12, 1, 4, 7, 8, 15, 0);
  return _mm512_permutexvar_ps(order, _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                                                    _mm512_shuffle_f32x4(low, high, 0xdd)));
}
