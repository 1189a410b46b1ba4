#include <algorithm>

#include "dense/pool_rows.h"

namespace recsys_opt {
namespace {

template <typename T>
ALWAYS_INLINE void prefetch(const T* row, int64_t dim) {
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// Numbers that are added at once; gcc makes arrays of plain ones scalars, one by one.
template <typename T>
struct Lane {
  typedef T Type __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kWidth = 32 / sizeof(T);
};

// The sum of a bag: DIM numbers in registers, or any number of them where they are to go.
template <int64_t DIM, typename T>
struct Sum {
  using Vector = typename Lane<T>::Type;
  static constexpr int64_t kVectors = DIM / Lane<T>::kWidth;

  Sum(T*, int64_t) {}
  ALWAYS_INLINE void set(const T* row, T factor) {
    for (int64_t v = 0; v < kVectors; ++v)
      numbers[v] = factor * reinterpret_cast<const Vector*>(row)[v];
  }
  ALWAYS_INLINE void add(const T* row, T factor) {
    for (int64_t v = 0; v < kVectors; ++v)
      numbers[v] += factor * reinterpret_cast<const Vector*>(row)[v];
  }
  ALWAYS_INLINE void finish(T* to, T divisor) {
    for (int64_t v = 0; v < kVectors; ++v) {
      if (divisor != T(1)) numbers[v] /= divisor;
      reinterpret_cast<Vector*>(to)[v] = numbers[v];
    }
  }
  Vector numbers[kVectors];
};
template <typename T>
struct Sum<0, T> {
  Sum(T* to, int64_t dim) : numbers(to), dim(dim) {}
  ALWAYS_INLINE void set(const T* __restrict row, T factor) {
    T* __restrict to = numbers;
    for (int64_t d = 0; d < dim; ++d) to[d] = factor * row[d];
  }
  ALWAYS_INLINE void add(const T* __restrict row, T factor) {
    T* __restrict to = numbers;
    for (int64_t d = 0; d < dim; ++d) to[d] += factor * row[d];
  }
  ALWAYS_INLINE void finish(T*, T divisor) {
    if (divisor == T(1)) return;
    for (int64_t d = 0; d < dim; ++d) numbers[d] /= divisor;
  }
  T* numbers;
  int64_t dim;
};

// DIM columns, 0: any number of them.
template <int64_t DIM, typename T, typename Position>
ALWAYS_INLINE int64_t pool_body(const PooledRows<T>& table, const PoolBags<T>& bags,
                                const Position* positions, T* out, int64_t stride) {
  PooledRows<T> rows = table;
  if constexpr (DIM > 0) rows.dim = DIM;
  const int64_t dim = rows.dim;
  for (int64_t b = bags.begin; b < bags.end; ++b) {
    const int64_t bag = bags.first + b;
    const int64_t start = bags.offsets ? bags.offsets[bag] : bag;
    const int64_t stop = bags.offsets ? bags.offsets[bag + 1] : bag + 1;
    T* to = out + b * stride;
    if (start == stop) {
      std::fill_n(to, dim, T(0));
      continue;
    }
    Sum<DIM, T> sum(to, dim);
    for (int64_t k = start; k < stop; ++k) {
      // Here, not in a lambda: gcc takes a function that only prefetches for one without effect.
      if (k + kPoolAhead < bags.known && rows.has(positions[k + kPoolAhead]))
        prefetch(rows[positions[k + kPoolAhead]], dim);
      if (!rows.has(positions[k])) return k;
      const T factor = bags.factors ? bags.factors[k] : T(1);
      if (k == start)
        sum.set(rows[positions[k]], factor);
      else
        sum.add(rows[positions[k]], factor);
    }
    sum.finish(to, bags.mean ? static_cast<T>(stop - start) : T(1));
  }
  return kNoLookup;
}

// The usual widths as constants: their rows are a few registers.
template <typename T, typename Position>
ALWAYS_INLINE int64_t pool_of_width(const PooledRows<T>& rows, const PoolBags<T>& bags,
                                    const Position* positions, T* out, int64_t stride) {
  switch (rows.dim) {
    case 16:
      return pool_body<16>(rows, bags, positions, out, stride);
    case 32:
      return pool_body<32>(rows, bags, positions, out, stride);
    case 64:
      return pool_body<64>(rows, bags, positions, out, stride);
    case 128:
      return pool_body<128>(rows, bags, positions, out, stride);
    default:
      return pool_body<0>(rows, bags, positions, out, stride);
  }
}

}  // namespace

SIMD_CLONES int64_t pool_rows(const PooledRows<float>& rows, const PoolBags<float>& bags,
                              const int32_t* positions, float* out, int64_t stride) {
  return pool_of_width(rows, bags, positions, out, stride);
}
SIMD_CLONES int64_t pool_rows(const PooledRows<float>& rows, const PoolBags<float>& bags,
                              const int64_t* positions, float* out, int64_t stride) {
  return pool_of_width(rows, bags, positions, out, stride);
}
SIMD_CLONES int64_t pool_rows(const PooledRows<double>& rows, const PoolBags<double>& bags,
                              const int32_t* positions, double* out, int64_t stride) {
  return pool_of_width(rows, bags, positions, out, stride);
}
SIMD_CLONES int64_t pool_rows(const PooledRows<double>& rows, const PoolBags<double>& bags,
                              const int64_t* positions, double* out, int64_t stride) {
  return pool_of_width(rows, bags, positions, out, stride);
}

}  // namespace recsys_opt
