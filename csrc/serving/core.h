// The scheduler: queries wait in lanes, workers that are free take batches from them as the policy
// decides. It has no clock and no threads: every call says what time it is. The simulator and the
// live scheduler both drive this one.
//
// A query may be cut into parts that run in several batches; it is done when all its samples are.
// What arrives is answered once, or given up once (rejected at its arrival, or dropped later).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "serving/fleet.h"
#include "serving/lane.h"
#include "serving/policy.h"

namespace recsys_opt::serving {

struct Query {
  int64_t id;
  double arrival, deadline;
  double worth;     // sum over the computed samples of their path's accuracy
  int32_t size;     // samples
  int32_t waiting;  // of these, in the lane
  int32_t running;  // in batches
  int32_t lane;
  bool split;  // may have several entries in the lane
  bool given_up;
  int32_t done() const { return size - waiting - running; }
};

struct Part {
  uint32_t slot;
  int32_t first, count;  // of the query's samples
};

struct Batch {
  int32_t path = -1;
  int64_t size = 0;
  double start = 0, expected = 0;  // seconds
  std::vector<Part> parts;
};

class Core {
 public:
  // max_waiting: samples; a query that would make it more is rejected.
  Core(const Fleet& fleet, Policy& policy, int64_t max_waiting);
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // False: rejected. A query that is admitted has a slot until it is released.
  bool submit(double now, int64_t id, int32_t size, double deadline);
  // Starts batches on free workers, as the policy decides; started() has their workers.
  void dispatch(double now);
  // The worker's batch is computed, in so many seconds of its own; finished() has the slots of the
  // queries that this completes.
  void finish(double now, int32_t worker, double seconds);
  // The worker is gone: its parts wait again.
  void fail(double now, int32_t worker);
  // A worker that is not available gets no work; workers begin as available.
  void set_available(double now, int32_t worker, bool available);
  // Gives a query up that waits (or partly runs). The policy does so, and clients that went away.
  void give_up(uint32_t slot);

  const std::vector<int32_t>& started() const { return started_; }
  const std::vector<uint32_t>& finished() const { return finished_; }
  // Slots of queries given up since clear_given_up(). Their slots go back by themselves.
  struct GivenUp {
    int64_t id;
    double arrival, deadline;
    int32_t size, done;
  };
  const std::vector<GivenUp>& given_up() const { return given_up_; }
  void clear_given_up() { given_up_.clear(); }
  // A finished query's slot goes back.
  void release(uint32_t slot) { free_.push_back(slot); }

  // What policies see.
  double now() const { return now_; }
  const Fleet& fleet() const { return fleet_; }
  const Lane& lane(int32_t i) const { return lanes_[i]; }
  int32_t shared_lane() const { return static_cast<int32_t>(lanes_.size()) - 1; }
  const Query& query(uint32_t slot) const { return queries_[slot]; }
  const Batch& batch(int32_t worker) const { return workers_[worker].batch; }
  bool running(int32_t worker) const { return workers_[worker].running; }
  int64_t waiting_samples() const { return waiting_; }
  int64_t waiting_queries() const { return waiting_queries_; }
  // When the worker's batch is expected to end; now, if it has none or is late.
  double free_at(int32_t worker) const {
    const Worker& w = workers_[worker];
    return w.running ? std::max(now_, w.batch.start + w.batch.expected) : now_;
  }
  int32_t available(int32_t device) const { return states_[device].available; }
  bool worker_available(int32_t worker) const { return workers_[worker].available; }
  // How much longer than profiled the device's batches take of late.
  double slowness(int32_t device) const { return states_[device].announced; }
  // Expected seconds of a batch, with the device's slowness.
  double expected(int32_t path, int64_t size) const {
    return profiled(path, size) * slowness(fleet_.paths()[path].device);
  }
  // Expected seconds of what waits in the lanes of the device's paths.
  double backlog(int32_t device) const;
  // Changes whenever available() or slowness() of a device did, by a tenth at least.
  int64_t epoch() const { return epoch_; }
  // The time at which a policy that let a worker wait wants to be asked again.
  double wake_at() const { return wake_; }
  // The devices, the one of the highest throughput first.
  const std::vector<int32_t>& order() const { return order_; }

 private:
  struct Worker {
    bool available = true, running = false;
    Batch batch;
  };
  struct State {  // of a device
    int32_t available;
    double slowness = 1, announced = 1;
    std::vector<int32_t> idle;
  };
  double profiled(int32_t path, int64_t size) const;
  void start(int32_t worker, const Decision& decision);
  void wait(uint32_t slot, int32_t first, int32_t count);
  void unwait(const Query& query, int32_t count);
  void set_idle(int32_t worker);
  void forget_slowness();
  void learn_slowness(State& state, double ratio);

  const Fleet& fleet_;
  Policy& policy_;
  int64_t max_waiting_;
  double now_ = -std::numeric_limits<double>::infinity();
  double wake_ = std::numeric_limits<double>::infinity();
  int64_t waiting_ = 0, waiting_queries_ = 0, epoch_ = 0;
  std::vector<Lane> lanes_;           // one per path, then the shared one
  std::vector<double> lane_seconds_;  // [paths] as profiled
  std::vector<Worker> workers_;
  std::vector<State> states_;
  std::vector<int32_t> order_;
  std::vector<Query> queries_;
  std::vector<uint32_t> free_, finished_;
  std::vector<int32_t> started_;
  std::vector<GivenUp> given_up_;
};

}  // namespace recsys_opt::serving
