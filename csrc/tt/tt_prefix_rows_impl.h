// Rows of frozen tables as templates over the tile, in GCC's vector extension. Included once by
// tt_prefix_{portable,avx2}_cpu.cpp, inside its own namespace and after its target pragma; nothing
// here comes from the standard library, so that no shared inline function is compiled for an
// instruction set that the machine may lack.
//
// kBytes: of a vector.

#define TT_INLINE inline __attribute__((always_inline))

template <typename T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <typename T>
struct VectorOf<T, 1> {
  typedef T type;
};
template <typename T, int W>
using Vector = typename VectorOf<T, W>::type;

// How numbers lie in memory: a lane holds kTerms of them, which follow each other in the sum.
template <typename T>
struct Plain {
  using Lane = T;
  using Sum = T;
  static constexpr int kTerms = 1;
  template <int W, int K>
  static TT_INLINE Vector<T, W> term(const T* lanes) {
    return *reinterpret_cast<const Vector<T, W>*>(lanes);
  }
};

struct Pairs {  // of bf16: the upper halves of floats
  using Lane = uint32_t;
  using Sum = float;
  static constexpr int kTerms = 2;
  template <int W, int K>
  static TT_INLINE Vector<float, W> term(const uint32_t* lanes) {
    const auto bits = *reinterpret_cast<const Vector<uint32_t, W>*>(lanes);
    const Vector<uint32_t, W> wide = K == 0 ? bits << 16 : bits & 0xffff0000u;
    Vector<float, W> result;
    __builtin_memcpy(&result, &wide, sizeof(result));
    return result;
  }
};

// out[j0 * stride + j1] = the sum over p and k of x[p][j0][k] y[p][j1][k], for a tile of T0 x T1.
template <typename S, int T0, int T1, typename Sum = typename S::Sum>
TT_INLINE void make_tile(const typename S::Lane* x, const typename S::Lane* y, int64_t steps,
                         Sum* out, int64_t stride) {
  constexpr int kWidest = kBytes / static_cast<int>(sizeof(Sum));
  constexpr int W = T1 < kWidest ? T1 : kWidest, NV = T1 / W;
  using V = Vector<Sum, W>;
  V sum[T0][NV] = {};
  for (int64_t p = 0; p < steps; ++p, x += T0, y += T1) {
    const auto add = [&]<int K>() __attribute__((always_inline)) {
      V right[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) right[v] = S::template term<W, K>(y + v * W);
#pragma GCC unroll 16
      for (int i = 0; i < T0; ++i) {
        const Sum left = S::template term<1, K>(x + i);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) sum[i][v] += left * right[v];
      }
    };
    add.template operator()<0>();
    if constexpr (S::kTerms > 1) add.template operator()<1>();
  }
#pragma GCC unroll 16
  for (int i = 0; i < T0; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) *reinterpret_cast<V*>(out + i * stride + v * W) = sum[i][v];
}

// The same for tiles of any size.
template <typename S, typename Sum = typename S::Sum>
TT_INLINE void make_tile_any(const typename S::Lane* x, const typename S::Lane* y, int64_t t0,
                             int64_t t1, int64_t steps, Sum* out, int64_t stride) {
  for (int64_t i = 0; i < t0; ++i)
    for (int64_t j = 0; j < t1; ++j) out[i * stride + j] = 0;
  for (int64_t p = 0; p < steps; ++p, x += t0, y += t1)
    for (int64_t i = 0; i < t0; ++i)
      for (int64_t j = 0; j < t1; ++j) {
        Sum sum = S::template term<1, 0>(x + i) * S::template term<1, 0>(y + j);
        if constexpr (S::kTerms > 1)
          sum += S::template term<1, 1>(x + i) * S::template term<1, 1>(y + j);
        out[i * stride + j] += sum;
      }
}

// T0, T1: the tile where known at compile time, else 0.
template <typename S, int T0, int T1, typename Sum = typename S::Sum>
TT_INLINE void make_row(const PrefixTable& table, const typename S::Lane* x,
                        const typename S::Lane* y, Sum* out) {
  const int64_t t0 = T0 ? T0 : table.tile[0], t1 = T1 ? T1 : table.tile[1];
  const int64_t columns = table.tiles[1] * t1, steps = table.steps;
  for (int64_t a = 0; a < table.tiles[0]; ++a)
    for (int64_t b = 0; b < table.tiles[1]; ++b) {
      const typename S::Lane* left = x + a * steps * t0;
      const typename S::Lane* right = y + b * steps * t1;
      Sum* to = out + a * t0 * columns + b * t1;
      if constexpr (T0 != 0) {
        make_tile<S, T0, T1>(left, right, steps, to, columns);
      } else {
        make_tile_any<S>(left, right, t0, t1, steps, to, columns);
      }
    }
}

template <typename S, int T0, int T1, typename Sum = typename S::Sum>
void make_rows(const PrefixTable& table, const PrefixRows& rows, int64_t begin, int64_t end,
               Sum* out, int64_t stride, Sum*) {
  using Lane = typename S::Lane;
  const auto* prefix = static_cast<const Lane*>(table.prefix);
  const auto* last = static_cast<const Lane*>(table.last);
  const int64_t bytes = table.width[0] * static_cast<int64_t>(sizeof(Lane));
  const int64_t ahead = rows_ahead(bytes);
  for (int64_t i = begin; i < end; ++i) {
    if (i + ahead < rows.known) {
      const char* next = static_cast<const char*>(table.prefix) + rows.node[i + ahead] * bytes;
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(next + b);
    }
    make_row<S, T0, T1>(table, prefix + rows.node[i] * table.width[0],
                        last + rows.digit[i] * table.width[1], out + (i - begin) * stride);
  }
}

// fp16: both cores' rows are widened first.
template <int T0, int T1>
void make_rows_of_half(const PrefixTable& table, const PrefixRows& rows, int64_t begin, int64_t end,
                       float* out, int64_t stride, float* scratch) {
  const char* cores[] = {static_cast<const char*>(table.prefix),
                         static_cast<const char*>(table.last)};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at[] = {rows.node[i], rows.digit[i]};
    float* wide[] = {scratch, scratch + table.width[0]};
    for (int k = 0; k < 2; ++k) {
      widen(cores[k] + 2 * at[k] * table.width[k], ScalarType::Half, table.width[k], wide[k]);
    }
    make_row<Plain<float>, T0, T1>(table, wide[0], wide[1], out + (i - begin) * stride);
  }
}

template <typename Sum, int T0, int T1>
MakeRows<Sum> make_rows_of_type(ScalarType type) {
  if constexpr (sizeof(Sum) == sizeof(float)) {
    if (type == ScalarType::BFloat16) return make_rows<Pairs, T0, T1>;
    if (type == ScalarType::Half) return make_rows_of_half<T0, T1>;
  }
  return make_rows<Plain<Sum>, T0, T1>;
}

template <typename Sum>
MakeRows<Sum> choose_rows(const PrefixTable& table, ScalarType type) {
  const int64_t t0 = table.tile[0], t1 = table.tile[1];
  if (t0 == 1 && t1 == 16) return make_rows_of_type<Sum, 1, 16>(type);
  if (t0 == 2 && t1 == 8) return make_rows_of_type<Sum, 2, 8>(type);
  if (t0 == 4 && t1 == 4) return make_rows_of_type<Sum, 4, 4>(type);
  return make_rows_of_type<Sum, 0, 0>(type);
}

#undef TT_INLINE
