#pragma once
// Lookup and pooling of rows on the CPU, wherever they are: Rows gives the address of row i as
// rows[i].
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "simd.h"

namespace recsys_opt {

constexpr int64_t kPoolBlock = 64;  // samples per task
constexpr int64_t kPoolAhead =
    16;  // rows asked for ahead: a row of a large table is a miss in every cache

// One table's rows, one behind the other.
template <typename T>
struct StoredRows {
  const T* first;
  int64_t dim;

  ALWAYS_INLINE const T* operator[](int64_t i) const { return first + i * dim; }
};

template <typename T>
struct PoolBags {
  const int64_t* offsets;  // null: one id per bag
  const T* factors;        // null: all 1
  bool mean;
};

// The smallest position of a bad id, over all threads.
inline void keep_smallest(std::atomic<int64_t>& smallest, int64_t position) {
  int64_t seen = smallest.load(std::memory_order_relaxed);
  while (position < seen && !smallest.compare_exchange_weak(seen, position)) {
  }
}

template <typename T>
ALWAYS_INLINE void prefetch_numbers(const T* row, int64_t dim) {
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// out += factor * row
void add_row(const float* row, float factor, int64_t dim, float* out);
void add_row(const double* row, double factor, int64_t dim, double* out);

// Bags [begin, end) of one table of `count` rows into out[bag][0 .. dim).
template <typename T, typename Id, typename Rows>
void pool_rows(const Rows& rows, int64_t count, int64_t dim, const Id* ids, int64_t first_bag,
               int64_t begin, int64_t end, int64_t last_id, const PoolBags<T>& bags, T* out,
               int64_t out_stride, std::atomic<int64_t>& bad) {
  const auto valid = [&](int64_t k) {
    return static_cast<uint64_t>(ids[k]) < static_cast<uint64_t>(count);
  };
  for (int64_t b = begin; b < end; ++b) {
    const int64_t bag = first_bag + b;
    const int64_t start = bags.offsets ? bags.offsets[bag] : bag;
    const int64_t stop = bags.offsets ? bags.offsets[bag + 1] : bag + 1;
    T* to = out + b * out_stride;
    if (!bags.offsets && !bags.factors) {  // one row as it is: a copy
      if (start + kPoolAhead < last_id && valid(start + kPoolAhead))
        prefetch_numbers(rows[ids[start + kPoolAhead]], dim);
      if (!valid(start)) {
        keep_smallest(bad, start);
        return;
      }
      std::copy_n(rows[ids[start]], dim, to);
      continue;
    }
    std::fill_n(to, dim, T(0));
    for (int64_t k = start; k < stop; ++k) {
      if (k + kPoolAhead < last_id && valid(k + kPoolAhead))
        prefetch_numbers(rows[ids[k + kPoolAhead]], dim);
      if (!valid(k)) {
        keep_smallest(bad, k);
        return;
      }
      add_row(rows[ids[k]], bags.factors ? bags.factors[k] : T(1), dim, to);
    }
    if (bags.mean && stop - start > 1)
      for (int64_t d = 0; d < dim; ++d) to[d] /= static_cast<T>(stop - start);
  }
}

}  // namespace recsys_opt
