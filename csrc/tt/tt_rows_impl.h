// Rows of the table, from their prefixes' products and the last core, and what moves them to and
// from the bags. Part of tt_kernels_impl.h.

constexpr int kAheadRows = 24;  // lookups ahead that bags are asked for

template <int WRITE, typename T>
TT_INLINE void fetch_row(const T* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(x + i, WRITE);
}

// Any numbers of rows of x and y: results [i q, m q) of the row, W at a time.
template <typename T, int W>
TT_INLINE void row_forward_any(const T* x, const T* y, T* row, int64_t i, int64_t m, int64_t q,
                               int64_t r) {
  using V = Vector<T, W>;
  int64_t j = 0;
  for (int64_t done = i * q; done < m * q; done += W) {
    V sum[W] = {};
    const int64_t lanes = m * q - done < W ? m * q - done : W;
    for (int64_t l = 0; l < lanes; ++l) {
      V s{};
      for (int64_t p = 0; p < r; p += W) s += load<V>(x + i * r + p) * load<V>(y + j * r + p);
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

constexpr int kTiled = 1024;  // for Q: any multiple of 16

// W columns of a row of the result at a time.
template <typename T, int W>
TT_INLINE void row_forward_tiled(const T* x, const T* y, T* row, int64_t m, int64_t q, int64_t r) {
  using V = Vector<T, W>;
  for (int64_t i = 0; i < m; ++i, x += r)
    for (int64_t j = 0; j < q; j += W, row += W) {
      V sum[W] = {};
      for (int64_t p = 0; p < r; p += W) {
        const V left = load<V>(x + p);
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) sum[l] += left * load<V>(y + (j + l) * r + p);
      }
      sum_lanes<W, W / 2>(sum);
      at<V>(row) = sum[0];
    }
}

// Q, RV: q and r / W where known at compile time, else 0.
template <typename T, int W, int Q, int RV>
TT_INLINE void row_forward(const T* x, const T* y, T* row, int64_t m, int64_t q, int64_t r_any) {
  const int64_t r = RV ? RV * W : r_any;
  if constexpr (W == 1) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < q; ++j) row[i * q + j] = dot<T, 1>(x + i * r, y + j * r, r);
  } else if constexpr (Q == kTiled) {
    row_forward_tiled<T, W>(x, y, row, m, q, r);
  } else if constexpr (Q == 0 || W % (Q ? Q : 1) != 0) {
    row_forward_any<T, W>(x, y, row, 0, m, q, r);
  } else {
    // W results at a time: W / Q rows of x by Q columns, each a sum per lane at first.
    using V = Vector<T, W>;
    constexpr int kRowsOfX = W / Q;
    int64_t i = 0;
    for (; i + kRowsOfX <= m; i += kRowsOfX) {
      V sum[W] = {};
#pragma GCC unroll 4
      for (int64_t p = 0; p < r; p += W) {
        V right[Q];
#pragma GCC unroll 16
        for (int j = 0; j < Q; ++j) right[j] = load<V>(y + j * r + p);
#pragma GCC unroll 16
        for (int l = 0; l < kRowsOfX; ++l) {
          const V left = load<V>(x + (i + l) * r + p);
#pragma GCC unroll 16
          for (int j = 0; j < Q; ++j) sum[l * Q + j] += left * right[j];
        }
      }
      sum_lanes<W, W / 2>(sum);
      at<V>(row + i * Q) = sum[0];
    }
    if (i < m) row_forward_any<T, W>(x, y, row, i, m, Q, r);
  }
}

template <typename T, int W, int Q, int RV>
TT_INLINE void rows_forward_as(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                               const T* core, T* out) {
  const int64_t m = rows.m, q = Q && Q != kTiled ? Q : rows.q, r = RV ? RV * W : rows.r;
  for (int64_t i = begin; i < end; ++i) {
    row_forward<T, W, Q, RV>(products + (rows.node[i] - rows.first_node) * (m * r),
                             core + rows.last[i] * (q * r), out + (i - begin) * (m * q), m, q, r);
  }
}

// Whether row i is not the first of its node: then it adds to the gradient of the node's product.
TT_INLINE bool adds_to_node(const TableRows& rows, int64_t i) {
  return i > 0 && rows.node[i] == rows.node[i - 1];
}

// x, or 0 where it does not count: no branch, and x may be anything then.
template <typename T, int W>
TT_INLINE Vector<T, W> counted(Vector<T, W> x, bool counts) {
  if constexpr (W == 1) {
    return counts ? x : T(0);
  } else {
    using Mask = decltype(x < x);
    return reinterpret_cast<Vector<T, W>>(reinterpret_cast<Mask>(x) & (Mask{} - counts));
  }
}

// Columns [j, j + Q) of the row: Q rows of the last core's slice, and their gradients. adds: to
// grad_x; else that is set.
template <typename T, int W, int Q, int RV>
TT_INLINE void row_backward(const T* x, const T* y, const T* grad_row, T* grad_x, T* grad_y,
                            int64_t m, int64_t q, int64_t r_any, bool adds) {
  using V = Vector<T, W>;
  const int64_t r = RV ? RV * W : r_any;
#pragma GCC unroll 1
  for (int64_t p = 0; p < r; p += W) {
    V right[Q], sum[Q];
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) {
      right[j] = load<V>(y + j * r + p);
      sum[j] = load<V>(grad_y + j * r + p);
    }
    for (int64_t i = 0; i < m; ++i) {
      const V left = load<V>(x + i * r + p);
      V grad = counted<T, W>(load<V>(grad_x + i * r + p), adds);
#pragma GCC unroll 16
      for (int j = 0; j < Q; ++j) {
        const T g = grad_row[i * q + j];
        grad += g * right[j];
        sum[j] += g * left;
      }
      at<V>(grad_x + i * r + p) = grad;
    }
#pragma GCC unroll 16
    for (int j = 0; j < Q; ++j) at<V>(grad_y + j * r + p) = sum[j];
  }
}

template <typename T, int W, int Q, int RV>
TT_INLINE void rows_backward_as(const TableRows& rows, int64_t begin, int64_t end,
                                const T* products, const T* core, const T* grad_rows,
                                T* grad_products, T* grad_core) {
  // At most 8 columns at once: their operands and sums are in registers.
  constexpr int kColumns = Q > 8 ? 8 : Q > 0 ? Q : 1;
  const int64_t m = rows.m, q = Q && Q != kTiled ? Q : rows.q, r = RV ? RV * W : rows.r;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t node = (rows.node[i] - rows.first_node) * (m * r);
    const T* y = core + rows.last[i] * (q * r);
    T* grad_y = grad_core + rows.last[i] * (q * r);
    const bool adds = adds_to_node(rows, i);
    for (int64_t j = 0; j < q; j += kColumns)
      row_backward<T, W, kColumns, RV>(products + node, y + j * r, grad_rows + j,
                                       grad_products + node, grad_y + j * r, m, q, r,
                                       adds || j > 0);
    grad_rows += m * q;
  }
}

// Common shapes are compiled on their own.
#define TT_BY_SHAPE(function, ...)                                              \
  if (rows.q == 4 && rows.r == 2 * W) return function<T, W, 4, 2>(__VA_ARGS__); \
  if (rows.q == 4 && rows.r == W) return function<T, W, 4, 1>(__VA_ARGS__);     \
  if (rows.q == 4) return function<T, W, 4, 0>(__VA_ARGS__);                    \
  if (rows.q == 8 && rows.r == 2 * W) return function<T, W, 8, 2>(__VA_ARGS__); \
  if (rows.q == 8) return function<T, W, 8, 0>(__VA_ARGS__);                    \
  if (rows.q == 16) return function<T, W, 16, 0>(__VA_ARGS__);                  \
  if (rows.q % 16 == 0) return function<T, W, kTiled, 0>(__VA_ARGS__);          \
  function<T, W, 0, 0>(__VA_ARGS__)

template <typename T, int W>
void rows_forward(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                  const T* core, T* out) {
  TT_BY_SHAPE(rows_forward_as, rows, begin, end, products, core, out);
}

template <typename T, int W>
void rows_backward(const TableRows& rows, int64_t begin, int64_t end, const T* products,
                   const T* core, const T* grad_rows, T* grad_products, T* grad_core) {
  TT_BY_SHAPE(rows_backward_as, rows, begin, end, products, core, grad_rows, grad_products,
              grad_core);
}

#undef TT_BY_SHAPE

// Calls body(c, factor of c) for lookups [begin, end), with the bags to come asked for early.
template <int WRITE, typename T, typename Body>
TT_INLINE void for_each_lookup(const Lookups<T>& lookups, int64_t begin, int64_t end, const T* bags,
                               const Body& body) {
  for (int64_t c = begin; c < end; ++c) {
    if (c + kAheadRows < lookups.count)
      fetch_row<WRITE>(bags + lookups.bag[c + kAheadRows] * lookups.columns, lookups.dim);
    body(c, lookups.factors ? lookups.factors[c] : lookups.factor);
  }
}

template <typename T, int W>
void scatter(const Lookups<T>& lookups, int64_t begin, int64_t end, int64_t first_row,
             const T* rows, T* out) {
  using V = Vector<T, W>;
  const int64_t dim = lookups.dim;
  for_each_lookup<1>(lookups, begin, end, out, [&](int64_t c, T factor) TT_LAMBDA {
    const T* x = rows + (lookups.row[c] - first_row) * dim;
    T* y = out + lookups.bag[c] * lookups.columns;
    int64_t i = 0;
    for (; i + W <= dim; i += W) at<V>(y + i) = factor * load<V>(x + i);
    for (; i < dim; ++i) y[i] = factor * x[i];
  });
}

template <typename T, int W>
void gather(const Lookups<T>& lookups, int64_t begin, int64_t end, int64_t first_row, int64_t count,
            const T* grad_out, T* rows) {
  using V = Vector<T, W>;
  const int64_t dim = lookups.dim;
  for (int64_t i = 0; i < count * dim; ++i) rows[i] = 0;
  for_each_lookup<0>(lookups, begin, end, grad_out, [&](int64_t c, T factor) TT_LAMBDA {
    const T* x = grad_out + lookups.bag[c] * lookups.columns;
    T* y = rows + (lookups.row[c] - first_row) * dim;
    int64_t i = 0;
    for (; i + W <= dim; i += W) at<V>(y + i) += factor * load<V>(x + i);
    for (; i < dim; ++i) y[i] += factor * x[i];
  });
}
