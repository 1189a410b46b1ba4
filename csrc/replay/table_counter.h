#pragma once
// Where the lookups of one table go under a plan: which stripe of its rows, and which tier.
#include <cstddef>
#include <cstdint>
#include <memory>

namespace recsys_opt::replay {

class TableCounter {
 public:
  // ranking   [ranked] different rows, hottest first; the rows that it leaves out follow in
  //           ascending order, as recsys_opt/ranks.py says. Rank r is place r / stripes of stripe
  //           r % stripes.
  // hot_rows  [parts][stripes] in the fast tier, the first ones of the stripe. The parts are the
  //           table's column shards, or its copies.
  //
  // The lookups of a stripe are counted by how many of the parts have the row in their slow tier:
  // `slots` counters in all, slow + (parts + 1) * stripe.
  //
  // Throws std::invalid_argument where the ranking names a row twice, or none of the table's.
  template <class Id>
  TableCounter(const Id* ranking, int64_t ranked, int64_t rows, int64_t stripes, int64_t parts,
               const int64_t* hot_rows);

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
  std::unique_ptr<Row, void (*)(void*)> row_;  // [rows]
};

}  // namespace recsys_opt::replay
