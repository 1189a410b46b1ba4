// When queries arrive, and how large they are.
#pragma once

#include <cstdint>
#include <vector>

#include "random.h"

namespace recsys_opt::serving {

// Draws a value by weight in constant time (Walker's alias method).
class SizeDistribution {
 public:
  SizeDistribution(std::vector<int64_t> values, const std::vector<double>& weights);
  int32_t draw(Random& random) const {
    const uint64_t bits = random.next();
    const auto i =
        static_cast<std::size_t>(static_cast<unsigned __int128>(bits) * cells_.size() >> 64);
    // The bits below those that chose the cell.
    const double u = static_cast<double>((bits * cells_.size()) >> 11) * 0x1p-53;
    return u < cells_[i].keep ? cells_[i].value : cells_[i].other;
  }
  double mean() const { return mean_; }

 private:
  struct Cell {
    double keep;
    int32_t value, other;
  };
  std::vector<Cell> cells_;
  double mean_ = 0;
};

struct Arrival {
  double time;
  int32_t size;
};

// A Poisson process whose rate is that of a state, entered at random (MMPP), times a factor that
// varies over a period; or arrivals as recorded.
class Workload {
 public:
  // rates [states] queries a second, dwell [states] mean seconds in a state; the next one is any
  // other, all alike. times ascending from 0 within the period, factors [times], linear between
  // (and from the last back to the first).
  Workload(std::vector<double> rates, std::vector<double> dwell, std::vector<double> times,
           std::vector<double> factors, double period, SizeDistribution sizes);
  // arrivals ascending, sizes [arrivals].
  Workload(std::vector<double> arrivals, std::vector<int32_t> sizes);

  class Stream {
   public:
    Stream(const Workload& workload, uint64_t seed);
    // False: there are no more.
    bool next(Arrival& arrival);

   private:
    const Workload& workload_;
    Random random_, size_random_;
    double time_ = 0, change_;
    double gap_ = 0;  // mean seconds between arrivals, at the most there are in the state
    std::size_t state_ = 0, index_ = 0;
  };

  bool recorded() const { return recorded_; }
  int64_t queries() const { return static_cast<int64_t>(arrivals_.size()); }
  // Queries a second in the long run.
  double rate() const { return rate_; }

 private:
  double factor(double time) const;

  bool recorded_ = false;
  std::vector<double> rates_, dwell_, times_, factors_;
  double period_ = 0, most_ = 1, rate_ = 0;
  std::vector<SizeDistribution> sizes_;  // one, or none
  std::vector<double> arrivals_;
  std::vector<int32_t> recorded_sizes_;
};

}  // namespace recsys_opt::serving
