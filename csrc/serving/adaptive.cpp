#include "serving/adaptive.h"

#include <cmath>
#include <limits>

namespace recsys_opt::serving {

namespace {

// The share of the time that queries are given in which the backlog is to be gone.
constexpr double kPatience = .35;
// A batch takes at most this share of it: what arrives as it starts waits for its end, and then
// needs a batch of its own.
constexpr double kBatch = .5;

constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

void Adaptive::begin(const Core& core) {
  refresh(core);
}

double Adaptive::best_rate(const Core& core, int32_t p) const {
  const Path& path = core.fleet().paths()[p];
  if (core.available(path.device) == 0) return 0;
  const double slowness = core.slowness(path.device);
  int64_t most = path.times.most_within(kBatch * sla_ / slowness);
  if (most == 0) most = path.times.most_within(sla_ / slowness);
  double best = 0;
  for (int64_t m = 1; m <= most; ++m) {
    best = std::max(best, static_cast<double>(m) / path.times.mean(m));
  }
  return best / slowness;
}

void Adaptive::refresh(const Core& core) {
  epoch_ = core.epoch();
  const std::vector<Path>& paths = core.fleet().paths();
  const std::vector<Device>& devices = core.fleet().devices();
  rates_.resize(paths.size());
  std::size_t largest = 1;
  for (std::size_t p = 0; p < paths.size(); ++p) {
    rates_[p] = best_rate(core, static_cast<int32_t>(p));
    largest = std::max<std::size_t>(largest, paths[p].times.max_size());
  }
  least_time_.assign(largest + 1, kNever);
  for (const Path& path : paths) {
    if (core.available(path.device) == 0) continue;
    for (std::size_t m = 1; m <= largest; ++m) {
      const auto size = std::min(static_cast<int64_t>(m), path.times.max_size());
      least_time_[m] = std::min(least_time_[m], path.times.mean(size) * core.slowness(path.device));
    }
  }
  // Prices at which a device changes its path: where two are worth the same, or one nothing.
  std::vector<double> prices;
  for (const Device& device : devices) {
    for (const int32_t p : device.paths) {
      if (rates_[p] <= 0) continue;
      prices.push_back(paths[p].accuracy);
      for (const int32_t q : device.paths) {
        if (rates_[q] <= rates_[p]) continue;
        prices.push_back((rates_[q] * paths[q].accuracy - rates_[p] * paths[p].accuracy) /
                         (rates_[q] - rates_[p]));
      }
    }
  }
  std::sort(prices.begin(), prices.end(), std::greater<>());
  steps_.clear();
  for (std::size_t i = 0; i < prices.size(); ++i) {
    const double below = i + 1 < prices.size() ? prices[i + 1] : prices[i] - 1;
    if (prices[i] - below < 1e-12) continue;
    const double price = (prices[i] + below) / 2;
    double rate = 0;
    for (std::size_t d = 0; d < devices.size(); ++d) {
      double worth = 0, best = 0;
      for (const int32_t p : devices[d].paths) {
        const double value = rates_[p] * (paths[p].accuracy - price);
        if (value > worth) worth = value, best = rates_[p];
      }
      rate += best * core.available(static_cast<int32_t>(d));
    }
    if (steps_.empty() || rate > steps_.back().rate) steps_.push_back({price, rate});
  }
}

double Adaptive::price(double rate) const {
  for (const Step& step : steps_) {
    if (step.rate >= rate) return step.price;
  }
  return steps_.empty() ? 0.0 : steps_.back().price;
}

int32_t Adaptive::arrive(const Core& core, int32_t size, double deadline) {
  if (admit_) {
    if (epoch_ != core.epoch()) refresh(core);
    const double left = deadline - core.now();
    const double work =
        static_cast<double>(core.waiting_samples()) / most_rate() + least_time(size);
    if (work > left * kBatch) {
      double free = kNever;
      for (int32_t w = 0; w < core.fleet().workers(); ++w) {
        free = std::min(free, core.free_at(w) - core.now());
      }
      if (!(work + free <= left)) return -1;
    }
  }
  return core.shared_lane();
}

bool Adaptive::elsewhere(const Core& core, int32_t device, double price,
                         const Waiting& head) const {
  const std::vector<Path>& paths = core.fleet().paths();
  for (std::size_t p = 0; p < paths.size(); ++p) {
    const int32_t d = paths[p].device;
    if (d == device || rates_[p] <= 0 || paths[p].accuracy < price) continue;
    const int64_t size = std::min<int64_t>(head.count, paths[p].times.max_size());
    const double time = paths[p].times.high(size) * core.slowness(d);
    const Device& other = core.fleet().devices()[d];
    for (int32_t w = other.first_worker; w < other.first_worker + other.workers; ++w) {
      if (core.free_at(w) + time <= head.deadline) return true;
    }
  }
  return false;
}

Decision Adaptive::last_resort(const Core& core, int32_t device, const Waiting& head) const {
  Decision decision;
  double least = kNever;
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const ServiceTimes& times = core.fleet().paths()[p].times;
    const int64_t size = std::min<int64_t>(head.count, times.max_size());
    const double time = times.high(size) * core.slowness(device);
    if (time < least) {
      least = time;
      const double latest = head.deadline - time;
      decision = {p, core.shared_lane(), size, latest > core.now() ? latest : kNever};
    }
  }
  return decision;
}

Decision Adaptive::start(Core& core, int32_t worker) {
  if (epoch_ != core.epoch()) refresh(core);
  const Lane& lane = core.lane(core.shared_lane());
  const int32_t device = core.fleet().device_of(worker);
  const double slowness = core.slowness(device);
  while (!lane.empty() && core.now() + least_time(lane.head().count) > lane.head().deadline) {
    core.give_up(lane.head().slot);
  }
  if (lane.empty()) return {};

  const std::vector<Path>& paths = core.fleet().paths();
  const double price = this->price(lane.rate() / kPatience);
  const double cap = kBatch * sla_;
  Decision best;
  double most = -kNever;
  bool in_time = false;  // some path of the device serves the head in time
  const double left = lane.head().deadline - core.now();
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const ServiceTimes& times = paths[p].times;
    const int64_t whole = std::min<int64_t>(lane.head().count, times.max_size());
    if (times.high(whole) * slowness > left) continue;
    in_time = true;
    const int64_t size = std::min(
        lane.samples(), std::max(whole, times.most_within(std::min(left, cap) / slowness)));
    const double value =
        static_cast<double>(size) * (paths[p].accuracy - price) / (times.mean(size) * slowness);
    if (value > most) {
      most = value;
      best = {p, core.shared_lane(), size, kNever};
    }
  }
  if (most >= 0) return best;
  const Decision resort = last_resort(core, device, lane.head());
  if (elsewhere(core, device, price, lane.head())) return {-1, 0, 0, resort.wake};
  // Nobody else will: the most accurate path that is in time, or the one that is late the least.
  if (!in_time) return resort;
  double accuracy = -1;
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const ServiceTimes& times = paths[p].times;
    const int64_t whole = std::min<int64_t>(lane.head().count, times.max_size());
    if (times.high(whole) * slowness > left || paths[p].accuracy <= accuracy) continue;
    accuracy = paths[p].accuracy;
    best = {p, core.shared_lane(), whole, kNever};
  }
  return best;
}

}  // namespace recsys_opt::serving
