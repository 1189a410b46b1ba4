// A discrete-event simulation of a fleet under a policy: the scheduler's own code (core.h) with a
// simulated clock, and times drawn from the profile.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "serving/core.h"
#include "serving/histogram.h"
#include "serving/workload.h"

namespace recsys_opt::serving {

// From `time` on a device's batches take `factor` times as long; infinity: it is lost, with what it
// runs, until another event.
struct DeviceEvent {
  double time;
  int32_t device;
  double factor;
};

// How much longer than the mean a device's batches took, by when they began.
struct Recorded {
  std::vector<double> starts, ratios;
};

// By query: path, samples and seconds of the recorded batch with its last part; path -1: unknown. A
// simulated batch that is a recorded one again takes just as long.
struct RecordedBatches {
  std::vector<int32_t> path, size;
  std::vector<double> seconds;
};

struct SimulationOptions {
  double sla = 0;
  int64_t queries = 0;
  uint64_t seed = 0;
  int64_t warmup = 0;  // the first so many queries are served but not counted
  int64_t max_waiting = std::numeric_limits<int64_t>::max();
  double overhead = 0;         // seconds of each query beside its wait and its batch,
  double sample_overhead = 0;  // of each of its samples,
  double answer_overhead = 0;  // and of each other query that its last batch answers
  double wake = 0;             // further seconds of a batch that a worker has waited for
  double turnaround = 0;       // seconds of a worker between two batches
  double bin = 0;              // seconds of the timeline's bins; 0: no timeline
  bool record = false;
  std::vector<DeviceEvent> events;
  std::vector<Recorded> recorded;  // by device; empty: times are drawn
  RecordedBatches batches;         // empty, or one for each query
  // Whose times batches take, where these are others than the policy expects; its paths are the
  // fleet's.
  const Fleet* times = nullptr;
};

constexpr int kSizeClasses = 32;  // class i has sizes 2^i .. 2^(i + 1) - 1

enum class Outcome : int8_t { kInTime = 0, kLate = 1, kDropped = 2, kRejected = 3 };
constexpr int kOutcomes = 4;

struct Bin {
  int64_t arrived = 0, outcomes[kOutcomes] = {0, 0, 0, 0}, waiting = 0;  // queries; samples
  std::vector<int64_t> path_samples;
};

struct SimulationResult {
  int64_t arrived = 0, arrived_samples = 0;
  int64_t outcomes[kOutcomes] = {0, 0, 0, 0};  // queries, by when they arrived
  int64_t outcome_samples[kOutcomes] = {0, 0, 0, 0};
  double worth = 0, worth_in_time = 0;  // samples times accuracy, of all answers
  double wait = 0;                      // sum over the answers of the time to their first batch
  double seconds = 0;                   // from the first counted arrival to the last
  int64_t events = 0;                   // arrivals, batches, device events
  Histogram latency;
  std::vector<double> busy;                                  // [workers] seconds within `seconds`
  std::vector<int64_t> batches, path_queries, path_samples;  // [paths]
  std::vector<int64_t> class_samples;                        // [paths, kSizeClasses]
  std::vector<int64_t> class_outcomes;                       // [kOutcomes, kSizeClasses] queries
  std::vector<Bin> timeline;
  // With record, [queries]:
  std::vector<double> arrival, start, finish;
  std::vector<int32_t> size, path, batch;  // batch: that answered it; -1: none did
  std::vector<int8_t> outcome;
  // and [batches]:
  std::vector<double> batch_start, batch_seconds;
  std::vector<int32_t> batch_worker, batch_path, batch_size;
};

SimulationResult simulate(const Fleet& fleet, Policy& policy, const Workload& workload,
                          const SimulationOptions& options);

}  // namespace recsys_opt::serving
