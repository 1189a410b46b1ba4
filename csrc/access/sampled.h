// Counters of a table whose rows are too many for a counter each: exact counts of a random part of
// the rows, and the rows that are looked up most.
#pragma once

#include <cstdint>
#include <vector>

#include "access/counters.h"

namespace recsys_opt::access {

// A row is sampled if the first `level` bits of its hash are 0. While all rows seen fit, level is 0
// and the counts are those of all rows. When they do not fit any more the level rises, and half of
// them are forgotten: those that stay have been counted from the first lookup on.
//
// Beside them, from then on, a Misra-Gries summary of all lookups: when it is full, the median of
// its counts is taken from all of them. A row was looked up at least as often as it says, and at
// most `offset` times more (Anderson et al. 2017, "A High-Performance Algorithm for Identifying
// Frequent Items in Data Streams").
class SampledCounters {
 public:
  // sample_slots takes 24 bytes each, head_slots 16.
  SampledCounters(int64_t rows, int64_t sample_slots, int64_t head_slots);

  int64_t rows() const { return rows_; }
  uint64_t lookups(bool late) const { return lookups_[late]; }
  int level() const { return level_; }
  uint64_t offset() const { return offset_; }

  // Counts ids in one part of the time; the position of the first outside the table, or -1.
  int64_t add(const Ids& ids, bool late);

  struct Row {
    int64_t id;
    uint64_t early, late;  // exact, of a sampled row; else 0
    uint64_t least;        // of a row in the summary: at least so many lookups; else 0
  };
  // All rows known: first the head, of which the summary proves more than `offset` lookups, then
  // the others; each by descending estimate and ascending id. It is all that `merge` needs.
  std::vector<Row> known() const;
  // How many rows the head has: 0 at level 0, where all counts are exact.
  int64_t head_rows() const;
  // Adds what another one knew.
  void merge(int level, uint64_t offset, uint64_t early, uint64_t late,
             const std::vector<Row>& rows);

  // The best knowledge of a row's lookups: exact of a sampled row. A row of the head has been in
  // the summary almost from the start, so that it has lost about all of `offset`.
  uint64_t estimate(const Row& row) const;
  bool is_sampled(int64_t id) const;

 private:
  struct Counted {
    uint64_t key = 0;  // id + 1; 0: empty
    uint64_t count[2] = {0, 0};
  };
  struct Heavy {
    uint64_t key = 0;
    uint64_t least = 0;
  };
  bool is_head(const Row& row) const { return level_ > 0 && row.least > offset_; }
  size_t sample_slot(uint64_t hash) const;
  size_t head_slot(uint64_t hash) const;
  void count_sampled(uint64_t key, uint64_t hash, uint64_t early, uint64_t late);
  void count_heavy(uint64_t key, uint64_t hash, uint64_t count);
  void raise_level();
  void start_head();
  void purge_head();

  int64_t rows_;
  int level_ = 0;
  uint64_t lookups_[2] = {0, 0};
  uint64_t offset_ = 0;
  size_t sampled_ = 0, heavy_ = 0;
  std::vector<Counted> sample_;
  std::vector<Heavy> head_;
};

}  // namespace recsys_opt::access
