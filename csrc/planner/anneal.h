// What the annealed ruin and recreate has in common, whether it starts from nothing (search.h) or
// from the plan that runs (replan.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "planner/load.h"

namespace recsys_opt::planner {

// Options this much dearer than a table's cheapest, at the price of the bound, are not tried, nor
// are more than so many.
inline constexpr double kWorthTrying = 4.0;
inline constexpr size_t kMostOptions = 12;
// Many tables taken out at once seldom come back better.
inline constexpr size_t kMostOut = 24;
// For this share of the steps, small tables (by the weight of a piece, as a share of what a device
// holds) may be cut only in ways that cost little more than the cheapest.
inline constexpr double kTightShare = 0.9, kSmall = 0.4;
// Devices that a table may move to besides those that tables were taken from.
inline constexpr int kOthers = 4;
// A piece that goes to every device costs its seconds at the slope of a typical one.
inline constexpr double kTypical = 1.4;

// What a load costs: its time, and more the nearer it comes to the time that is reached for. The
// slope says how dear a second is on the device: 1 where it is idle, 2 at the time reached for.
// Infinite for an infinite time alone: a device may be far beyond, where tables are pinned to it.
inline double penalty(double seconds, double reach) {
  constexpr double kSteep = 60, kLargest = 500;
  if (std::isinf(seconds)) return std::numeric_limits<double>::infinity();
  const double x = seconds / reach;
  return x + std::exp(std::min(kSteep * (x - 1), kLargest)) / kSteep;
}

inline double power(double seconds, double reference) {
  double x = seconds / reference;
  for (int doubling = 0; doubling < 5; ++doubling) x *= x;  // the 32nd power
  return x;
}

// Nearly the slowest device's time, as a share of `reference`; others that are slow count a little.
inline double height(const std::vector<Load>& loads, double reference) {
  double sum = 0;
  for (const Load& load : loads) sum += power(load.seconds(), reference);
  return std::pow(sum, 1.0 / 32);
}

inline int32_t slowest_device(const std::vector<Load>& loads) {
  const auto slower = [](const Load& a, const Load& b) { return a.seconds() < b.seconds(); };
  return static_cast<int32_t>(std::max_element(loads.begin(), loads.end(), slower) - loads.begin());
}

// Of the acceptance, as a share of the slowest device's time, when so much of the work is done.
inline double temperature(size_t tables, double done) {
  constexpr size_t kFew = 64;
  constexpr double kHotFew = 0.15, kHot = 1e-3, kCold = 1e-5;
  const double hot = tables <= kFew ? kHotFew : kHot;
  return hot * std::pow(kCold / hot, done);
}

}  // namespace recsys_opt::planner
