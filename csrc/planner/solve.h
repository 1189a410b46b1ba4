// The solver: bound, search, bound again, and the split of every device to the row.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "planner/bound.h"
#include "planner/problem.h"
#include "planner/search.h"
#include "planner/split.h"

namespace recsys_opt::planner {

struct Solution {
  Assignment assignment;
  std::vector<std::vector<double>> hot_rows;  // [tables][pieces] in the fast tier; not rounded
  double bound = 0;                           // seconds
  double pooled = 0;                          // the bound of all devices as one
  double price = 0;
};

struct Limits {
  int64_t trials;  // of the search
  int32_t rounds;  // of the pattern bound
  double gap;      // stop when the plan is this close to the bound, as a share of it
  uint64_t seed;
  std::function<void()> poll{};  // called now and then: it may throw to end the work
};

Solution solve(const Problem& problem, const Limits& limits);

// The best split of each device for pieces that are placed: rows in the fast tier, hottest first.
std::vector<std::vector<double>> split_devices(const Problem& problem,
                                               const Assignment& assignment);

}  // namespace recsys_opt::planner
