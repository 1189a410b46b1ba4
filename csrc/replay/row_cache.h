#pragma once
// The cache that FBGEMM keeps of a device's rows in UVM (EmbeddingLocation::MANAGED_CACHING),
// replayed without rows: which lookups find theirs in the cache, and what goes over the link.
#include <array>
#include <cstdint>
#include <vector>

namespace recsys_opt::replay {

inline constexpr int64_t kWays = 32;  // rows of a set: FBGEMM's associativity

// Of one batch.
struct CacheTraffic {
  int64_t lookups = 0;
  int64_t rows = 0;            // different ones
  int64_t loads = 0;           // rows brought into the cache
  int64_t evictions = 0;       // rows written back to make room; FBGEMM keeps no note of clean ones
  int64_t direct_lookups = 0;  // of rows that found no room: read in place, over the link
  int64_t direct_rows = 0;     // different ones: updated in place
};

// Two caches of the same size that get the same lookups, one that evicts the row least recently
// used, one that evicts the row least often used (FBGEMM's CacheAlgorithm.LRU and LFU).
//
// Before a batch, its missing rows are brought in, set by set: under LRU in place of the rows that
// were used longest ago and not by this batch, in ascending order of rows; under LFU the rows most
// often used so far, this batch included, in place of those least often used, while they are used
// no less often. Rows for which that leaves no place are read and updated where they are.
class RowCaches {
 public:
  // rows of all tables that share the cache, sets of kWays rows each
  RowCaches(int64_t rows, int64_t sets);

  int64_t rows() const { return static_cast<int64_t>(row_.size()); }
  // Adds lookups of the ids within [first, last) to the batch; they are rows base, base + 1, ...
  template <class Id>
  void add(const Id* ids, int64_t count, int64_t first, int64_t last, int64_t base);
  // Ends the batch: [LRU, LFU].
  std::array<CacheTraffic, 2> end_batch();

 private:
  struct Row {
    uint32_t batch = 0;    // that looked it up last
    uint32_t lookups = 0;  // in that batch
    uint32_t uses = 0;     // in all batches before
    std::array<int32_t, 2> slot = {-1, -1};
  };
  struct Slot {
    int32_t row = -1;
    uint32_t batch = 0;  // that used it last
  };

  uint32_t set_of(int64_t row) const;
  void group_missing(int policy);
  void insert_lru(const int32_t* missing, int64_t count, uint32_t set, CacheTraffic* traffic);
  void insert_lfu(int32_t* missing, int64_t count, uint32_t set, CacheTraffic* traffic);
  void place(int policy, int32_t row, int64_t slot, CacheTraffic* traffic);

  int64_t sets_;
  uint32_t batch_ = 1;
  std::vector<Row> row_;
  std::array<std::vector<Slot>, 2> slots_;  // [sets][kWays]
  std::vector<int32_t> touched_;            // rows of this batch
  std::vector<int64_t> first_;              // [sets + 1] of each set in missing_
  std::vector<int32_t> missing_;
};

}  // namespace recsys_opt::replay
