#include "serving/core.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

namespace recsys_opt::serving {

namespace {

// Of the newest batch in a device's slowness.
constexpr double kNewest = 1.0 / 8;
constexpr double kOutlier = 3;
// By how much the slowness must change to matter.
constexpr double kMatters = .1;

double throughput(const Fleet& fleet, const Device& device) {
  double best = 0;
  for (const int32_t p : device.paths) {
    const ServiceTimes& times = fleet.paths()[p].times;
    best = std::max(best, static_cast<double>(times.max_size()) / times.mean(times.max_size()));
  }
  return best;
}

}  // namespace

Core::Core(const Fleet& fleet, Policy& policy, int64_t max_waiting)
    : fleet_(fleet),
      policy_(policy),
      max_waiting_(max_waiting),
      lanes_(fleet.paths().size() + 1),
      lane_seconds_(fleet.paths().size()),
      workers_(fleet.workers()),
      states_(fleet.devices().size()),
      order_(fleet.devices().size()) {
  for (std::size_t d = 0; d < states_.size(); ++d) {
    const Device& device = fleet.devices()[d];
    if (device.paths.empty()) throw std::invalid_argument("device " + device.name + " has no path");
    states_[d].available = device.workers;
    // The first worker is the last in the list, from which they are taken.
    for (int32_t w = device.workers; w-- > 0;) states_[d].idle.push_back(device.first_worker + w);
  }
  if (states_.empty()) throw std::invalid_argument("serving: the fleet has no device");
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    return throughput(fleet, fleet.devices()[a]) > throughput(fleet, fleet.devices()[b]);
  });
  policy_.begin(*this);
}

double Core::profiled(int32_t path, int64_t size) const {
  const ServiceTimes& times = fleet_.paths()[path].times;
  const int64_t most = times.max_size();
  if (size <= most) return times.mean(size);
  const int64_t whole = size / most, rest = size % most;
  return static_cast<double>(whole) * times.mean(most) + (rest ? times.mean(rest) : 0.0);
}

double Core::backlog(int32_t device) const {
  double seconds = 0;
  for (const int32_t path : fleet_.devices()[device].paths) seconds += lane_seconds_[path];
  return seconds * slowness(device);
}

void Core::wait(uint32_t slot, int32_t first, int32_t count) {
  Query& query = queries_[slot];
  waiting_queries_ += query.waiting == 0;
  query.waiting += count;
  waiting_ += count;
  lanes_[query.lane].push({query.deadline, slot, first, count});
  if (query.lane != shared_lane()) lane_seconds_[query.lane] += profiled(query.lane, count);
}

// Bookkeeping of what has left the lane.
void Core::unwait(const Query& query, int32_t count) {
  waiting_queries_ -= query.waiting == 0;
  waiting_ -= count;
  if (query.lane == shared_lane()) return;
  double& seconds = lane_seconds_[query.lane];
  // Parts may add up to more or less than the whole.
  seconds = lanes_[query.lane].empty() ? 0.0 : std::max(0.0, seconds - profiled(query.lane, count));
}

bool Core::submit(double now, int64_t id, int32_t size, double deadline) {
  now_ = now;
  if (waiting_ + size > max_waiting_) return false;
  const int32_t lane = policy_.arrive(*this, size, deadline);
  if (lane < 0) {
    if (waiting_ == 0) forget_slowness();
    return false;
  }
  if (lane > shared_lane()) {
    throw std::out_of_range("a policy's arrive() returned lane " + std::to_string(lane) +
                            "; the last one, shared by all, is " + std::to_string(shared_lane()));
  }
  uint32_t slot;
  if (free_.empty()) {
    slot = static_cast<uint32_t>(queries_.size());
    queries_.emplace_back();
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  queries_[slot] = {id, now, deadline, 0.0, size, 0, 0, lane, false, false};
  wait(slot, 0, size);
  return true;
}

void Core::dispatch(double now) {
  now_ = now;
  started_.clear();
  wake_ = std::numeric_limits<double>::infinity();
  if (waiting_ == 0) return;
  for (const int32_t d : order_) {
    std::vector<int32_t>& idle = states_[d].idle;
    while (!idle.empty() && waiting_ > 0) {
      const int32_t worker = idle.back();
      const Decision decision = policy_.start(*this, worker);
      if (decision.path < 0) {
        if (decision.wake > now) wake_ = std::min(wake_, decision.wake);
        break;
      }
      idle.pop_back();
      start(worker, decision);
      started_.push_back(worker);
    }
  }
}

void Core::start(int32_t worker, const Decision& decision) {
  const std::vector<Path>& paths = fleet_.paths();
  if (decision.path >= static_cast<int32_t>(paths.size()) || decision.lane < 0 ||
      decision.lane > shared_lane() || paths[decision.path].device != fleet_.device_of(worker)) {
    throw std::out_of_range("a policy's start() chose path " + std::to_string(decision.path) +
                            ", lane " + std::to_string(decision.lane) + " for worker " +
                            std::to_string(worker) + "; the path must be of the worker's device");
  }
  Lane& lane = lanes_[decision.lane];
  const ServiceTimes& times = paths[decision.path].times;
  const int64_t most = std::min(decision.samples, times.max_size());
  if (most < 1 || lane.empty()) {
    throw std::out_of_range("a policy's start() takes " + std::to_string(decision.samples) +
                            " samples from a lane of " + std::to_string(lane.samples()));
  }
  Worker& w = workers_[worker];
  w.running = true;
  w.batch.path = decision.path;
  w.batch.parts.clear();
  int64_t size = 0;
  while (size < most && !lane.empty()) {
    const Waiting head = lane.head();
    const auto count = static_cast<int32_t>(std::min<int64_t>(head.count, most - size));
    Query& query = queries_[head.slot];
    w.batch.parts.push_back({head.slot, head.first, count});
    lane.take(count);
    query.waiting -= count;
    query.running += count;
    unwait(query, count);
    size += count;
  }
  w.batch.size = size;
  w.batch.start = now_;
  w.batch.expected = times.mean(size) * slowness(fleet_.device_of(worker));
}

void Core::finish(double now, int32_t worker, double seconds) {
  now_ = now;
  finished_.clear();
  Worker& w = workers_[worker];
  const Path& path = fleet_.paths()[w.batch.path];
  for (const Part& part : w.batch.parts) {
    Query& query = queries_[part.slot];
    query.running -= part.count;
    query.worth += part.count * path.accuracy;
    if (query.given_up) {
      if (query.running == 0) release(part.slot);
    } else if (query.done() == query.size) {
      finished_.push_back(part.slot);
    }
  }
  State& state = states_[path.device];
  // An outlier says little.
  const double ratio = std::clamp(seconds / path.times.mean(w.batch.size),
                                  state.slowness / kOutlier, state.slowness * kOutlier);
  learn_slowness(state, ratio);
  w.running = false;
  set_idle(worker);
}

void Core::fail(double now, int32_t worker) {
  now_ = now;
  Worker& w = workers_[worker];
  if (w.running) {
    w.running = false;
    for (const Part& part : w.batch.parts) {
      Query& query = queries_[part.slot];
      query.running -= part.count;
      if (query.given_up) {
        if (query.running == 0) release(part.slot);
      } else {
        query.split = true;
        wait(part.slot, part.first, part.count);
      }
    }
    set_idle(worker);
  }
  set_available(now, worker, false);
}

void Core::set_available(double now, int32_t worker, bool available) {
  now_ = now;
  Worker& w = workers_[worker];
  if (w.available == available) return;
  w.available = available;
  State& state = states_[fleet_.device_of(worker)];
  state.available += available ? 1 : -1;
  ++epoch_;
  if (w.running) return;
  if (available) {
    state.slowness = state.announced = 1;
    state.idle.push_back(worker);
  } else {
    std::erase(state.idle, worker);
  }
}

// A device without work shows no more how fast it is: one that was slow once, so much that nothing
// is admitted to it, would be taken to be so for ever.
void Core::forget_slowness() {
  for (State& state : states_) {
    if (static_cast<int32_t>(state.idle.size()) == state.available && state.slowness > 1) {
      learn_slowness(state, 1);
    }
  }
}

void Core::learn_slowness(State& state, double ratio) {
  state.slowness += kNewest * (ratio - state.slowness);
  if (std::abs(state.slowness - state.announced) > kMatters * state.announced) {
    state.announced = state.slowness;
    ++epoch_;
  }
}

void Core::set_idle(int32_t worker) {
  if (workers_[worker].available) states_[fleet_.device_of(worker)].idle.push_back(worker);
}

void Core::give_up(uint32_t slot) {
  Query& query = queries_[slot];
  given_up_.push_back({query.id, query.arrival, query.deadline, query.size, query.done()});
  query.given_up = true;
  const int32_t count = query.waiting;
  query.waiting = 0;
  if (count > 0) {
    Lane& lane = lanes_[query.lane];
    if (!query.split && lane.head().slot == slot) {
      lane.take(lane.head().count);
    } else {
      lane.erase(slot);
    }
    unwait(query, count);
  }
  if (query.running == 0) release(slot);
}

}  // namespace recsys_opt::serving
