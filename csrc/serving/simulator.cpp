#include "serving/simulator.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <queue>
#include <stdexcept>
#include <utility>

namespace recsys_opt::serving {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

struct Completion {
  double time;
  int32_t worker;
  uint32_t run;  // of the worker; one that failed in the meantime has another
  bool operator>(const Completion& other) const {
    return time > other.time || (time == other.time && worker > other.worker);
  }
};

class Simulation {
 public:
  Simulation(const Fleet& fleet, Policy& policy, const Workload& workload,
             const SimulationOptions& options)
      : fleet_(fleet),
        times_(options.times ? *options.times : fleet),
        options_(options),
        core_(fleet, policy, options.max_waiting),
        stream_(workload, options.seed),
        random_(Random::stream(options.seed, 2)),
        factors_(fleet.devices().size(), 1.0),
        replayed_(fleet.devices().size(), 0),
        runs_(fleet.workers(), 0),
        records_(fleet.workers(), -1),
        seconds_(fleet.workers(), 0.0) {
    result_.busy.resize(fleet.workers());
    for (auto* counts : {&result_.batches, &result_.path_queries, &result_.path_samples}) {
      counts->resize(fleet.paths().size());
    }
    result_.class_samples.resize(fleet.paths().size() * kSizeClasses);
    result_.class_outcomes.resize(kOutcomes * kSizeClasses);
  }

  SimulationResult run() {
    next_arrival();
    while (true) {
      const double event = event_ < options_.events.size() ? options_.events[event_].time : kNever;
      const double completion = completions_.empty() ? kNever : completions_.top().time;
      const double wake = core_.waiting_samples() ? core_.wake_at() : kNever;
      const double now = std::min({event, completion, arrival_.time, wake});
      if (now == kNever) break;
      if (now == event) {
        happen(options_.events[event_++]);
      } else if (now == completion) {
        if (!complete(now)) continue;
      } else if (now == arrival_.time) {
        arrive();
      }
      core_.dispatch(now);
      for (const int32_t worker : core_.started()) begin(worker);
      settle_given_up();
    }
    leave_rest();
    result_.seconds = std::max(0.0, last_ - first_);
    return std::move(result_);
  }

 private:
  void next_arrival() {
    if (index_ + 1 == options_.queries || !stream_.next(arrival_)) arrival_.time = kNever;
    if (arrival_.time != kNever) last_ = arrival_.time;
    ++index_;
  }

  Bin* bin(double time) {
    if (options_.bin <= 0) return nullptr;
    const auto i = static_cast<std::size_t>(time / options_.bin);
    while (result_.timeline.size() <= i) {
      result_.timeline.emplace_back().path_samples.resize(fleet_.paths().size());
    }
    return &result_.timeline[i];
  }

  void arrive() {
    const Arrival arrival = arrival_;
    const int64_t id = index_;
    const bool counted = id >= options_.warmup;
    if (id == options_.warmup) first_ = arrival.time;
    ++result_.events;
    if (counted) {
      ++result_.arrived;
      result_.arrived_samples += arrival.size;
    }
    if (options_.record) {
      result_.arrival.push_back(arrival.time);
      result_.size.push_back(arrival.size);
      result_.start.push_back(kNever);
      result_.finish.push_back(kNever);
      result_.path.push_back(-1);
      result_.batch.push_back(-1);
      result_.outcome.push_back(0);
    }
    if (Bin* const b = bin(arrival.time)) {
      ++b->arrived;
      b->waiting = std::max(b->waiting, core_.waiting_samples() + arrival.size);
    }
    if (!core_.submit(arrival.time, id, arrival.size, arrival.time + options_.sla)) {
      settle(id, arrival.size, arrival.time, Outcome::kRejected);
    }
    next_arrival();
  }

  // A batch begins.
  void begin(int32_t worker) {
    const Batch& batch = core_.batch(worker);
    const double seconds = service(times_.paths()[batch.path], batch);
    ++result_.events;
    seconds_[worker] = seconds;
    completions_.push({batch.start + seconds + options_.turnaround, worker, runs_[worker]});
    // By the count of queries that a run has had when the batch begins.
    if (index_ > options_.warmup) {
      ++result_.batches[batch.path];
      for (const Part& part : batch.parts) {
        const Query& query = core_.query(part.slot);
        ++result_.path_queries[batch.path];
        result_.path_samples[batch.path] += part.count;
        result_.class_samples[batch.path * kSizeClasses + size_class(query.size)] += part.count;
      }
    }
    for (const Part& part : batch.parts) {
      const Query& query = core_.query(part.slot);
      if (query.waiting + part.count == query.size && query.id >= options_.warmup) {
        waits_ += batch.start - query.arrival;
      }
      if (options_.record) {
        result_.start[query.id] = std::min(result_.start[query.id], batch.start);
        result_.path[query.id] = batch.path;
      }
    }
    if (Bin* const b = bin(batch.start)) b->path_samples[batch.path] += batch.size;
    if (options_.record) {
      records_[worker] = static_cast<int32_t>(result_.batch_start.size());
      result_.batch_start.push_back(batch.start);
      result_.batch_seconds.push_back(seconds);
      result_.batch_worker.push_back(worker);
      result_.batch_path.push_back(batch.path);
      result_.batch_size.push_back(static_cast<int32_t>(batch.size));
    }
  }

  double service(const Path& path, const Batch& batch) {
    const double known = recorded_seconds(batch);
    if (known > 0) return known * factors_[path.device];
    double seconds;
    if (options_.recorded.empty() || options_.recorded[path.device].starts.empty()) {
      seconds = path.times.sample(batch.size, random_) + (waited_for(batch) ? options_.wake : 0);
    } else {
      const Recorded& recorded = options_.recorded[path.device];
      std::size_t& at = replayed_[path.device];
      while (at + 1 < recorded.starts.size() && recorded.starts[at + 1] <= batch.start) ++at;
      seconds = path.times.mean(batch.size) * recorded.ratios[at];
    }
    return seconds * factors_[path.device];
  }

  bool waited_for(const Batch& batch) const {
    return std::any_of(batch.parts.begin(), batch.parts.end(), [&](const Part& part) {
      return core_.query(part.slot).arrival == batch.start;
    });
  }

  // Of the recorded batch that this one is; 0: it is none.
  double recorded_seconds(const Batch& batch) const {
    const RecordedBatches& batches = options_.batches;
    if (batches.path.empty()) return 0;
    for (const Part& part : batch.parts) {
      const Query& query = core_.query(part.slot);
      if (query.waiting == 0 && batches.path[query.id] == batch.path &&
          batches.size[query.id] == batch.size) {
        return batches.seconds[query.id];
      }
    }
    return 0;
  }

  // False: it failed in the meantime.
  bool complete(double now) {
    const Completion completion = completions_.top();
    completions_.pop();
    const int32_t worker = completion.worker;
    if (completion.run != runs_[worker]) return false;
    count_busy(worker, now);
    core_.finish(now, worker, seconds_[worker]);
    const double others = static_cast<double>(core_.finished().size()) - 1;
    const double told =
        now - options_.turnaround + options_.overhead + others * options_.answer_overhead;
    for (const uint32_t slot : core_.finished()) {
      const Query& query = core_.query(slot);
      const double done = told + query.size * options_.sample_overhead;
      // What rounding adds to a sum of times is not late.
      const bool in_time = done <= query.deadline + 1e-9 * options_.sla;
      if (query.id >= options_.warmup) {
        result_.latency.add(done - query.arrival);
        result_.worth += query.worth;
        if (in_time) result_.worth_in_time += query.worth;
      }
      if (options_.record) {
        result_.finish[query.id] = done;
        result_.batch[query.id] = records_[worker];
      }
      settle(query.id, query.size, now, in_time ? Outcome::kInTime : Outcome::kLate);
      core_.release(slot);
    }
    return true;
  }

  void count_busy(int32_t worker, double now) {
    const double end = arrival_.time == kNever ? std::min(now, last_) : now;
    if (index_ > options_.warmup) {
      result_.busy[worker] += std::max(0.0, end - std::max(core_.batch(worker).start, first_));
    }
  }

  void happen(const DeviceEvent& event) {
    ++result_.events;
    const Device& device = fleet_.devices()[event.device];
    const bool lost = event.factor == kNever;
    factors_[event.device] = event.factor;
    for (int32_t w = device.first_worker; w < device.first_worker + device.workers; ++w) {
      if (!lost) {
        core_.set_available(event.time, w, true);
      } else {
        if (core_.running(w)) {
          count_busy(w, event.time);
          ++runs_[w];
        }
        core_.fail(event.time, w);
      }
    }
  }

  void settle(int64_t id, int32_t size, double time, Outcome outcome) {
    const int o = static_cast<int>(outcome);
    if (id >= options_.warmup) {
      ++result_.outcomes[o];
      result_.outcome_samples[o] += size;
      ++result_.class_outcomes[o * kSizeClasses + size_class(size)];
    }
    if (options_.record) result_.outcome[id] = static_cast<int8_t>(o);
    if (Bin* const b = bin(time)) ++b->outcomes[o];
  }

  void settle_given_up() {
    if (core_.given_up().empty()) return;
    for (const Core::GivenUp& query : core_.given_up()) {
      settle(query.id, query.size, core_.now(), Outcome::kDropped);
    }
    core_.clear_given_up();
  }

  // What waits when nothing will ever happen again, all devices being lost.
  void leave_rest() {
    for (int32_t l = 0; l <= core_.shared_lane(); ++l) {
      while (!core_.lane(l).empty()) core_.give_up(core_.lane(l).head().slot);
    }
    settle_given_up();
    result_.wait = waits_;
  }

  static int size_class(int32_t size) { return std::bit_width(static_cast<uint32_t>(size)) - 1; }

  const Fleet& fleet_;
  const Fleet& times_;
  const SimulationOptions& options_;
  Core core_;
  Workload::Stream stream_;
  Random random_;
  std::vector<double> factors_;
  std::vector<std::size_t> replayed_;
  std::vector<uint32_t> runs_;
  std::vector<int32_t> records_;  // [workers] the number of the batch that each computes
  std::vector<double> seconds_;
  std::priority_queue<Completion, std::vector<Completion>, std::greater<>> completions_;
  Arrival arrival_{kNever, 0};
  int64_t index_ = -1;  // of the next arrival
  std::size_t event_ = 0;
  double first_ = 0, last_ = 0, waits_ = 0;
  SimulationResult result_;
};

}  // namespace

namespace {

bool same_paths(const Fleet& a, const Fleet& b) {
  return std::equal(a.paths().begin(), a.paths().end(), b.paths().begin(), b.paths().end(),
                    [](const Path& p, const Path& q) {
                      return p.name == q.name && p.times.max_size() >= q.times.max_size();
                    });
}

}  // namespace

SimulationResult simulate(const Fleet& fleet, Policy& policy, const Workload& workload,
                          const SimulationOptions& options) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("simulate: ") + what);
  };
  require(options.sla > 0 && std::isfinite(options.sla), "the SLA must be positive");
  require(options.queries >= 1, "queries must be at least 1");
  require(options.warmup >= 0 && options.warmup < options.queries,
          "warmup must be less than the queries");
  require(options.overhead >= 0 && options.sample_overhead >= 0 && options.answer_overhead >= 0 &&
              options.wake >= 0 && options.turnaround >= 0,
          "overheads must not be negative");
  require(options.times == nullptr || same_paths(*options.times, fleet),
          "the fleet of the times has other paths, or smaller batches");
  const RecordedBatches& batches = options.batches;
  require(batches.path.empty() || static_cast<int64_t>(batches.path.size()) >= options.queries,
          "recorded batches are by query");
  require(
      batches.size.size() == batches.path.size() && batches.seconds.size() == batches.path.size(),
      "recorded batches need path, size and seconds of each");
  double before = -kNever;
  for (const DeviceEvent& event : options.events) {
    require(event.time >= before, "events must be in the order of their times");
    require(event.device >= 0 && event.device < static_cast<int32_t>(fleet.devices().size()),
            "an event names a device that there is not");
    require(event.factor > 0, "an event's factor must be positive");
    before = event.time;
  }
  require(options.recorded.empty() || options.recorded.size() == fleet.devices().size(),
          "recorded times are by device");
  return Simulation(fleet, policy, workload, options).run();
}

}  // namespace recsys_opt::serving
