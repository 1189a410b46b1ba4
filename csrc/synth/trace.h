// Lookups of one embedding table: jagged batches of ids, each lookup a pure function of (table,
// batch, place).
#pragma once

#include <cstdint>
#include <vector>

#include "synth/step_table.h"

namespace recsys_opt::synth {

inline constexpr int kReuseBins = 7;  // touched 1, 2, 3-4, 5-8, 9-16, 17-32 and more times

class TraceTable {
 public:
  // Cells of `width` equally likely rows, hottest first; rows beyond them are never touched. Where
  // a row lies in the table has nothing to do with how hot it is.
  TraceTable(int64_t rows, uint64_t seed, uint64_t table, const std::vector<int64_t>& width,
             const std::vector<double>& mass, double coverage, double pooling_factor);

  int64_t rows() const { return rows_; }
  // Ids per sample: 0 with probability 1 - coverage, else geometric with mean pooling_factor.
  void lengths(int64_t batch, int64_t samples, int32_t* out) const;
  // The batch's first `count` ids.
  void values(int64_t batch, int64_t count, int64_t* out) const;

 private:
  int64_t rows_;
  uint64_t length_key_, value_key_;
  double coverage_, log_continue_;
  std::vector<int64_t> first_, width_;
  StepTable cells_;
  uint64_t multiplier_, shift_;  // hotness rank -> row: (rank * multiplier + shift) mod rows
};

// How many distinct ids occur how often, by bin; ids in [0, rows).
std::vector<int64_t> reuse_histogram(const int64_t* values, int64_t count, int64_t rows);

}  // namespace recsys_opt::synth
