// The inner loops as templates over the vector width, in GCC's vector extension. Included once by
// each tt_kernels_<isa>_cpu.cpp, inside its own namespace and after its target pragma; nothing here
// comes from the standard library, so that no shared inline function is compiled for an instruction
// set that the machine may lack.
//
// W: elements of a vector. Lengths named r and n are multiples of W, unless W is 1.

#define TT_INLINE inline __attribute__((always_inline))
#define TT_LAMBDA __attribute__((always_inline))

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

template <typename V, typename T>
TT_INLINE V& at(T* p) {
  return *reinterpret_cast<V*>(p);
}
template <typename V, typename T>
TT_INLINE V load(const T* p) {
  return *reinterpret_cast<const V*>(p);
}

template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesTo : LanesTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesTo<0, I...> {
  using type = Lanes<I...>;
};

// a and b as grids of H x H blocks of lanes: swaps a's upper blocks with b's lower ones.
template <int W, int H, typename V, int... I>
TT_INLINE V lower(V a, V b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, ((I & H) ? W + I - H : I)...);
}
template <int W, int H, typename V, int... I>
TT_INLINE V upper(V a, V b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, ((I & H) ? W + I : I + H)...);
}

template <int W, int H, typename V>
TT_INLINE void transpose_blocks(V* x) {
  if constexpr (H >= 1) {
    using L = typename LanesTo<W>::type;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if ((i & H) == 0) {
        const V a = x[i], b = x[i + H];
        x[i] = lower<W, H>(a, b, L{});
        x[i + H] = upper<W, H>(a, b, L{});
      }
    }
    transpose_blocks<W, H / 2>(x);
  }
}

template <typename V, typename Half, int... I>
TT_INLINE V join(Half a, Half b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, I...);
}

template <typename T, int W>
void transpose(const T* in, int64_t rows, int64_t columns, T* out) {
  if constexpr (W < 4) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) out[j * rows + i] = in[i * columns + j];
  } else {
    // Vector l starts as four quarters of rows, put together by loads: only blocks of a quarter's
    // width are left to swap by shuffles.
    constexpr int kQuarter = W / 4;
    using V = Vector<T, W>;
    using Half = Vector<T, W / 2>;
    using Quarter = Vector<T, kQuarter>;
    using L = typename LanesTo<W>::type;
    using HalfL = typename LanesTo<W / 2>::type;
    for (int64_t i = 0; i < rows; i += W)
      for (int64_t j = 0; j < columns; j += W) {
        V x[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) {
          const T* p = in + (i + l % kQuarter) * columns + j + l / kQuarter * kQuarter;
          const int64_t next = kQuarter * columns;
          if constexpr (kQuarter == 1) {
            x[l] = V{p[0], p[next], p[2 * next], p[3 * next]};
          } else {
            x[l] = join<V>(
                join<Half>(load<Quarter>(p), load<Quarter>(p + next), HalfL{}),
                join<Half>(load<Quarter>(p + 2 * next), load<Quarter>(p + 3 * next), HalfL{}), L{});
          }
        }
        transpose_blocks<W, W / 8>(x);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) at<V>(out + (j + l) * rows + i) = x[l];
      }
  }
}

template <typename T, int W>
void pack_transposed(const T* slice, int64_t q, int64_t k, int64_t n, T* packed) {
  for (int64_t j = 0; j < q; ++j) transpose<T, W>(slice + j * k * n, k, n, packed + j * k * n);
}

// a's lower blocks of H lanes beside b's upper ones. Written as a choice by lane it becomes a
// blend, which needs no shuffle unit.
template <int W, int H, typename V, int... I>
TT_INLINE V outer_blocks(V a, V b, Lanes<I...>) {
  using Mask = decltype(a < b);
  return Mask{((I & H) ? -1 : 0)...} ? b : a;
}
// a's upper blocks and b's lower ones, each in the other's place.
template <int W, int H, typename V, int... I>
TT_INLINE V inner_blocks(V a, V b, Lanes<I...>) {
  return __builtin_shufflevector(a, b, ((I & H) ? W + I - H : I + H)...);
}

// x[0] := the vector whose lane l is the sum of x[l]'s lanes.
template <int W, int H, typename V>
TT_INLINE void sum_lanes(V* x) {
  if constexpr (H >= 1) {
    using L = typename LanesTo<W>::type;
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i)
      x[i] = outer_blocks<W, H>(x[i], x[i + H], L{}) + inner_blocks<W, H>(x[i], x[i + H], L{});
    sum_lanes<W, H / 2>(x);
  }
}

template <typename T, int W>
T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// Any n.
template <typename T, int W>
void axpy(T weight, const T* x, T* y, int64_t n) {
  using V = Vector<T, W>;
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + W <= n; i += W) at<V>(y + i) += weight * load<V>(x + i);
  for (; i < n; ++i) y[i] += weight * x[i];
}

#include "tt_gemm_impl.h"
#include "tt_rows_impl.h"

template <typename T, int W>
const Kernels<T>* kernels_of_width() {
  static const Kernels<T> all = {W,
                                 int64_t{1} << 25,
                                 1,
                                 nullptr,
                                 pack_transposed<T, W>,
                                 product<T, W>,
                                 top_product<T, W>,
                                 nullptr,
                                 outer_product<T, W>,
                                 nullptr,
                                 nullptr,
                                 rows_forward<T, W>,
                                 rows_backward<T, W>,
                                 scatter<T, W>,
                                 gather<T, W>,
                                 axpy<T, W>,
                                 dot<T, W>};
  return &all;
}

// The widest vectors, up to W elements, whose width divides `ranks_divisor`.
template <typename T, int W>
const Kernels<T>* widest_kernels(int64_t ranks_divisor) {
  if (ranks_divisor % W == 0) return kernels_of_width<T, W>();
  if constexpr (W > 1) {
    return widest_kernels<T, W / 2>(ranks_divisor);
  } else {
    return nullptr;
  }
}

#undef TT_INLINE
#undef TT_LAMBDA
