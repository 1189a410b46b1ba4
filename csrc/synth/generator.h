// Criteo-like rows, each a pure function of (model, seed, row). The model is built by
// recsys_opt/data/synth_model.py, which says what the numbers mean and where they come from.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "synth/step_table.h"

namespace recsys_opt::synth {

inline constexpr int kMaxDense = 13;
inline constexpr int kMaxSparse = 26;
inline constexpr int kFactors = 4;       // of the integers' normal copula
inline constexpr int kLatent = 4;        // dimension of the ids' interaction vectors
inline constexpr int kQuantiles = 2048;  // steps of an integer column's quantile function
inline constexpr int kChunk = 512;       // rows made together, column by column
inline constexpr int64_t kBins = 1 << 16;
inline constexpr float kLogitLimit = 16.0f;

inline constexpr int32_t kInOrder = -1;    // the id falls at its place
inline constexpr int32_t kScattered = -2;  // at its place, or anywhere before scatter_end
inline constexpr int32_t kUnlinked =
    -3;  // too frequent for any of the child's ids: drawn from `marginal`

// A run of ids [first, first + width) that are equally likely.
struct Cell {
  uint32_t first;
  uint32_t width;
};

// A categorical column. Inside, ids start at 1, by falling frequency, and 0 is "missing". What is
// written has no 0 for "missing" in a column that never misses: there the most frequent id is 0.
struct SparseColumn {
  uint32_t num_embeddings = 0;
  uint32_t ids = 0;    // larger ones are folded into 1 .. ids
  uint32_t shift = 0;  // subtracted when written: 1 where the column is never missing
  std::vector<Cell> cells;
  StepTable marginal;

  // With probability `strength` the id is a function of the parent's id, else drawn from
  // `marginal`.
  int parent = -1;
  double strength = 0;
  // Per cell of the parent: this column's cell (>= 0), or what to do (negative).
  std::vector<int32_t> assigned;
  std::vector<double>
      place;  // [parent cells] where the cell's first id falls in [0, 1) of `residual`
  std::vector<double> place_step;  // [parent cells] places per parent id
  // Of the parent's very rare ids (kScattered), the share that falls in order on this column's very
  // rare ids; the others are scattered over its other ids, places [0, scatter_end).
  double kept_rare = 1;
  double scatter_end = 1;
  StepTable residual;  // this column less what the frequent parents take

  // Drift, for ids drawn from `marginal`.
  std::vector<float> partner_odds;  // [cells] swap of cell 2j and 2j + 1, see drift_cell
  double fleeting = 0;              // share of a wide cell's draws that stay near the row's time
  double window = 1;                // share of the period for which a fleeting id lives

  float effect = 0;       // standard deviation of the ids' own effect on the logit
  float interaction = 0;  // scale of the ids' interaction vectors
};

struct DenseColumn {
  std::vector<int32_t> quantiles;          // [kQuantiles + 1]
  std::vector<float> effects;              // [kQuantiles] on the logit, equal for equal values
  float missing_effect = 0;                // that of 0, from which a reader cannot tell it
  std::array<float, kFactors> loadings{};  // of the common factors
  float noise = 1;                         // sqrt(1 - sum of squares of all loadings)
  int tied_to = -1;                        // sparse column whose id moves this column
  float tie = 0;                           // loading of that id's effect
};

struct Pattern {
  uint64_t missing;  // bit j: integer column j; bit 13 + c: categorical column c
};

// Labels by true logit, in kBins equal bins of [-kLogitLimit, kLogitLimit): enough for the AUC and
// the logloss of the true probabilities (recsys_opt/data/bayes.py says how exactly).
struct Scores {
  std::vector<int64_t> positives = std::vector<int64_t>(kBins);
  std::vector<int64_t> negatives = std::vector<int64_t>(kBins);

  void merge(const Scores& other);
};

// Where rows go; a null pointer is not written. Row-major, first row first.
struct RowsOut {
  float* dense = nullptr;           // [n, dense columns], log(x + 1), missing and negatives 0
  int32_t* sparse = nullptr;        // [n, sparse columns]
  int32_t* labels = nullptr;        // [n]
  double* probabilities = nullptr;  // [n]
  int32_t* integers = nullptr;      // [n, dense columns], kMissing where missing
};
inline constexpr int32_t kMissing = INT32_MIN;

// File descriptors of .npy files and where in them row 0 begins.
struct Files {
  int dense, sparse, labels;
  int64_t dense_offset, sparse_offset, labels_offset;
};

class Generator {
 public:
  Generator(int64_t total_rows, uint64_t seed, std::vector<DenseColumn> dense,
            std::vector<SparseColumn> sparse, std::vector<Pattern> patterns,
            StepTable pattern_table, float bias);

  int64_t total_rows() const { return total_rows_; }
  int dense_columns() const { return static_cast<int>(dense_.size()); }
  int sparse_columns() const { return static_cast<int>(sparse_.size()); }

  // Rows [start, stop) with `threads` threads.
  void rows(int64_t start, int64_t stop, int threads, const RowsOut& out) const;
  // Rows [start, stop) into files, and what the true probabilities achieve on them.
  Scores write(int64_t start, int64_t stop, int threads, const Files& files) const;

 private:
  struct Chunk;
  void chunk(int64_t start, int n, Chunk* work, const RowsOut& out, Scores* scores) const;
  void sparse_column(int c, int64_t start, int n, Chunk* work) const;
  void dense_rows(int64_t start, int n, Chunk* work, const RowsOut& out) const;
  void effects(int n, Chunk* work) const;
  void labels(int64_t start, int n, const Chunk& work, const RowsOut& out, Scores* scores) const;

  int64_t total_rows_;
  uint64_t seed_;
  std::vector<DenseColumn> dense_;
  std::vector<SparseColumn> sparse_;
  std::vector<Pattern> patterns_;
  StepTable pattern_table_;
  float bias_;
  std::vector<float> normal_;      // [4096] quantiles of the standard normal distribution
  std::vector<float> normal_cdf_;  // [4097] over [-6, 6]
  std::vector<float> log1p_;       // [8192] log(x + 1)
  std::vector<int> order_;         // of the sparse columns, parents first
  bool interactions_ = false;
};

}  // namespace recsys_opt::synth
