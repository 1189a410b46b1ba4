#pragma once
// Where the lookups of one table go under a plan: which stripe of its rows, and which tier.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace recsys_opt::replay {

class TableCounter {
 public:
  // rank      [rows] of each row, 0 the hottest; a row of rank r is row r / stripes of stripe
  //           r % stripes
  // hot_rows  [parts][stripes] in the fast tier, the first ones of the stripe. The parts are the
  //           table's column shards, or its copies.
  //
  // The lookups of a stripe are counted by how many of the parts have the row in their slow tier:
  // `slots` counters in all, slow + (parts + 1) * stripe.
  template <class Rank>
  TableCounter(const Rank* rank, int64_t rows, int64_t stripes, int64_t parts,
               const int64_t* hot_rows);
  ~TableCounter();
  TableCounter(const TableCounter&) = delete;
  TableCounter& operator=(const TableCounter&) = delete;

  int64_t rows() const { return rows_; }
  int64_t slots() const { return slots_; }
  // From here on, every row is a new one.
  void next_round();
  // Adds the lookups of `count` ids to lookups[slots], and those of rows that this round has not
  // seen to distinct[slots]. Returns the place of the first id that is not a row, where it stops,
  // or -1.
  template <class Id>
  int64_t count(const Id* ids, int64_t count, int64_t* lookups, int64_t* distinct);

 private:
  struct Row {
    uint32_t slot;
    uint32_t round;  // in which it was seen last
  };

  int64_t rows_, slots_;
  uint32_t round_ = 1;
  Row* row_;  // [rows]
};

}  // namespace recsys_opt::replay
