#pragma once
// Lookup and pooling on the CPU of rows in one place, or in two.
#include <atomic>
#include <cstdint>
#include <limits>

#include "simd.h"

namespace recsys_opt {

constexpr int64_t kPoolBlock = 64;  // samples per task
constexpr int64_t kPoolAhead =
    16;  // rows asked for ahead: a row of a large table is a miss in every cache

// A table's rows by position: the first hot_rows are one behind the other at `hot`, the next at
// `cold`.
template <typename T>
struct PooledRows {
  const T* hot;
  const T* cold;
  int64_t hot_rows, rows, dim;

  // All of them at `first`.
  static PooledRows stored(const T* first, int64_t rows, int64_t dim) {
    return {first, first, rows, rows, dim};
  }

  ALWAYS_INLINE bool has(int64_t position) const {
    return static_cast<uint64_t>(position) < static_cast<uint64_t>(rows);
  }
  // Without a branch: which tier comes next is anybody's guess.
  ALWAYS_INLINE const T* operator[](int64_t position) const {
    const auto is_cold = static_cast<uintptr_t>(-static_cast<int64_t>(position >= hot_rows));
    const auto near = reinterpret_cast<uintptr_t>(hot), far = reinterpret_cast<uintptr_t>(cold);
    const uintptr_t base = near + (is_cold & (far - near - hot_rows * dim * sizeof(T)));
    return reinterpret_cast<const T*>(base + position * dim * sizeof(T));
  }
};

template <typename T>
struct PoolBags {
  const int64_t* offsets;  // null: one id per bag
  const T* factors;        // null: all 1
  bool mean;
  int64_t first, begin, end;  // the bags first + begin .. first + end - 1 are to be pooled
  int64_t known;              // ids before this one may be asked for ahead
};

// No bad lookup.
constexpr int64_t kNoLookup = std::numeric_limits<int64_t>::max();

// Pools into out[begin .. end), rows of `stride` numbers. Returns the first lookup of a position
// that the table has not, or kNoLookup.
int64_t pool_rows(const PooledRows<float>& rows, const PoolBags<float>& bags,
                  const int32_t* positions, float* out, int64_t stride);
int64_t pool_rows(const PooledRows<float>& rows, const PoolBags<float>& bags,
                  const int64_t* positions, float* out, int64_t stride);
int64_t pool_rows(const PooledRows<double>& rows, const PoolBags<double>& bags,
                  const int32_t* positions, double* out, int64_t stride);
int64_t pool_rows(const PooledRows<double>& rows, const PoolBags<double>& bags,
                  const int64_t* positions, double* out, int64_t stride);

// The smallest bad lookup, over all threads.
inline void keep_smallest(std::atomic<int64_t>& smallest, int64_t lookup) {
  int64_t seen = smallest.load(std::memory_order_relaxed);
  while (lookup < seen && !smallest.compare_exchange_weak(seen, lookup)) {
  }
}

}  // namespace recsys_opt
