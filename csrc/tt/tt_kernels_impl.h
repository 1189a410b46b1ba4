// The inner loops as templates over the vector width, in GCC's vector extension. Included once by
// each tt_kernels_<isa>_cpu.cpp, inside its own namespace and after its target pragma; nothing here
// comes from the standard library, so that no shared inline function is compiled for an instruction
// set that the machine may lack.
//
// W: elements of a vector. Lengths named r and n are multiples of W, unless W is 1.

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

template <typename V, typename T>
TT_INLINE V& at(T* p) {
  return *reinterpret_cast<V*>(p);
}
template <typename V, typename T>
TT_INLINE V load(const T* p) {
  return *reinterpret_cast<const V*>(p);
}

// A block of MR rows by NV vectors of c, kept in registers over the whole of k. a: [m, k], or [k,
// m] if TRANSPOSED.
template <typename T, int W, bool TRANSPOSED, int MR, int NV>
TT_INLINE void gemm_block(const T* a, int64_t a_row, const T* b, int64_t b_row, T* c, int64_t c_row,
                          int64_t k, bool accumulate) {
  using V = Vector<T, W>;
  V sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) sum[i][j] = accumulate ? load<V>(c + i * c_row + j * W) : V{};
  for (int64_t p = 0; p < k; ++p) {
    V right[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) right[j] = load<V>(b + j * W);
    b += b_row;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T left = TRANSPOSED ? a[i] : a[i * a_row];
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) sum[i][j] += left * right[j];
    }
    a += TRANSPOSED ? a_row : 1;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) at<V>(c + i * c_row + j * W) = sum[i][j];
}

template <typename T, int W, bool TRANSPOSED, int MR, int NV>
TT_INLINE void gemm_rows(int64_t rows, const T* a, int64_t a_row, const T* b, int64_t b_row, T* c,
                         int64_t c_row, int64_t k, bool accumulate) {
  if constexpr (MR >= 1) {
    if (rows == MR)
      gemm_block<T, W, TRANSPOSED, MR, NV>(a, a_row, b, b_row, c, c_row, k, accumulate);
    else
      gemm_rows<T, W, TRANSPOSED, MR - 1, NV>(rows, a, a_row, b, b_row, c, c_row, k, accumulate);
  }
}

// Blocks of at most kRows rows, as equal as they can be: a block of few rows has few sums in
// flight.
template <typename T, int W, bool TRANSPOSED, int NV>
TT_INLINE void gemm_columns(const T* a, int64_t a_row, const T* b, int64_t b_row, T* c,
                            int64_t c_row, int64_t m, int64_t k, bool accumulate) {
  for (int64_t blocks = (m + kRows - 1) / kRows; blocks > 0; --blocks) {
    const int64_t rows = (m + blocks - 1) / blocks;
    gemm_rows<T, W, TRANSPOSED, kRows, NV>(rows, a, a_row, b, b_row, c, c_row, k, accumulate);
    a += TRANSPOSED ? rows : rows * a_row;
    c += rows * c_row;
    m -= rows;
  }
}

template <typename T, int W, bool TRANSPOSED>
void gemm(const T* a, int64_t a_row, const T* b, int64_t b_row, T* c, int64_t c_row, int64_t m,
          int64_t k, int64_t n, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W)
    gemm_columns<T, W, TRANSPOSED, 2>(a, a_row, b + j, b_row, c + j, c_row, m, k, accumulate);
  if (j < n)
    gemm_columns<T, W, TRANSPOSED, 1>(a, a_row, b + j, b_row, c + j, c_row, m, k, accumulate);
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

template <typename T, int W>
void transpose(const T* in, int64_t rows, int64_t columns, T* out) {
  if constexpr (W == 1) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) out[j * rows + i] = in[i * columns + j];
  } else {
    using V = Vector<T, W>;
    for (int64_t i = 0; i < rows; i += W)
      for (int64_t j = 0; j < columns; j += W) {
        V x[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) x[l] = load<V>(in + (i + l) * columns + j);
        transpose_blocks<W, W / 2>(x);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) at<V>(out + (j + l) * rows + i) = x[l];
      }
  }
}

// x[0] := the vector whose lane l is the sum of x[l]'s lanes.
template <int W, int H, typename V>
TT_INLINE void sum_lanes(V* x) {
  if constexpr (H >= 1) {
    using L = typename LanesTo<W>::type;
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i)
      x[i] = lower<W, H>(x[i], x[i + H], L{}) + upper<W, H>(x[i], x[i + H], L{});
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
template <typename T, int W, bool ADD>
void scale(T weight, const T* x, T* y, int64_t n) {
  using V = Vector<T, W>;
  int64_t i = 0;
#pragma GCC unroll 4
  for (; i + W <= n; i += W) at<V>(y + i) = weight * load<V>(x + i) + (ADD ? load<V>(y + i) : V{});
  for (; i < n; ++i) y[i] = weight * x[i] + (ADD ? y[i] : T(0));
}

// Q, RV: q and r / W where known at compile time, else 0.
template <typename T, int W, int Q, int RV>
TT_INLINE void row_forward_as(const T* prefix, const T* core, T* row, int64_t m, int64_t q_any,
                              int64_t r_any) {
  const int64_t q = Q ? Q : q_any, r = RV ? RV * W : r_any;
  if constexpr (W == 1) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < q; ++j) row[i * q + j] = dot<T, 1>(prefix + i * r, core + j * r, r);
  } else if constexpr (Q > 0 && W % (Q > 0 ? Q : 1) == 0) {
    // W results at a time: W / Q rows of the prefix by Q columns.
    using V = Vector<T, W>;
    constexpr int kPrefixRows = W / Q;
    int64_t i = 0;
    for (; i + kPrefixRows <= m; i += kPrefixRows) {
      V sum[W] = {};
#pragma GCC unroll 4
      for (int64_t p = 0; p < r; p += W) {
        V right[Q];
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) right[j] = load<V>(core + j * r + p);
#pragma GCC unroll 16
        for (int l = 0; l < kPrefixRows; ++l) {
          const V left = load<V>(prefix + (i + l) * r + p);
#pragma GCC unroll 16
          for (int j = 0; j < Q; ++j) sum[l * Q + j] += left * right[j];
        }
      }
      sum_lanes<W, W / 2>(sum);
      at<V>(row + i * Q) = sum[0];
    }
    for (; i < m; ++i)
      for (int64_t j = 0; j < q; ++j) row[i * q + j] = dot<T, W>(prefix + i * r, core + j * r, r);
  } else {
    using V = Vector<T, W>;
    const int64_t count = m * q;
    int64_t i = 0, j = 0;
    for (int64_t done = 0; done < count; done += W) {
      V sum[W] = {};
      const int64_t lanes = count - done < W ? count - done : W;
      for (int64_t l = 0; l < lanes; ++l) {
        V s{};
        for (int64_t p = 0; p < r; p += W)
          s += load<V>(prefix + i * r + p) * load<V>(core + j * r + p);
        sum[l] = s;
        if (++j == q) {
          j = 0;
          ++i;
        }
      }
      sum_lanes<W, W / 2>(sum);
      if (lanes == W) {
        at<V>(row + done) = sum[0];
      } else {
        for (int64_t l = 0; l < lanes; ++l) row[done + l] = sum[0][l];
      }
    }
  }
}

template <typename T, int W, int Q, int RV>
TT_INLINE void row_backward_as(const T* prefix, const T* core, const T* grad_row, T* grad_prefix,
                               T* grad_core, int64_t m, int64_t q_any, int64_t r_any) {
  using V = Vector<T, W>;
  const int64_t q = Q ? Q : q_any, r = RV ? RV * W : r_any;
  if constexpr (Q > 0) {
#pragma GCC unroll 1
    for (int64_t p = 0; p < r; p += W) {
      V right[Q], sum[Q];
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) {
        right[j] = load<V>(core + j * r + p);
        sum[j] = load<V>(grad_core + j * r + p);
      }
      for (int64_t i = 0; i < m; ++i) {
        const V left = load<V>(prefix + i * r + p);
        V grad = load<V>(grad_prefix + i * r + p);
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) {
          const T y = grad_row[i * Q + j];
          grad += y * right[j];
          sum[j] += y * left;
        }
        at<V>(grad_prefix + i * r + p) = grad;
      }
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) at<V>(grad_core + j * r + p) = sum[j];
    }
  } else {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < q; ++j) {
        const T y = grad_row[i * q + j];
        for (int64_t p = 0; p < r; p += W) {
          at<V>(grad_prefix + i * r + p) += y * load<V>(core + j * r + p);
          at<V>(grad_core + j * r + p) += y * load<V>(prefix + i * r + p);
        }
      }
  }
}

// The shapes of the published models are compiled on their own.
#define TT_BY_SHAPE(function, ...)                                    \
  if (q == 4 && r == 2 * W) return function<T, W, 4, 2>(__VA_ARGS__); \
  if (q == 4 && r == W) return function<T, W, 4, 1>(__VA_ARGS__);     \
  if (q == 4) return function<T, W, 4, 0>(__VA_ARGS__);               \
  function<T, W, 0, 0>(__VA_ARGS__)

template <typename T, int W>
void row_forward(const T* prefix, const T* core, T* row, int64_t m, int64_t q, int64_t r) {
  TT_BY_SHAPE(row_forward_as, prefix, core, row, m, q, r);
}

template <typename T, int W>
void row_backward(const T* prefix, const T* core, const T* grad_row, T* grad_prefix, T* grad_core,
                  int64_t m, int64_t q, int64_t r) {
  TT_BY_SHAPE(row_backward_as, prefix, core, grad_row, grad_prefix, grad_core, m, q, r);
}

#undef TT_BY_SHAPE

template <typename T, int W>
const Kernels<T>* kernels_of_width() {
  static const Kernels<T> all = {W,
                                 gemm<T, W, false>,
                                 gemm<T, W, true>,
                                 transpose<T, W>,
                                 row_forward<T, W>,
                                 row_backward<T, W>,
                                 scale<T, W, false>,
                                 scale<T, W, true>,
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
