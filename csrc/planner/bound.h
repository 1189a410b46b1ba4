// Lower bounds on the slowest device's time: the certificate of a plan.
//
// pooled_bound: all devices as one. With a price on the bytes of the fast tier (weak duality) the
// tables fall apart, each takes its cheapest option, and the sum over tables, less the price of all
// fast bytes, is a bound on the sum of the devices' times. A device that ends within T holds no
// piece that takes longer than T by itself; so options with such pieces are left out, and T is the
// least time that contradicts nothing.
//
// pattern_bound: device by device. At the same price a device that ends within T holds pieces of a
// total weight (seconds + price * bytes) of at most T + price * its fast bytes: a knapsack. If
// tables have values so that no such knapsack holds more than the n-th part of their sum, n devices
// cannot hold them all. The best values are the duals of a linear program over all contents of a
// device, solved by generating columns (Gilmore & Gomory 1961); pieces are not divisible in it,
// which is what the pooled bound misses with few tables a device.
#pragma once

#include <vector>

#include "planner/problem.h"

namespace recsys_opt::planner {

// What all tables come to at a price, each in its cheapest way whose piece takes `limit` seconds at
// most.
struct Pooled {
  double weight;  // seconds + price * fast bytes
  double fast_bytes;
};
Pooled pooled_weight(const Problem& problem, const PricedClasses& at,
                     const std::vector<double>& least, double limit);

// Seconds of each option's piece with as much of a device's fast tier as it can use; infinity where
// no device has room for it.
std::vector<double> least_seconds(const Problem& problem);

struct Bound {
  double seconds = 0;
  double price = 0;  // seconds per byte of the fast tier at which it holds
};

// `known`: the time of some plan, which the bound does not exceed; infinity if none is known.
Bound pooled_bound(const Problem& problem, const std::vector<double>& least, double known);

// Starts from the pooled bound; at most `rounds` columns.
Bound pattern_bound(const Problem& problem, const std::vector<double>& least, const Bound& pooled,
                    double known, int rounds);

}  // namespace recsys_opt::planner
