#include "serving/fleet.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace recsys_opt::serving {

namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("serving: " + what);
}

}  // namespace

ServiceTimes::ServiceTimes(const int64_t* sizes, const double* quantiles, int64_t count,
                           int64_t per_size)
    : per_size_(per_size), quantiles_(quantiles, quantiles + count * per_size) {
  constexpr int64_t kMost = int64_t{1} << 20;
  require(count >= 1 && per_size >= 1, "service times need one size and one quantile at least");
  for (int64_t i = 0; i < count; ++i) {
    require(sizes[i] > (i ? sizes[i - 1] : 0), "sizes of service times must ascend from 1 on");
    for (int64_t k = 0; k < per_size; ++k) {
      const double t = quantiles[i * per_size + k];
      require(std::isfinite(t) && t > 0 && t >= (k ? quantiles[i * per_size + k - 1] : 0.0),
              "service times of size " + std::to_string(sizes[i]) +
                  " must be positive, finite and ascend with the quantile");
    }
  }
  require(sizes[count - 1] <= kMost, "the largest size of service times is " +
                                         std::to_string(sizes[count - 1]) + ", the limit " +
                                         std::to_string(kMost));
  const int64_t most = sizes[count - 1];
  weight_.resize(most + 1);
  mean_.resize(most + 1);
  high_.resize(most + 1);
  rate_upto_.resize(most + 1);
  int64_t row = 0;
  for (int64_t size = 0; size <= most; ++size) {
    while (row + 1 < count && size >= sizes[row + 1]) ++row;
    // Below the least profiled size a batch takes that one's time.
    const bool inside = row + 1 < count && size > sizes[row];
    const double next = inside ? static_cast<double>(size - sizes[row]) /
                                     static_cast<double>(sizes[row + 1] - sizes[row])
                               : 0.0;
    weight_[size] = {static_cast<int32_t>(row), inside ? static_cast<int32_t>(per_size) : 0, next};
    double sum = 0;
    for (int64_t k = 0; k < per_size; ++k) sum += between(size, k);
    mean_[size] = sum / static_cast<double>(per_size);
    high_[size] = quantile(size, .99);
    rate_upto_[size] =
        size ? std::max(static_cast<double>(size) / mean_[size], rate_upto_[size - 1]) : 0.0;
  }
  mean_upto_ = Upto(mean_);
  high_upto_ = Upto(high_);
}

ServiceTimes::Upto::Upto(const std::vector<double>& times) : longest_(times) {
  for (std::size_t size = 1; size < longest_.size(); ++size) {
    longest_[size] = std::max(longest_[size], longest_[size - 1]);
  }
  const std::size_t cells = longest_.size();
  per_second_ = static_cast<double>(cells) / longest_.back();
  begin_.resize(cells + 1);
  int32_t size = 0;
  for (std::size_t cell = 0; cell <= cells; ++cell) {
    // A little less than where the cell begins: what rounding puts into it is found, too.
    const double from = (static_cast<double>(cell) - 1e-6) / per_second_;
    while (size + 1 < static_cast<int32_t>(longest_.size()) && longest_[size + 1] <= from) ++size;
    begin_[cell] = size;
  }
}

int64_t ServiceTimes::Upto::most(double seconds) const {
  const auto max_size = static_cast<int64_t>(longest_.size()) - 1;
  if (!(seconds < longest_.back())) return max_size;
  int64_t size = begin_[static_cast<std::size_t>(std::max(0.0, seconds) * per_second_)];
  while (longest_[size + 1] <= seconds) ++size;
  return size;
}

double ServiceTimes::quantile(int64_t size, double q) const {
  const auto k = static_cast<int64_t>(std::floor(q * static_cast<double>(per_size_)));
  return between(size, std::clamp<int64_t>(k, 0, per_size_ - 1));
}

double ServiceTimes::share_within(int64_t size, double seconds) const {
  int64_t low = 0, high = per_size_;  // so many at least, at most
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (between(size, middle) <= seconds) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return static_cast<double>(low) / static_cast<double>(per_size_);
}

int64_t ServiceTimes::least_efficient(int64_t most, double share) const {
  const auto begin = rate_upto_.begin();
  return std::lower_bound(begin, begin + most, share * rate_upto_[most]) - begin;
}

int32_t Fleet::add_device(std::string name, int32_t workers) {
  require(workers >= 1 && workers <= 4096,
          "device " + name + " has " + std::to_string(workers) + " workers; it needs 1 to 4096");
  const auto device = static_cast<int32_t>(devices_.size());
  devices_.push_back({std::move(name), this->workers(), workers, {}});
  device_of_.insert(device_of_.end(), workers, device);
  return device;
}

int32_t Fleet::add_path(std::string name, int32_t device, double accuracy, ServiceTimes times) {
  require(device >= 0 && device < static_cast<int32_t>(devices_.size()),
          "path " + name + ": there is no device " + std::to_string(device));
  require(accuracy >= 0 && accuracy <= 1,
          "path " + name + ": accuracy " + std::to_string(accuracy) + "; it must be in 0 .. 1");
  const auto path = static_cast<int32_t>(paths_.size());
  paths_.push_back({std::move(name), device, accuracy, std::move(times)});
  devices_[device].paths.push_back(path);
  return path;
}

}  // namespace recsys_opt::serving
