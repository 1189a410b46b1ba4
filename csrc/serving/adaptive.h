// The adaptive policy: late binding, earliest deadline first, coalescing, splitting, dropping, and
// accuracy at the price that the backlog sets.
//
// Think of the fleet as a fluid: a worker on path p serves r_p samples a second, at accuracy a_p.
// To serve R samples a second at the best mean accuracy is a linear program with one constraint
// that joins the devices, so one price mu per sample served splits it: each device runs the path
// with the largest r_p (a_p - mu), or none where that is negative. The rate at which the fleet then
// serves falls with mu in steps, one for each change of a device's path.
//
// R is what the backlog asks for: the sum over the waiting queries of size / (deadline - arrival),
// divided by `kPatience`: the rate at which the backlog is gone in that share of the time that
// queries are given. If the fleet serves too slowly, the backlog grows, so does R, the price falls
// and the paths get faster, until the backlog stays: then what is served equals what arrives, at
// the price that is right for it. No arrival rate is estimated and nothing is tuned: a burst is in
// the backlog as soon as it has come.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "serving/core.h"
#include "serving/policy.h"

namespace recsys_opt::serving {

class Adaptive : public Policy {
 public:
  // sla: seconds that queries are given, for the size of batches; admit: reject a query at its
  // arrival where it is not expected to be served in time.
  Adaptive(double sla, bool admit) : sla_(sla), admit_(admit) {}
  void begin(const Core& core) override;
  int32_t arrive(const Core& core, int32_t size, double deadline) override;
  Decision start(Core& core, int32_t worker) override;

 private:
  struct Step {
    double price, rate;  // at this price the fleet serves `rate` samples a second
  };
  void refresh(const Core& core);
  // Samples a second of the path at its best size of batch.
  double best_rate(const Core& core, int32_t path) const;
  // The largest price at which the fleet serves so many samples a second; the last one, where even
  // the fastest paths do not.
  double price(double rate) const;
  double most_rate() const { return steps_.empty() ? 0.0 : steps_.back().rate; }
  // Seconds of so many samples on the fastest path there is.
  double least_time(int32_t count) const {
    return least_time_[std::min<std::size_t>(count, least_time_.size() - 1)];
  }
  // Whether a worker of another device can serve the samples by the deadline, on a path that is
  // worth its price.
  bool elsewhere(const Core& core, int32_t device, double price, const Waiting& head) const;
  // The path that is done with the head soonest, and the latest time for it to start.
  Decision last_resort(const Core& core, int32_t device, const Waiting& head) const;

  double sla_;
  bool admit_;
  int64_t epoch_ = -1;
  std::vector<double> rates_;       // [paths]
  std::vector<Step> steps_;         // by falling price
  std::vector<double> least_time_;  // [largest batch + 1]
};

}  // namespace recsys_opt::serving
