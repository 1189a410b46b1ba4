#include "serving/adaptive.h"

#include <cmath>
#include <functional>
#include <limits>

namespace recsys_opt::serving {

namespace {

// Shares of the time that queries are given, and ratios.
constexpr double kSafe = .9;         // what plans use of it: times vary
constexpr double kCorrection = 1.5;  // in which a backlog that is too large is to be gone
constexpr double kMemory = 50;       // over which arrivals are averaged
constexpr double kRefused = 5;       // in which what was refused is forgotten
constexpr double kInterval = .05;    // at least so far apart the average is brought up to date
constexpr double kLongest = .5;      // a batch; what arrives as it starts waits for its end, and
                                     // then needs a batch of its own
constexpr double kMargin = .5;       // standard deviations of what arrives
constexpr double kSlow = 1.3;        // a slow batch over the mean, to plan with: some are slower
constexpr double kEfficient = .95;   // of the best rate: less is waste in an overload
constexpr double kEnough = .85;      // of the best rate: batches that risk more are no larger

// Where between two prices at which a device changes its path, counted from the lower one.
constexpr double kEdge = .02;

constexpr double kNever = std::numeric_limits<double>::infinity();

// The most samples of a batch that is to take at most `seconds`: as many as ninety-nine of a
// hundred batches do in that time. Where these are too few to be efficient, since rare batches take
// long, as many as do it on average and somewhat slower.
int64_t most_planned(const ServiceTimes& times, double seconds) {
  const int64_t sure = times.most_within(seconds), more = times.most_expected(seconds / kSlow);
  return more > sure ? std::max(sure, times.least_efficient(more, kEnough)) : sure;
}

}  // namespace

void ArrivalRate::advance(double now) {
  if (!begun_) {
    begun_ = true;
    first_ = last_ = now;
    return;
  }
  const double passed = now - last_;
  if (passed < memory_ * (kInterval / kMemory)) return;
  const double newest = 1 - std::exp(-passed / std::min(memory_, now - first_));
  rate_ += newest * (samples_ / passed - rate_);
  square_rate_ += newest * (squares_ / passed - square_rate_);
  samples_ = squares_ = 0;
  last_ = now;
}

Adaptive::Adaptive(double sla, bool admit) : sla_(sla), admit_(admit), arrivals_(kMemory * sla) {}

void Adaptive::begin(const Core& core) {
  arrivals_ = ArrivalRate(kMemory * sla_);
  refused_ = 0;
  refresh(core);
}

double Adaptive::best_rate(const Core& core, int32_t p) const {
  const Path& path = core.fleet().paths()[p];
  if (core.available(path.device) == 0) return 0;
  const double slowness = core.slowness(path.device);
  int64_t most = most_planned(path.times, kLongest * sla_ / slowness);
  if (most == 0) most = most_planned(path.times, sla_ / slowness);
  if (most == 0) most = path.times.most_expected(sla_ / slowness);
  return path.times.best_rate(most) / slowness;
}

// As long as leaves what arrives meanwhile the time for a batch of its own.
Adaptive::Full Adaptive::full_batch(const Core& core, int32_t device) const {
  if (core.available(device) == 0) return {};
  const ServiceTimes& times = core.fleet().paths()[fastest_[device]].times;
  const double slowness = core.slowness(device);
  int64_t size = most_planned(times, kSafe * sla_ / 2 / slowness);
  if (size == 0) size = times.most_expected(kSafe * sla_ / 2 / slowness);
  if (size == 0) size = times.most_expected(kSafe * sla_ / slowness);
  if (size == 0) return {};
  const double slow = std::min(times.high(size), kSlow * times.mean(size));
  return {size, slow * slowness, 1 / (times.mean(size) * slowness)};
}

void Adaptive::refresh(const Core& core) {
  epoch_ = core.epoch();
  const std::vector<Path>& paths = core.fleet().paths();
  const std::vector<Device>& devices = core.fleet().devices();
  rates_.resize(paths.size());
  for (std::size_t p = 0; p < paths.size(); ++p) {
    rates_[p] = best_rate(core, static_cast<int32_t>(p));
  }
  fastest_.clear();
  full_.clear();
  double most = -1;
  for (std::size_t d = 0; d < devices.size(); ++d) {
    fastest_.push_back(
        *std::max_element(devices[d].paths.begin(), devices[d].paths.end(),
                          [&](int32_t p, int32_t q) { return rates_[p] < rates_[q]; }));
    const double rate = rates_[fastest_[d]] * core.available(static_cast<int32_t>(d));
    if (rate > most) most = rate, main_ = static_cast<int32_t>(d);
    full_.push_back(full_batch(core, static_cast<int32_t>(d)));
  }
  find_steps(core);
}

void Adaptive::find_steps(const Core& core) {
  const std::vector<Path>& paths = core.fleet().paths();
  // Prices at which a device changes its path: where two are worth the same, or one nothing.
  std::vector<double> prices;
  for (const Device& device : core.fleet().devices()) {
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
    for (std::size_t d = 0; d < fastest_.size(); ++d) {
      double worth = 0, best = 0;
      for (const int32_t p : core.fleet().devices()[d].paths) {
        const double value = rates_[p] * (paths[p].accuracy - price);
        if (value > worth) worth = value, best = rates_[p];
      }
      rate += best * core.available(static_cast<int32_t>(d));
    }
    const double edge = below + kEdge * (prices[i] - below);
    if (steps_.empty() || rate > steps_.back().rate) {
      steps_.push_back({price, edge, rate});
    } else {
      steps_.back().least = edge;
    }
  }
}

int32_t Adaptive::arrive(const Core& core, int32_t size, double deadline) {
  arrivals_.add(size);
  if (epoch_ != core.epoch()) refresh(core);
  if (!admit_ || in_time(core, size, deadline)) return core.shared_lane();
  refused_ = refused(core) + size;
  refused_at_ = core.now();
  return -1;
}

// Samples refused of late.
double Adaptive::refused(const Core& core) const {
  return refused_ * std::exp(-(core.now() - refused_at_) / (kRefused * sla_));
}

double Adaptive::least_time(const Core& core, int32_t count) const {
  double least = kNever;
  for (const Path& path : core.fleet().paths()) {
    if (core.available(path.device) == 0) continue;
    const int64_t size = std::min<int64_t>(count, path.times.max_size());
    least = std::min(least, path.times.mean(size) * core.slowness(path.device));
  }
  return least;
}

// Each worker first ends its batch, then does full ones, the last of them perhaps a slow one: what
// fits until the deadline must be what waits already, and the query. Only where no full one fits, a
// smaller one counts.
bool Adaptive::in_time(const Core& core, int32_t size, double deadline) const {
  const double end = core.now() + kSafe * (deadline - core.now());
  int64_t left = core.waiting_samples() + size;
  for (const int32_t d : core.order()) {  // those that do the most first
    const Full& full = full_[d];
    if (full.size == 0) continue;
    const Device& device = core.fleet().devices()[d];
    for (int32_t w = device.first_worker; w < device.first_worker + device.workers; ++w) {
      if (!core.worker_available(w)) continue;
      const double time = end - core.free_at(w);
      if (time >= full.slow) {
        left -= (1 + static_cast<int64_t>((time - full.slow) * full.per_second)) * full.size;
      } else if (time > 0) {
        const ServiceTimes& times = core.fleet().paths()[fastest_[d]].times;
        left -= times.most_expected(time / (kSlow * core.slowness(d)));
      }
      if (left <= 0) return true;
    }
  }
  return false;
}

void Adaptive::give_up(Core& core, int32_t device) const {
  const Lane& lane = core.lane(core.shared_lane());
  while (!lane.empty() && core.now() + least_time(core, lane.head().count) > lane.head().deadline) {
    core.give_up(lane.head().slot);
  }
  // In an overload also what could be in time, but only in batches so small that more would be
  // late for it. Which these are, the device says that serves the most.
  if (device != main_) return;
  const double slowness = core.slowness(device);
  while (!lane.empty() && static_cast<double>(lane.samples()) > kLongest * sla_ * most_rate()) {
    const double left = lane.head().deadline - core.now();
    double rate = 0;
    for (const int32_t p : core.fleet().devices()[device].paths) {
      const ServiceTimes& times = core.fleet().paths()[p].times;
      rate = std::max(rate, times.best_rate(most_planned(times, left / slowness)));
    }
    if (rate >= kEfficient * rates_[fastest_[device]] * slowness) return;
    core.give_up(lane.head().slot);
  }
}

double Adaptive::backlog_to_keep() const {
  if (arrivals_.rate() <= 0) return 0;
  // T = x^2, and x^2 + b x = c.
  const double b = kMargin * std::sqrt(arrivals_.squares()) / arrivals_.rate();
  const double c = kSafe * sla_ * kLongest;
  const double x = (std::sqrt(b * b + 4 * c) - b) / 2;
  return arrivals_.rate() * x * x;
}

Adaptive::Price Adaptive::price(const Core& core) const {
  const Lane& lane = core.lane(core.shared_lane());
  const double keep = backlog_to_keep();
  // Where fewer arrive than of late, the head is older than what waits behind it says.
  const double age = core.now() - core.query(lane.head().slot).arrival;
  // And what was refused would wait, were there room.
  const double waiting =
      refused(core) + std::max(static_cast<double>(lane.samples()), arrivals_.rate() * age);
  const double rate = arrivals_.rate() + std::max(0.0, waiting - keep) / (kCorrection * sla_);
  std::size_t i = 0;
  while (i + 1 < steps_.size() && steps_[i].rate < rate) ++i;
  if (waiting <= keep && i > 0 && steps_[i].rate > rate) return {steps_[i - 1].least, true};
  return {steps_[i].price, false};
}

// A batch that takes T seconds leaves what arrives meanwhile, and what it did not take, to be
// served after it, as fast as the fleet can.
double Adaptive::longest_batch(const Core& core, int32_t p) const {
  const Lane& lane = core.lane(core.shared_lane());
  const Path& path = core.fleet().paths()[p];
  const double busy = std::min(1.0, arrivals_.rate() / most_rate());
  const double alone = kSafe * sla_ / (1 + busy);
  const auto left = static_cast<double>(
      lane.samples() - most_planned(path.times, alone / core.slowness(path.device)));
  // On the fastest path a smaller batch gains nothing.
  if (left <= 0 || fastest_[path.device] == p) return alone;
  return (kSafe * sla_ - left / most_rate()) / (1 + busy);
}

bool Adaptive::elsewhere(const Core& core, int32_t device, double price) const {
  const Waiting& head = core.lane(core.shared_lane()).head();
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

double Adaptive::latest_start(const Core& core, int32_t device) const {
  const Waiting& head = core.lane(core.shared_lane()).head();
  double least = kNever;
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const ServiceTimes& times = core.fleet().paths()[p].times;
    least = std::min(least, times.high(std::min<int64_t>(head.count, times.max_size())));
  }
  const double latest = head.deadline - least * core.slowness(device);
  return latest > core.now() ? latest : kNever;
}

// A head that may be late must not have a batch for itself while others wait: they would be in
// danger next, and each after them. The path and the size are taken of which the most samples a
// second are in time, were all as urgent as the head.
Decision Adaptive::save_most(const Core& core, int32_t device) const {
  const Lane& lane = core.lane(core.shared_lane());
  const double left = (lane.head().deadline - core.now()) / core.slowness(device);
  Decision decision;
  double most = 0;
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const ServiceTimes& times = core.fleet().paths()[p].times;
    const int64_t all = std::min(lane.samples(), times.max_size());
    for (int64_t size = std::min<int64_t>(lane.head().count, all);;
         size = std::min(2 * size, all)) {
      const double rate =
          static_cast<double>(size) * times.share_within(size, left) / times.mean(size);
      if (rate > most) {
        most = rate;
        decision = {p, core.shared_lane(), size, kNever};
      }
      if (size == all) break;
    }
  }
  // Nothing can be in time here: the head then, as little late as can be.
  return most > 0 ? decision : serve_head(core, device);
}

Decision Adaptive::serve_head(const Core& core, int32_t device) const {
  const Waiting& head = core.lane(core.shared_lane()).head();
  const double left = head.deadline - core.now();
  Decision decision;
  double accuracy = -1, least = kNever;
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const Path& path = core.fleet().paths()[p];
    const int64_t size = std::min<int64_t>(head.count, path.times.max_size());
    const double time = path.times.high(size) * core.slowness(device);
    const bool better = time <= left ? path.accuracy > accuracy : accuracy < 0 && time < least;
    if (!better) continue;
    decision = {p, core.shared_lane(), size, kNever};
    least = time;
    if (time <= left) accuracy = path.accuracy;
  }
  return decision;
}

Decision Adaptive::start(Core& core, int32_t worker) {
  if (epoch_ != core.epoch()) refresh(core);
  arrivals_.advance(core.now());
  const Lane& lane = core.lane(core.shared_lane());
  const int32_t device = core.fleet().device_of(worker);
  give_up(core, device);
  if (lane.empty() || steps_.empty()) return {};

  const auto [price, slower] = this->price(core);
  const double slowness = core.slowness(device);
  const double left = lane.head().deadline - core.now();
  Decision best;
  double most = 0;
  bool sure = false;
  for (const int32_t p : core.fleet().devices()[device].paths) {
    const Path& path = core.fleet().paths()[p];
    // What is too long for the device is left to another, where one can do it.
    const int64_t head = std::min<int64_t>(lane.head().count, path.times.max_size());
    if (path.times.high(head) * slowness > left) continue;
    sure = true;
    const double longest = std::min(left, longest_batch(core, p));
    const int64_t size =
        std::min(lane.samples(), std::max(head, most_planned(path.times, longest / slowness)));
    // A backlog that is to grow is small yet: its batches speak for paths that are fast with small
    // ones, and it would never grow.
    const double rate =
        slower ? rates_[p] : static_cast<double>(size) / (path.times.mean(size) * slowness);
    const double value = rate * (path.accuracy - price);
    if (value >= most) {
      most = value;
      best = {p, core.shared_lane(), size, kNever};
    }
  }
  if (best.path >= 0) return best;
  if (elsewhere(core, device, price)) return {-1, 0, 0, latest_start(core, device)};
  return sure ? serve_head(core, device) : save_most(core, device);
}

}  // namespace recsys_opt::serving
