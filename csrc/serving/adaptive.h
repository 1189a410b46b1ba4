// The adaptive policy: late binding, earliest deadline first, coalescing, splitting, dropping, and
// accuracy at the price that the backlog sets.
//
// Think of the fleet as a fluid: a worker on path p serves r_p samples a second, at accuracy a_p.
// To serve R samples a second at the best mean accuracy is a linear program with one constraint
// that joins the devices, so one price mu of serving a sample splits it: each device runs the path
// with the largest r_p (a_p - mu), or none where that is negative. The rate at which the fleet then
// serves falls with mu in steps, one for each change of a device's path.
//
// R is what has arrived a second of late, corrected by how far the backlog is from the one to keep;
// between the two steps that R lies between, the faster one is taken while the backlog is above
// it, the slower and more accurate one below. What was refused of late counts as backlog. So what
// is served equals what arrives, at the price that is right for it, and a burst is answered as soon
// as it is in the backlog.
//
// The backlog to keep is what arrives in T seconds: large, since large batches are efficient, but
// so that its wait and a batch of as long again fit into the time that queries are given, with a
// margin for how much more than on average may arrive in T:
//     T + z sqrt(T v) / rate = safe sla / 2,    v: sum of the squared sizes that arrive a second.
//
// A query is admitted if all that waits, and it, fit in until its deadline: each worker first ends
// what it does and then does full batches, those of which two fit into the time that queries are
// given. So what is admitted in an overload is served in full batches, and in time.
//
// All constants are shares of the time that queries are given; none depends on the load, the
// devices or the models.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "serving/core.h"
#include "serving/policy.h"

namespace recsys_opt::serving {

// Samples that arrive a second, and the sum of the squares of their queries' sizes.
class ArrivalRate {
 public:
  // Averaged over `memory` seconds (and over all there are, while those are fewer).
  explicit ArrivalRate(double memory) : memory_(memory) {}
  void add(int32_t size) {
    samples_ += size;
    squares_ += static_cast<double>(size) * size;
  }
  void advance(double now);
  double rate() const { return rate_; }
  double squares() const { return square_rate_; }

 private:
  double memory_;
  double samples_ = 0, squares_ = 0, rate_ = 0, square_rate_ = 0;
  double first_ = 0, last_ = 0;
  bool begun_ = false;
};

class Adaptive : public Policy {
 public:
  // sla: seconds that queries are given; admit: reject a query at its arrival where it is not
  // expected to be done in time.
  Adaptive(double sla, bool admit);
  void begin(const Core& core) override;
  int32_t arrive(const Core& core, int32_t size, double deadline) override;
  Decision start(Core& core, int32_t worker) override;

 private:
  struct Step {
    double price, least;  // within those at which this holds, and almost the least
    double rate;          // samples a second that the fleet serves at these
  };
  struct Full {  // a batch in an overload
    int64_t size = 0;
    double slow = 0, per_second = 0;  // seconds of a slow one; batches a second
  };
  // What follows from the devices there are and how slow they are.
  void refresh(const Core& core);
  void find_steps(const Core& core);
  double best_rate(const Core& core, int32_t path) const;
  Full full_batch(const Core& core, int32_t device) const;
  double most_rate() const { return steps_.empty() ? 0.0 : steps_.back().rate; }

  // Whether a query that arrives now is expected to be done in time.
  bool in_time(const Core& core, int32_t size, double deadline) const;
  // Gives up what cannot be in time.
  void give_up(Core& core, int32_t device) const;
  double backlog_to_keep() const;
  struct Price {
    double value;
    bool slower;  // of two steps, so that the backlog grows
  };
  Price price(const Core& core) const;
  double refused(const Core& core) const;
  double longest_batch(const Core& core, int32_t path) const;
  // Whether a worker of another device can serve the head in time, on a path worth the price.
  bool elsewhere(const Core& core, int32_t device, double price) const;
  // The most accurate path that serves the head in time, or the one that is late the least.
  Decision serve_head(const Core& core, int32_t device) const;
  // The batch of which the most samples a second are in time, where the head is not for sure.
  Decision save_most(const Core& core, int32_t device) const;
  // The latest time at which the device can begin with the head; infinity: it is past.
  double latest_start(const Core& core, int32_t device) const;
  // Seconds of so many samples on the fastest path there is.
  double least_time(const Core& core, int32_t count) const;

  double sla_;
  bool admit_;
  ArrivalRate arrivals_;
  double refused_ = 0, refused_at_ = 0;  // samples, as they were then
  int64_t epoch_ = -1;
  std::vector<double> rates_;     // [paths] samples a second at the best size of batch
  std::vector<int32_t> fastest_;  // [devices] the path of the highest rate
  std::vector<Full> full_;        // [devices]
  int32_t main_ = 0;              // the device of the highest rate
  std::vector<Step> steps_;       // by falling price, rising rate
};

}  // namespace recsys_opt::serving
