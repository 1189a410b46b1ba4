// Devices, and the paths that serve a query on them, with the distribution of their times.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "random.h"

namespace recsys_opt::serving {

// How long a batch takes on a path, by its samples: quantiles at some sizes, linear in between.
class ServiceTimes {
 public:
  // sizes [count] ascending from 1 on or later; quantiles [count, per_size] seconds, ascending in
  // each row: equally likely times.
  ServiceTimes(const int64_t* sizes, const double* quantiles, int64_t count, int64_t per_size);

  int64_t max_size() const { return static_cast<int64_t>(mean_.size()) - 1; }
  // 1 <= size <= max_size().
  double mean(int64_t size) const { return mean_[size]; }
  // What ninety-nine of a hundred batches of this size take at most.
  double high(int64_t size) const { return high_[size]; }
  double quantile(int64_t size, double q) const;
  // Of the batches of this size, those that take at most `seconds`.
  double share_within(int64_t size, double seconds) const;
  double sample(int64_t size, Random& random) const {
    return between(size, random.below(per_size_));
  }
  // The most samples whose high() is at most `seconds`; 0: none.
  int64_t most_within(double seconds) const { return high_upto_.most(seconds); }
  // The most samples whose mean() is at most `seconds`; 0: none.
  int64_t most_expected(double seconds) const { return mean_upto_.most(seconds); }
  // Samples a second of the most efficient batch of at most so many samples; 0 for none.
  double best_rate(int64_t most) const { return rate_upto_[most]; }
  // The fewest samples of a batch with that share of best_rate(most).
  int64_t least_efficient(int64_t most, double share) const;

 private:
  double between(int64_t size, int64_t k) const {
    const Weight& w = weight_[size];
    const double* const row = &quantiles_[w.row * per_size_ + k];
    return row[0] + w.next * (row[w.step] - row[0]);
  }

  // The longest time of all sizes up to one, searched by time.
  class Upto {
   public:
    Upto() = default;
    explicit Upto(const std::vector<double>& times);  // [max_size + 1]
    int64_t most(double seconds) const;

   private:
    std::vector<double> longest_;  // [max_size + 1]
    // [cells + 1] the size at which the search for a time begins, by the cell of times it is in
    std::vector<int32_t> begin_;
    double per_second_ = 0;  // cells
  };

  struct Weight {
    int32_t row, step;  // the profiled size below, and how far the next one's quantiles are
    double next;
  };
  int64_t per_size_;
  std::vector<double> quantiles_;
  std::vector<Weight> weight_;  // [max_size + 1]
  std::vector<double> mean_;    // [max_size + 1]
  std::vector<double> high_;    // [max_size + 1]
  Upto mean_upto_, high_upto_;
  std::vector<double> rate_upto_;  // [max_size + 1] the largest size / mean() up to a size
};

struct Path {
  std::string name;
  int32_t device;
  double accuracy;
  ServiceTimes times;
};

struct Device {
  std::string name;
  int32_t first_worker, workers;
  std::vector<int32_t> paths;
};

class Fleet {
 public:
  int32_t add_device(std::string name, int32_t workers);
  int32_t add_path(std::string name, int32_t device, double accuracy, ServiceTimes times);

  const std::vector<Device>& devices() const { return devices_; }
  const std::vector<Path>& paths() const { return paths_; }
  int32_t workers() const { return static_cast<int32_t>(device_of_.size()); }
  int32_t device_of(int32_t worker) const { return device_of_[worker]; }

 private:
  std::vector<Device> devices_;
  std::vector<Path> paths_;
  std::vector<int32_t> device_of_;  // [workers]
};

}  // namespace recsys_opt::serving
