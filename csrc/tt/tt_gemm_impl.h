// The products of the tensor train's chain, as templates over the vector width. Part of
// tt_kernels_impl.h.
//
// Nodes of one group share a slice of a core: q matrices [k, n], below each other in memory. Their
// rows lie anywhere, so rows come as pointers; nothing is copied together or transposed.

// The address of vector v of a slice's row 0: the columns of its q matrices side by side.
template <typename T, int W>
TT_INLINE const T* slice_column(const T* slice, int64_t k, int64_t n, int64_t v) {
  const int64_t j = v * W / n;
  return slice + j * k * n + (v * W - j * n);
}

// A block of MR rows by NV vectors of c (+)= a . slice, kept in registers over the whole of k. Asks
// for the same part of the slice `next` on the way: nullptr asks for nothing.
template <typename T, int W, int MR, int NV>
TT_INLINE void product_block(const T* const* a, const T* slice, int64_t k, int64_t n, int64_t v,
                             T* const* c, bool accumulate, const T* next) {
  using V = Vector<T, W>;
  V sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) sum[i][j] = accumulate ? load<V>(c[i] + (v + j) * W) : V{};
  const T* left[MR];
  const T* right[NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) left[i] = a[i];
#pragma GCC unroll 16
  for (int j = 0; j < NV; ++j) right[j] = slice_column<T, W>(slice, k, n, v + j);
  const int64_t ahead = next ? next - slice : 0;
  int64_t at_row = 0;
  for (int64_t p = 0; p < k; ++p) {
    V x[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) {
      x[j] = load<V>(right[j] + at_row);
      __builtin_prefetch(right[j] + at_row + ahead, 0, 2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T y = left[i][p];
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) sum[i][j] += y * x[j];
    }
    at_row += n;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) at<V>(c[i] + (v + j) * W) = sum[i][j];
}

// A block of MR rows by NV vectors of c (+)= a^T . b, where row p of a and of b is at a[p], b[p]:
// rows i .. i + MR - 1 of every matrix of the slice c.
template <typename T, int W, int MR, int NV>
TT_INLINE void outer_block(const T* const* a, const T* const* b, int64_t rows, T* slice, int64_t k,
                           int64_t n, int64_t i0, int64_t v, bool accumulate) {
  using V = Vector<T, W>;
  V sum[MR][NV];
  T* c[NV];
#pragma GCC unroll 16
  for (int j = 0; j < NV; ++j)
    c[j] = const_cast<T*>(slice_column<T, W>(slice, k, n, v + j)) + i0 * n;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) sum[i][j] = accumulate ? load<V>(c[j] + i * n) : V{};
  for (int64_t p = 0; p < rows; ++p) {
    const T* left = a[p] + i0;
    const T* right = b[p] + v * W;
    V x[NV];
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) x[j] = load<V>(right + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < NV; ++j) sum[i][j] += left[i] * x[j];
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NV; ++j) at<V>(c[j] + i * n) = sum[i][j];
}

template <typename T, int W, int MR, int NV>
TT_INLINE void product_rows(int64_t rows, const T* const* a, const T* slice, int64_t k, int64_t n,
                            int64_t v, T* const* c, bool accumulate, const T* next) {
  if constexpr (MR >= 1) {
    if (rows == MR)
      product_block<T, W, MR, NV>(a, slice, k, n, v, c, accumulate, next);
    else
      product_rows<T, W, MR - 1, NV>(rows, a, slice, k, n, v, c, accumulate, next);
  }
}

// Blocks of at most MR rows, as equal as they can be: a block of few rows has few sums in flight.
template <typename T, int W, int MR, int NV>
TT_INLINE void product_columns(const T* const* a, int64_t rows, const T* slice, int64_t k,
                               int64_t n, int64_t v, T* const* c, bool accumulate, const T* next) {
  for (int64_t blocks = (rows + MR - 1) / MR; blocks > 0; --blocks) {
    const int64_t count = (rows + blocks - 1) / blocks;
    product_rows<T, W, MR, NV>(count, a, slice, k, n, v, c, accumulate, next);
    a += count;
    c += count;
    rows -= count;
    next = nullptr;
  }
}

template <typename T, int W>
void product(const T* const* a, int64_t rows, const T* slice, int64_t q, int64_t k, int64_t n,
             T* const* c, bool accumulate, const T* next) {
  const int64_t vectors = q * n / W;
  int64_t v = 0;
  if constexpr (kVectors >= 4) {
    for (; v + 4 <= vectors; v += 4)
      product_columns<T, W, kRows, 4>(a, rows, slice, k, n, v, c, accumulate, next);
  }
  for (; v + 2 <= vectors; v += 2)
    product_columns<T, W, kRows, 2>(a, rows, slice, k, n, v, c, accumulate, next);
  if (v < vectors) product_columns<T, W, kRows, 1>(a, rows, slice, k, n, v, c, accumulate, next);
}

template <typename T, int W>
void top_product(const T* const* a, int64_t rows, const T* slice, int64_t q, int64_t k, int64_t n,
                 T* const* c, const T* next) {
  product<T, W>(a, rows, slice, q, k, n, c, false, next);
}

template <typename T, int W, int NV>
TT_INLINE void outer_columns(const T* const* a, const T* const* b, int64_t rows, T* slice,
                             int64_t k, int64_t n, int64_t v, bool accumulate) {
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) outer_block<T, W, 4, NV>(a, b, rows, slice, k, n, i, v, accumulate);
  for (; i < k; ++i) outer_block<T, W, 1, NV>(a, b, rows, slice, k, n, i, v, accumulate);
}

template <typename T, int W>
void outer_product(const T* const* a, const T* const* b, int64_t rows, T* slice, int64_t q,
                   int64_t k, int64_t n, bool accumulate) {
  const int64_t vectors = q * n / W;
  int64_t v = 0;
  if constexpr (kVectors >= 4) {
    for (; v + 4 <= vectors; v += 4) outer_columns<T, W, 4>(a, b, rows, slice, k, n, v, accumulate);
  }
  for (; v + 2 <= vectors; v += 2) outer_columns<T, W, 2>(a, b, rows, slice, k, n, v, accumulate);
  if (v < vectors) outer_columns<T, W, 1>(a, b, rows, slice, k, n, v, accumulate);
}
