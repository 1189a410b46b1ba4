#include "serving/workload.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "exponential.h"

namespace recsys_opt::serving {

namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument("workload: " + what);
}

const Exponential exponential;

}  // namespace

SizeDistribution::SizeDistribution(std::vector<int64_t> values,
                                   const std::vector<double>& weights) {
  require(!values.empty() && values.size() == weights.size(),
          "sizes need as many weights as values, and one at least");
  double total = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    require(values[i] >= 1 && values[i] <= std::numeric_limits<int32_t>::max(),
            "size " + std::to_string(values[i]) + " is out of range; it must be 1 to 2^31 - 1");
    require(std::isfinite(weights[i]) && weights[i] >= 0, "weights must be finite, none negative");
    total += weights[i];
  }
  require(total > 0, "the weights of the sizes are all zero");
  const std::size_t n = values.size();
  std::vector<double> share(n);
  std::vector<std::size_t> small, large;
  cells_.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    mean_ += static_cast<double>(values[i]) * weights[i] / total;
    share[i] = weights[i] / total * static_cast<double>(n);
    cells_[i] = {1.0, static_cast<int32_t>(values[i]), static_cast<int32_t>(values[i])};
    (share[i] < 1 ? small : large).push_back(i);
  }
  while (!small.empty() && !large.empty()) {
    const std::size_t s = small.back(), l = large.back();
    small.pop_back();
    cells_[s].keep = share[s];
    cells_[s].other = static_cast<int32_t>(values[l]);
    share[l] -= 1 - share[s];
    if (share[l] < 1) {
      large.pop_back();
      small.push_back(l);
    }
  }
}

Workload::Workload(std::vector<double> rates, std::vector<double> dwell, std::vector<double> times,
                   std::vector<double> factors, double period, SizeDistribution sizes)
    : rates_(std::move(rates)),
      dwell_(std::move(dwell)),
      times_(std::move(times)),
      factors_(std::move(factors)),
      period_(period) {
  require(!rates_.empty() && rates_.size() == dwell_.size(), "rates need as many dwell times");
  double time = 0, queries = 0;
  for (std::size_t i = 0; i < rates_.size(); ++i) {
    require(std::isfinite(rates_[i]) && rates_[i] > 0,
            "rate " + std::to_string(rates_[i]) + "; it must be positive and finite");
    require(rates_.size() == 1 || (std::isfinite(dwell_[i]) && dwell_[i] > 0),
            "dwell " + std::to_string(dwell_[i]) + "; it must be positive and finite");
    // Each state follows each other equally often, so that all are entered equally often.
    time += rates_.size() == 1 ? 1 : dwell_[i];
    queries += rates_[i] * (rates_.size() == 1 ? 1 : dwell_[i]);
  }
  rate_ = queries / time;
  require(times_.size() == factors_.size(), "times need as many factors");
  if (!times_.empty()) {
    double area = 0;
    require(times_[0] == 0 && std::isfinite(period_) && times_.back() < period_,
            "times must begin at 0 and end before the period does");
    for (std::size_t i = 0; i < times_.size(); ++i) {
      require(i == 0 || times_[i] > times_[i - 1], "times must ascend");
      require(std::isfinite(factors_[i]) && factors_[i] >= 0,
              "factors must be finite, none negative");
      const double next = i + 1 < times_.size() ? times_[i + 1] : period_;
      area += (next - times_[i]) * (factors_[i] + factors_[(i + 1) % factors_.size()]) / 2;
    }
    most_ = *std::max_element(factors_.begin(), factors_.end());
    require(most_ > 0, "the factors are all zero");
    rate_ *= area / period_;
  }
  sizes_.push_back(std::move(sizes));
}

Workload::Workload(std::vector<double> arrivals, std::vector<int32_t> sizes)
    : recorded_(true), arrivals_(std::move(arrivals)), recorded_sizes_(std::move(sizes)) {
  require(!arrivals_.empty() && arrivals_.size() == recorded_sizes_.size(),
          "a trace needs as many sizes as arrivals, and one at least");
  for (std::size_t i = 0; i < arrivals_.size(); ++i) {
    require(std::isfinite(arrivals_[i]) && arrivals_[i] >= (i ? arrivals_[i - 1] : 0.0),
            "arrival " + std::to_string(i) + " is before the one before it, negative or no number");
    require(recorded_sizes_[i] >= 1, "the size of arrival " + std::to_string(i) + " is " +
                                         std::to_string(recorded_sizes_[i]) +
                                         "; it must be at least 1");
  }
  const double span = arrivals_.back() - arrivals_.front();
  rate_ = span > 0 ? static_cast<double>(arrivals_.size() - 1) / span : 0.0;
}

double Workload::factor(double time) const {
  const double at = std::fmod(time, period_);
  const auto next = std::upper_bound(times_.begin(), times_.end(), at) - times_.begin();
  const double from = times_[next - 1];
  const bool last = next == static_cast<std::ptrdiff_t>(times_.size());
  const double to = last ? period_ : times_[next];
  const double share = (at - from) / (to - from);
  return factors_[next - 1] + share * (factors_[last ? 0 : next] - factors_[next - 1]);
}

// Sizes have a stream of their own: the same queries come at another rate, and to another policy.
Workload::Stream::Stream(const Workload& workload, uint64_t seed)
    : workload_(workload), random_(Random::stream(seed, 0)), size_random_(Random::stream(seed, 1)) {
  change_ = workload.rates_.size() > 1 ? exponential(random_) * workload.dwell_[0]
                                       : std::numeric_limits<double>::infinity();
  if (!workload.recorded_) gap_ = 1 / (workload.rates_[0] * workload.most_);
}

bool Workload::Stream::next(Arrival& arrival) {
  if (workload_.recorded_) {
    if (index_ == workload_.arrivals_.size()) return false;
    arrival = {workload_.arrivals_[index_], workload_.recorded_sizes_[index_]};
    ++index_;
    return true;
  }
  while (true) {
    const double gap = exponential(random_) * gap_;
    if (time_ + gap > change_) {
      // Without memory: the wait for the next arrival begins anew in the next state.
      time_ = change_;
      const std::size_t others = workload_.rates_.size() - 1;
      state_ = (state_ + 1 + random_.below(others)) % (others + 1);
      gap_ = 1 / (workload_.rates_[state_] * workload_.most_);
      change_ += exponential(random_) * workload_.dwell_[state_];
      continue;
    }
    time_ += gap;
    if (workload_.times_.empty() || random_.uniform() * workload_.most_ < workload_.factor(time_)) {
      break;
    }
  }
  arrival = {time_, workload_.sizes_[0].draw(size_random_)};
  return true;
}

}  // namespace recsys_opt::serving
