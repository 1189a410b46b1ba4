// Lower bounds on the slowest device's time: the certificate of a plan.
//
// pooled_bound: all devices as one. With a price on the bytes of the fast tier (weak duality) the
// tables fall apart, each takes its cheapest option, and the sum over tables, less the price of all
// fast bytes, is a bound on the sum of the devices' times. A device that ends within T holds no
// piece that takes longer than T by itself; so options with such pieces are left out, and T is the
// least time that contradicts nothing. Nor does a piece have more of the fast tier than one device
// has, whatever the price.
//
// pattern_bound: device by device. At the same price a device that ends within T holds pieces of a
// total weight (seconds + price * bytes) of at most T + price * its fast bytes: a knapsack. If
// tables have values so that no such knapsack holds more than the n-th part of their sum, n devices
// cannot hold them all. The best values are the duals of a linear program over all contents of a
// device, solved by generating columns (Gilmore & Gomory 1961); pieces are not divisible in it,
// which is what the pooled bound misses with few tables a device.
#pragma once

#include <functional>
#include <vector>

#include "planner/problem.h"

namespace recsys_opt::planner {

// Seconds of each option's piece with as much of a device's fast tier as it can use; infinity where
// no device has room for it.
struct LeastSeconds {
  double fast_bytes;            // of the device with most
  std::vector<double> average;  // [options] over a table's stripes
  std::vector<double> hottest;  // [options] of the stripe with the hottest row

  explicit LeastSeconds(const Problem& problem);
  // No device has more of the fast tier than it has: a piece that would take more at the price
  // takes all of it.
  Split capped(const Split& split, int32_t option) const {
    return split.fast_bytes > fast_bytes ? Split{fast_bytes, average[option]} : split;
  }
};

// What all tables come to at a price, each in its cheapest way whose pieces take `limit` seconds at
// most.
struct Pooled {
  double weight;  // seconds + price * fast bytes
  double fast_bytes;
};
Pooled pooled_weight(const Problem& problem, const PricedClasses& at, const LeastSeconds& least,
                     double limit);

struct Bound {
  double seconds = 0;
  double price = 0;  // seconds per byte of the fast tier at which it holds
};

Bound pooled_bound(const Problem& problem, const LeastSeconds& least);

// Starts from the pooled bound; at most `rounds` columns. `known`: the time of some plan, which the
// bound does not exceed. `poll` is called for each column: it may throw to end the work.
Bound pattern_bound(const Problem& problem, const LeastSeconds& least, const Bound& pooled,
                    double known, int rounds, const std::function<void()>& poll = {});

}  // namespace recsys_opt::planner
