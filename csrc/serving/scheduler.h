// The scheduler of the server: the core with a real clock, shared by threads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "serving/core.h"

namespace recsys_opt::serving {

struct Counts {
  int64_t submitted = 0, rejected = 0, finished = 0, given_up = 0, batches = 0, failed = 0;
  int64_t waiting_queries = 0, waiting_samples = 0, running = 0;  // running: batches
};

struct Assignment {
  int32_t path;
  int64_t size;
  double expected;  // seconds
  std::vector<int64_t> queries;
  std::vector<int32_t> first, count;
};

struct Answer {
  int64_t query;
  int32_t size;
  double accuracy;  // mean of its samples' paths
  double arrival, deadline;
};

// Times are seconds of std::chrono::steady_clock, which is Python's time.monotonic().
class Scheduler {
 public:
  // Workers begin as not available.
  Scheduler(std::shared_ptr<const Fleet> fleet, std::shared_ptr<Policy> policy,
            int64_t max_waiting);

  bool submit(int64_t query, int32_t size, double deadline);
  // The worker's next batch; false after `timeout` seconds without one, or once closed.
  bool take(int32_t worker, double timeout, Assignment& batch);
  // The worker's batch is computed. `seconds` is what it took on the device, from which the policy
  // learns how slow that is; NaN: the time since the batch was given out. In a process whose own
  // work delays take() and done(), that is not the same.
  std::vector<Answer> done(int32_t worker, double seconds);
  void failed(int32_t worker);
  void set_worker(int32_t worker, bool available);
  // Gives up a query that waits; false: it does not.
  bool drop(int64_t query);
  // Queries given up since the last call; waits for one `timeout` seconds at most.
  std::vector<int64_t> dropped(double timeout);
  void close();
  bool closed() const;
  Counts counts() const;
  double slowness(int32_t device) const;
  // When the policy wants to be asked again, though nothing happens until then; infinity: never.
  double wake_at() const;

 private:
  struct Seat {  // of a worker
    bool assigned = false;
    std::condition_variable ready;
  };
  void dispatch(double now);
  Seat& seat(int32_t worker);
  void require_running(int32_t worker) const;

  std::shared_ptr<const Fleet> fleet_;
  std::shared_ptr<Policy> policy_;
  mutable std::mutex mutex_;
  Core core_;
  std::vector<std::unique_ptr<Seat>> seats_;
  std::condition_variable given_up_;
  double alarm_ = std::numeric_limits<double>::infinity();
  bool closed_ = false;
  Counts counts_;
};

}  // namespace recsys_opt::serving
