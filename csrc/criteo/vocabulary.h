// Counting the values of all columns, and turning values into ids.
#pragma once
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "criteo/count_table.h"
#include "criteo/row.h"

namespace criteo {

inline constexpr int32_t kMissingId = 0;
inline constexpr int32_t kRareId = 1;  // values under the minimum count, and values never counted
inline constexpr int32_t kFirstId = 2;

// The counts of all columns, filled by any number of threads.
class Counts {
 public:
  // `values`: kValues columns of n values, `stride` apart. `first` varies the order of the columns,
  // so that threads do not queue for the same one.
  void add(const uint32_t* values, int64_t stride, const uint32_t* missing, int64_t n,
           int64_t first);

  // The ranked values of a column (CountTable::take_ranked).
  std::vector<uint32_t> take_ranked(int column, uint64_t min_count);

  uint64_t distinct();
  uint64_t bytes();

 private:
  std::mutex locks_[kValues];
  CountTable tables_[kValues];
};

// value -> id of one column, fixed: the r-th value has id kFirstId + r.
class IdTable {
 public:
  explicit IdTable(std::span<const uint32_t> ranked);

  // out[i * kValues] = the id of values[i].
  void map(const uint32_t* values, const uint32_t* missing, int column, int64_t n,
           int32_t* out) const;

 private:
  uint64_t size_;
  Buckets buckets_;  // numbers: the ids
};

// 1 + mix(value) mod (num_embeddings - 1), mix being the finalizer of MurmurHash3 (32 bits): id 0
// is left to missing values.
class HashIds {
 public:
  explicit HashIds(uint32_t num_embeddings);
  int32_t operator()(uint32_t value) const {
    uint32_t x = value;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    x ^= x >> 16;
    // Lemire's fastmod: the remainder by two multiplications.
    const uint64_t low = magic_ * x;
    return 1 + static_cast<int32_t>((static_cast<unsigned __int128>(low) * divisor_) >> 64);
  }

 private:
  uint32_t divisor_;
  uint64_t magic_;
};

}  // namespace criteo
