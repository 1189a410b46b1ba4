// What the solver is given: tables with the rates of their rows, the ways in which each can be cut,
// and the devices.
//
// A device's time in an iteration is the sum over its pieces of
//     communication + lookups * read[tier] + distinct rows * update[tier],
// and each piece chooses how many of its rows, hottest first, are in the device's fast tier. A row
// that is looked up `rate` times in an iteration (Poisson) is read `rate` times and updated with
// the probability 1 - exp(-rate): what a byte of the fast tier saves falls with the rate, so one
// price per byte splits all pieces of a device (RecShard, ASPLOS 2022, solves a MILP for it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace recsys_opt::planner {

// Rows of a table by rank, in cells of equal rate, hottest first. Sums over the first i cells.
struct Curve {
  std::vector<double> rate;      // [K] lookups of one row in an iteration, not increasing
  std::vector<double> rows;      // [K + 1]
  std::vector<double> lookups;   // [K + 1] in an iteration
  std::vector<double> distinct;  // [K + 1] expected rows touched in an iteration

  Curve(const double* cell_rows, const double* cell_lookups, int64_t cells);
  // The rows whose rank leaves the remainder s when divided by k.
  Curve stripe(int64_t s, int64_t k) const;
  // With so many rows of each cell.
  Curve part(const double* rows) const;
  int64_t cells() const { return static_cast<int64_t>(rate.size()); }
  // Cells whose rate is at least `least`.
  int64_t cells_at_least(double least) const;
};

enum class Place : int32_t {
  kAny = 0,         // every piece on any device, at most one piece of a table on each
  kNode = 1,        // one piece on each device of one node
  kEverywhere = 2,  // one piece on each device
};

enum class Tiers : int32_t { kSplit = 0, kFast = 1, kSlow = 2 };

// One way to cut a table. Its pieces cost the same, but for the hottest rows: of k stripes the
// first has the hottest row, the last the k-th hottest. The search counts them one by one, the
// pattern bound each as the last, the pooled bound as their average.
struct Option {
  int32_t table;
  Place place;
  int32_t pieces;
  Tiers tiers;
  double parts;                     // a piece has 1 / parts of the table's rows, of every rate
  double bytes_per_row;             // of a piece, optimizer state included
  double read_fast, read_slow;      // seconds of a lookup, its id's way included
  double update_fast, update_slow;  // seconds of a distinct row
  double communication;             // seconds of a piece
  int32_t cost_class;  // options of one class have equal bytes_per_row, read and update
};

struct Devices {
  int32_t nodes, per_node;
  std::vector<double> fast_bytes;   // [devices]
  std::vector<double> total_bytes;  // [devices] of both tiers
  int32_t count() const { return nodes * per_node; }
};

struct Problem {
  std::vector<Curve> tables;
  std::vector<Option> options;
  std::vector<int32_t> first_option;         // [tables + 1]; a table's options are consecutive
  std::vector<std::vector<int32_t>> pinned;  // [tables] devices that may hold it; empty: any
  Devices devices;
  double rows(const Option& option) const {
    return tables[option.table].rows.back() / option.parts;
  }
  double bytes(const Option& option) const { return rows(option) * option.bytes_per_row; }
};

// A piece under a split: what it takes in the fast tier and how long it takes.
struct Split {
  double fast_bytes, seconds;
};

// With the first `cells` cells in the fast tier, of a piece with the rows of `curve`, or with one
// of every `parts` of them.
Split split_curve(const Curve& curve, const Option& option, int64_t cells, double parts = 1);
// With `fast_bytes` in the fast tier; the last cell is cut.
double seconds_at_bytes(const Curve& curve, const Option& option, double fast_bytes,
                        double parts = 1);
// Seconds that a byte of the fast tier saves when it holds a row of this rate.
double saving(const Option& option, double rate);
// The rate from which on a row is worth `price` seconds a byte (0: all are, infinity: none is).
double rate_at_price(const Option& option, double price);

// rate_at_price of each cost class, for one price.
class PricedClasses {
 public:
  explicit PricedClasses(const Problem& problem);
  void set(double price);
  double price() const { return price_; }
  std::size_t classes() const { return rate_.size(); }
  // The rate from which on rows of the option are fast.
  double rate(const Option& option) const { return rate_[option.cost_class]; }
  Split split(const Option& option) const;
  // Of a piece with the rows of `curve`.
  Split split(const Option& option, const Curve& curve, double parts = 1) const;
  // Communication, seconds and price * fast bytes.
  double weight(const Split& split) const {
    return split.seconds + (price_ > 0 ? price_ * split.fast_bytes : 0.0);
  }

 private:
  const Problem& problem_;
  std::vector<const Option*> example_;  // of each class
  std::vector<double> rate_;
  double price_ = 0;
};

}  // namespace recsys_opt::planner
